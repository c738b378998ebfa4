--- local:DIR?temperature=1&max_tokens=128: a model on disk. As teacher it writes;
--- as critic it prefers the answer to which it gives the higher log-probability a
--- token (exactly equal: a tie). A model in hand goes the same way: pl.ai(model).
local base = require("perilune.core").base
local ai = require "perilune.ai"
local hash = require "perilune.study.hash"

local OPTIONS = {
  temperature = { type = "number", min = 0, doc = "of its answers; default: what the stage asks for, else 1" },
  top_p = { type = "number", min = 0, max = 1 },
  top_k = { type = "integer", min = 0 },
  min_p = { type = "number", min = 0, max = 1 },
  dtype = { type = "string", choices = { "f32", "bf16", "int8" }, doc = "numbers of the weights while it writes" },
  max_tokens = { type = "integer", min = 1, doc = "longest answer; default: what the stage asks for" },
}

-- Answers scored at once: enough to fill the machine, little enough memory.
local BATCH = 64

---@class perilune.ai.Local : perilune.ai.Provider
local Local = {}
Local.__index = Local

function Local:model()
  if not self.loaded then self.loaded = require("perilune.models").load(self.dir) end
  return self.loaded
end

function Local:key()
  local identity = self.dir and hash.model_dir(self.dir) or self.loaded:hash()
  return ("local:%s %s"):format(identity, assert(hash.of(self.options)))
end

function Local:demonstrate(requests, opts)
  -- Runs of the same prompt share its cache: they are asked for together.
  local prompts, counts = {}, {}
  for _, request in ipairs(requests) do
    if prompts[#prompts] == request.prompt and (request.index or 1) > 1 then
      counts[#counts] = counts[#counts] + 1
    else
      prompts[#prompts + 1], counts[#counts + 1] = request.prompt, 1
    end
  end
  for i = 2, #counts do
    if counts[i] ~= counts[1] then error("local: every prompt must be asked equally often", 0) end
  end
  local model = self:model()
  local o = self.options
  local list = model:generate(prompts, {
    n = counts[1] or 1, temperature = o.temperature or opts.temperature or 1.0, top_p = o.top_p or opts.top_p, top_k = o.top_k, min_p = o.min_p,
    dtype = o.dtype, max_tokens = o.max_tokens or opts.max_tokens, seed = opts.seed, stop = opts.stop, on_progress = opts.on_progress,
  })
  local tokenizer = model.tokenizer:hash()
  local out = {}
  for i, answer in ipairs(list) do
    out[i] = { text = answer.text, ids = answer.ids, finish = answer.finish, tokenizer = tokenizer }
  end
  return out
end

local function name_of(prompt, answer)
  if type(answer) ~= "table" then return prompt .. "\0" .. answer end
  return table.concat({ prompt, answer.text, answer.finish or "", table.concat(answer.ids or {}, ",") }, "\0")
end

-- Mean log-probability a token, by name, of answers listed as {prompt, answer}; an
-- answer asked about twice (both orders) is scored once. Missing where an answer cannot
-- be scored: its first letters join the prompt's last token, or it has no tokens.
function Local:scores(list)
  local model, scores = self:model(), {}
  local rows, names, seen = {}, {}, {}
  for _, item in ipairs(list) do
    local name = name_of(item[1], item[2])
    if not seen[name] then
      seen[name] = true
      local ok, tokens = pcall(model.tokenize_rows, model, { { prompt = item[1], completion = item[2] } })
      if ok then rows[#rows + 1], names[#names + 1] = tokens[1], name end
    end
  end
  local pl = require "perilune"
  for first = 1, #rows, BATCH do
    local last = math.min(first + BATCH - 1, #rows)
    local sums, counts
    pl.no_grad(function() sums, counts = model:completion_sums(table.move(rows, first, last, 1, {})) end)
    sums, counts = sums:tolist(), counts:tolist()
    for k = first, last do scores[names[k]] = sums[k - first + 1] / counts[k - first + 1] end
  end
  return scores
end

function Local:compare(requests)
  local list, out = {}, {}
  for _, r in ipairs(requests) do
    list[#list + 1] = { r.prompt, r.a }
    list[#list + 1] = { r.prompt, r.b }
  end
  local scores = self:scores(list)
  for i, r in ipairs(requests) do
    local a, b = scores[name_of(r.prompt, r.a)], scores[name_of(r.prompt, r.b)]
    out[i] = not (a and b) and "invalid" or a > b and "a" or b > a and "b" or "tie"
  end
  return out
end

function Local:rate(requests)
  local list, out = {}, {}
  for i, r in ipairs(requests) do list[i] = { r.prompt, r.answer } end
  local scores = self:scores(list)
  for i, r in ipairs(requests) do out[i] = scores[name_of(r.prompt, r.answer)] or false end
  return out
end

return function(dir, given, spec)
  local o = ai.options("local", OPTIONS, given)
  if type(spec) == "table" then return setmetatable({ loaded = spec, options = o }, Local) end
  if dir == "" then error("local: names a model directory, as in local:models/llama", 0) end
  if not base.is_dir(dir) then error(("local: %s: no such directory"):format(dir), 0) end
  if not base.exists(dir .. "/config.json") then error(("local: %s: holds no config.json"):format(dir), 0) end
  return setmetatable({ dir = dir, options = o }, Local)
end
