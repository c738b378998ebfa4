--- local:DIR?temperature=1&max_tokens=128: a model on disk. As teacher it writes;
--- as critic it prefers the answer to which it gives the higher log-probability a
--- token (exactly equal: a tie). A model in hand goes the same way: pl.ai(model).
local base = require("perilune.core").base
local ai = require "perilune.ai"
local hash = require "perilune.study.hash"

local OPTIONS = {
  temperature = { 1.0, type = "number", min = 0, doc = "of its answers" },
  top_p = { type = "number", min = 0, max = 1 },
  top_k = { type = "integer", min = 0 },
  min_p = { type = "number", min = 0, max = 1 },
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

local sums = {}
-- The bytes of a model directory: its identity without loading it.
local function dir_hash(dir)
  if not sums[dir] then
    local sum = base.sha256_new()
    for _, name in ipairs(assert(base.list_dir(dir))) do
      if name:match "%.json$" or name:match "%.safetensors$" then
        sum:add(name .. " " .. assert(hash.file(dir .. "/" .. name)) .. "\n")
      end
    end
    sums[dir] = sum:hex()
  end
  return sums[dir]
end

function Local:key()
  local identity = self.dir and dir_hash(self.dir) or self.loaded:hash()
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
    n = counts[1] or 1, temperature = o.temperature, top_p = o.top_p or opts.top_p, top_k = o.top_k, min_p = o.min_p,
    max_tokens = o.max_tokens or opts.max_tokens, seed = opts.seed, stop = opts.stop, on_progress = opts.on_progress,
  })
  local tokenizer = model.tokenizer:hash()
  local out = {}
  for i, answer in ipairs(list) do
    out[i] = { text = answer.text, ids = answer.ids, finish = answer.finish, tokenizer = tokenizer }
  end
  return out
end

-- Mean log-probability a token of each answer, nil where it cannot be scored: an
-- answer whose first letters join the prompt's last token has none of its own.
function Local:scores(requests, field)
  local model = self:model()
  local out = {}
  local pl = require "perilune"
  for first = 1, #requests, BATCH do
    local rows, places = {}, {}
    for i = first, math.min(first + BATCH - 1, #requests) do
      local ok, list = pcall(model.tokenize_rows, model, {
        { prompt = requests[i].prompt, completion = requests[i][field] },
      })
      if ok then rows[#rows + 1], places[#places + 1] = list[1], i end
    end
    if #rows > 0 then
      local sums, counts
      pl.no_grad(function() sums, counts = model:completion_sums(rows) end)
      sums, counts = sums:tolist(), counts:tolist()
      for k, i in ipairs(places) do out[i] = sums[k] / counts[k] end
    end
  end
  return out
end

function Local:compare(requests)
  local a, b = self:scores(requests, "a"), self:scores(requests, "b")
  local out = {}
  for i = 1, #requests do
    if not a[i] or not b[i] then
      out[i] = "invalid"
    else
      out[i] = a[i] > b[i] and "a" or b[i] > a[i] and "b" or "tie"
    end
  end
  return out
end

function Local:rate(requests)
  local scores, out = self:scores(requests, "answer"), {}
  for i = 1, #requests do out[i] = scores[i] or false end
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
