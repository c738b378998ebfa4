--- Fine-tuning on completions: minus the mean log-probability of the answers' tokens,
--- end token included, over all trained tokens of the optimizer step. The prompt is
--- read but never trained. Tokens come from model:tokenize_rows, the one place that
--- knows BOS, end token and where the answer begins.
local data = require "perilune.data"

local sft = {}

---Every text answer that was not cut must end with the end token: training that never
---shows it gives a model that never stops, with a normal loss curve.
---@param where string
---@param model perilune.Model
---@param rows table[] { completion, finish? } as tokenised
---@param tokens table[] of {ids, start, cut}
local function check_ends(where, model, rows, tokens)
  local last = model:end_token()
  for i, t in ipairs(tokens) do
    local row = rows[i]
    if type(row.completion) == "string" and row.finish ~= "length" and t.cut ~= "completion"
      and t.ids[#t.ids] ~= last then
      error(("%s: row %d: its answer does not end with the model's end token %s"):format(where, i, tostring(last)), 0)
    end
  end
end

-- Messages need a chat template to become tokens.
local function wants_answers(where, rows, names)
  for i, row in ipairs(rows) do
    if row.messages ~= nil or type(row.prompt) == "table" and type(row.prompt[1]) == "table" then
      error(("%s: row %d is a conversation; chat templates are not read, give prompt and completion as text"):format(
        where, i), 0)
    end
    for _, name in ipairs(names) do
      if row[name] == nil then
        error(("%s: row %d has no %s"):format(where, i, name), 0)
      end
      if data.formats.empty_answer(row) == name then
        error(("%s: row %d: %s is empty, there is nothing to learn from"):format(where, i, name), 0)
      end
    end
  end
end

---Tokenises one answer column of rows; longer ones are cut by the rule in rows.lua where
---max_length is given, and an error otherwise.
---@param where string
---@param model perilune.Model
---@param rows table[]
---@param name string "completion", "chosen" or "rejected"
---@param max_length integer?
---@return table[] tokens of {ids, start, cut}
function sft.tokenize(where, model, rows, name, max_length)
  wants_answers(where, rows, { name })
  local answers = {}
  for i, row in ipairs(rows) do
    answers[i] = data.answer(row, name)
  end
  local ok, tokens = pcall(model.tokenize_rows, model, answers, { max_length = max_length })
  if not ok then
    error(("%s: %s: %s"):format(where, name, tokens), 0)
  end
  check_ends(where, model, answers, tokens)
  return tokens
end

---What became of the rows, for history.summary.
---@param tokens table[]
---@return table
function sft.count(tokens)
  local counts = { read = #tokens, used = #tokens, cut_prompt = 0, cut_completion = 0, dropped = {} }
  for _, t in ipairs(tokens) do
    if t.cut then
      counts["cut_" .. t.cut] = counts["cut_" .. t.cut] + 1
    end
  end
  return counts
end

---A task on examples that are lists of token rows: the mean over all their trained tokens.
---@param spec {where: string, label: string, examples: table[][], counts: table?}
---@return table task
function sft.task(spec)
  local examples = spec.examples
  local trained, tokens = {}, {}
  for i, list in ipairs(examples) do
    local n, all = 0, 0
    for _, t in ipairs(list) do
      n, all = n + #t.ids - t.start + 1, all + #t.ids
    end
    trained[i], tokens[i] = n, all
  end
  return {
    where = spec.where, label = spec.label, n = #examples, counts = spec.counts,
    weight = function(i)
      return trained[i]
    end,
    trained = function(i)
      return trained[i]
    end,
    tokens = function(i)
      return tokens[i]
    end,
    row = function(i)
      return i
    end,
    shown = function(i)
      return examples[i][1]
    end,
    micro = function(model, list, total)
      local rows, n = {}, 0
      for _, i in ipairs(list) do
        for _, t in ipairs(examples[i]) do
          n = n + 1
          rows[n] = t
        end
      end
      local share = (model:completion_logprobs(rows)):sum() * (-1 / total)
      return share, { nll = share:item() }
    end,
    metrics = function(sums)
      return { ["ppl/chosen"] = math.exp(sums.nll) }
    end,
  }
end

---The SFT task of a dataset.
---@param where string
---@param model perilune.Model
---@param rows table[]
---@param o table
---@return table
function sft.make(where, model, rows, o)
  local tokens = sft.tokenize(where, model, rows, "completion", o.max_length)
  local examples = {}
  for i, t in ipairs(tokens) do
    examples[i] = { t }
  end
  return sft.task { where = where, label = "sft", examples = examples, counts = sft.count(tokens) }
end

return sft
