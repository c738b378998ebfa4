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
  dtype = { type = "string", choices = { "f32", "bf16", "int8" }, doc = "numbers it computes with; a critic: f32 or bf16" },
  max_tokens = { type = "integer", min = 1, doc = "longest answer; default: what the stage asks for" },
}

-- Answers scored at once: enough to fill the machine, little enough memory.
local BATCH = 64

-- Seconds that a directory which is being replaced is given to come back.
local AWAY = 0.05

---@class perilune.ai.Local : perilune.ai.Provider
local Local = {}
Local.__index = Local

-- The hash of what the directory holds. It may be away for a moment while it is replaced: it is looked at
-- twice, and after that a model read from it before stands. Nil: there is none.
function Local:directory()
  local hex = hash.model_dir(self.dir)
  if not hex then
    base.sleep(AWAY)
    hex = hash.model_dir(self.dir)
  end
  return hex or self.loaded_hash
end

-- The model that the directory holds now, which is the one that key() names: read again where its
-- files have changed, and once more where they did so meanwhile.
function Local:model()
  local hex = self.dir and self:directory()
  while self.dir and (not hex or self.loaded_hash ~= hex) do
    self.loaded, self.loaded_hash = require("perilune.models").load(self.dir), hex -- says what is wrong with it
    hex = self:directory()
  end
  return self.loaded
end

function Local:key()
  local identity = self.dir and self:directory() or self:model() and self.loaded_hash or self.loaded:hash()
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

-- The different rows of tokens that answers listed as {prompt, answer} make, and the row of each by name.
-- None where an answer cannot be scored: its first letters join the prompt's last token, or it has no tokens.
function Local:rows(list)
  local model = self:model()
  local rows, row_of, known = {}, {}, {}
  for _, item in ipairs(list) do
    local name = name_of(item[1], item[2])
    if row_of[name] == nil then
      local ok, tokens = pcall(model.tokenize_rows, model, { { prompt = item[1], completion = item[2] } })
      local ids, start = ok and tokens[1].ids, ok and tokens[1].start
      local key = ok and start .. ":" .. table.concat(ids, " ")
      if key and not known[key] then
        known[key] = { ids = ids, start = start, prompt = table.concat(ids, " ", 1, start - 1) }
        rows[#rows + 1] = known[key]
      end
      row_of[name] = key and known[key] -- false: asked about before, and in vain
    end
  end
  return rows, row_of
end

-- Mean log-probability a token, by name, of answers listed as {prompt, answer}. An answer asked about
-- twice (both orders) is read once, and so is the prompt of two answers.
function Local:scores(list)
  local rows, row_of = self:rows(list)
  local mates, singles, first = {}, {}, {}
  for _, row in ipairs(rows) do
    local other = first[row.prompt]
    if other then
      table.move({ other, row }, 1, 2, #mates + 1, mates)
      other.mated, row.mated = true, true
    end
    first[row.prompt] = not other and row or nil
  end
  for _, row in ipairs(rows) do
    if not row.mated then singles[#singles + 1] = row end
  end
  local pl, model = require "perilune", self:model()
  local function read(some, sums_of)
    for at = 1, #some, BATCH do
      local part = table.move(some, at, math.min(at + BATCH - 1, #some), 1, {})
      local sums = pl.no_grad(pl.autocast, self.options.dtype or "f32", function()
        return (sums_of(model, part)):reshape(#part):tolist()
      end)
      for k, row in ipairs(part) do row.score = sums[k] / (#row.ids - row.start + 1) end
    end
  end
  read(mates, model.pair_sums)
  read(singles, model.completion_sums)
  local scores = {}
  for name, row in pairs(row_of) do scores[name] = row and row.score or nil end
  return scores
end

-- Scores are taken as training reads texts, which is faster for lists than int8 would be, one by one.
function Local:check()
  if self.options.dtype == "int8" then
    error("local: dtype = \"int8\" is for answers; a critic reads in f32 or bf16, as in local:DIR?dtype=bf16", 0)
  end
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
