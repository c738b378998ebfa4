--- What demonstrate, sample, compare and rate share: prompts in any form, texts
--- made safe to keep, stand-ins for plans.
local standin = require "perilune.study.standin"

local common = {}

---Text as JSON and a page can hold it. A model can stop inside a character: what is
---no UTF-8 becomes U+FFFD; the ids keep the truth.
---@param text string
---@return string
function common.clean(text)
  if utf8.len(text) and not text:find("\0", 1, true) then return text end
  local out, at = {}, 1
  while at <= #text do
    local ok, bad = utf8.len(text, at)
    if ok then
      out[#out + 1] = text:sub(at)
      break
    end
    out[#out + 1] = text:sub(at, bad - 1)
    out[#out + 1] = "\u{FFFD}"
    at = bad + 1
  end
  return (table.concat(out):gsub("\0", "\u{FFFD}"))
end

---The prompts of a dataset, a list of rows, or a list of strings.
---@param where string the function's name, for errors
---@param source any
---@return string[]
function common.prompts(where, source)
  if type(source) == "string" or type(source) ~= "table" then
    error(("%s: prompts must be a dataset or a list, got a %s"):format(where, type(source)), 0)
  end
  local out = {}
  for i = 1, #source do
    local row = source[i]
    local prompt = type(row) == "table" and row.prompt or row
    if type(prompt) ~= "string" then
      error(("%s: row %d has no text \"prompt\""):format(where, i), 0)
    end
    out[i] = prompt
  end
  if #out == 0 then error(where .. ": there are no prompts", 0) end
  return out
end

---The answers of a row: of a sample its completions, of a demonstration its completion.
---@param row table
---@return table[]
function common.answers(row)
  if row.completions then return row.completions end
  if row.a ~= nil and row.b ~= nil then return { row.a, row.b } end
  if type(row.completion) == "table" then return { row.completion } end
  return { { text = row.completion, ids = row.ids, finish = row.finish, tokenizer = row.tokenizer } }
end

---@param a any
---@return string
function common.text(a) return type(a) == "table" and a.text or a end

-- Fewer answers than this say nothing about a judge.
local ENOUGH = 20
-- While answers come in, a share counts as too large three standard errors above the limit.
local EARLY = 1.5
-- Bytes of an answer in an error.
local SHOWN = 200

---The option max_invalid of all that ask judges.
common.MAX_INVALID = { 0.5, min = 0, max = 1,
  doc = "stop when more than this share of the judge's answers is not understood (of 20 or more)" }

---The option dtype of all that let a model answer, as in model:generate; written out, the default is the same stage.
common.DTYPE = { "f32", choices = { "f32", "bf16", "int8" },
  doc = "numbers of the weights while a model answers: bf16 and int8 are faster and rounded" }

---Stops a stage whose judge is not understood, best before everything is paid.
---@param where string
---@param client perilune.ai.Client
---@param most number largest share of invalid answers
---@return {on_invalid: fun(text: string), early: fun(seen: integer), finish: fun(seen: integer, invalid: integer)}
function common.guard(where, client, most)
  local heard, first = 0, nil
  local function check(seen, invalid, margin)
    if seen < ENOUGH or invalid <= most * seen + margin * math.sqrt(seen) then return end
    local shown = ""
    if first then
      shown = ('; the first was: "%s"'):format(common.clean(#first > SHOWN and first:sub(1, SHOWN) .. "..." or first))
    end
    error(("%s: %d of %d answers of %s are invalid: the judge's answers are not understood%s (option max_invalid = %g)")
      :format(where, invalid, seen, client.name, shown, most), 0)
  end
  return {
    on_invalid = function(text)
      heard = heard + 1
      first = first or tostring(text)
    end,
    early = function(seen) check(seen, heard, EARLY) end,
    finish = function(seen, invalid) check(seen, invalid, 0) end,
  }
end

-- Bytes to tokens, roughly, for estimates.
local BYTES_A_TOKEN = 4

---@param prompts string[]
---@return number mean tokens of a prompt, roughly
function common.prompt_tokens(prompts)
  local bytes = 0
  for _, prompt in ipairs(prompts) do bytes = bytes + #prompt end
  return #prompts > 0 and bytes / #prompts / BYTES_A_TOKEN or 0
end

---Stand-in rows for prompts with n unknown answers each.
---@param name string
---@param prompts string[]
---@param n integer
---@param max_tokens? integer longest answer
---@return table
function common.standin(name, prompts, n, max_tokens)
  local rows = {}
  for i, prompt in ipairs(prompts) do
    rows[i] = { prompt = prompt, completions = standin.list("completions", n, { max_tokens = max_tokens }) }
  end
  return standin.dataset(name, rows)
end

return common
