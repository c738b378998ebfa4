--- model:generate: prompts in, answers out. The drawing is C (core.lm's
--- generator); here text goes in and out and stop strings are watched.
local lm = require("perilune.core").lm
local options = require "perilune.options"
local rows = require "perilune.rows"
local stream = require "perilune.text.stream"

local SPEC = {
  n = { 1, min = 1, doc = "answers a prompt" },
  max_tokens = { 128, min = 1, doc = "tokens an answer may have; the context ends it earlier" },
  temperature = { 1.0, min = 0, doc = "0 takes the likeliest token" },
  top_k = { 0, min = 0, doc = "only the k likeliest tokens; 0 = all" },
  top_p = { 1.0, min = 0, max = 1, doc = "only the likeliest tokens that together have this probability" },
  min_p = { 0.0, min = 0, max = 1, doc = "only tokens at least this fraction as likely as the likeliest" },
  stop = { type = "string|table", doc = "a text or a list of texts that end an answer; the answer is cut before them" },
  seed = { 0, doc = "answers are a function of the seed, the prompt's place in the list and the sample's number" },
  batch_size = { 64, min = 1, max = 4096, doc = "answers that run at a time; does not change them" },
  dtype = { "f32", choices = { "f32", "bf16", "int8" },
    doc = "numbers of the weights while drawing: bf16 and int8 are faster and rounded" },
  on_progress = { type = "function", doc = "called with { done, total, tokens } as answers end" },
}

local function continuation(tok, w, base, ids)
  local all = table.move(ids, 1, #ids, #w + 1, table.move(w, 1, #w, 1, {}))
  local text = tok:decode(all)
  if text:sub(1, #base) == base then return text:sub(#base + 1) end
  return tok:decode(ids)
end

local function stop_list(given)
  if given == nil then return {}, 0 end
  local list = type(given) == "table" and given or { given }
  local longest = 0
  for i, s in ipairs(list) do
    if type(s) ~= "string" or s == "" then
      error(("generate: stop[%d] must be a text that is not empty"):format(i), 0)
    end
    longest = math.max(longest, #s)
  end
  return list, longest
end

local function prompt_of(model, row, i)
  local p = row
  if type(row) == "table" and row.prompt ~= nil then p = row.prompt end
  if type(p) == "string" then return p, rows.encode(model, p) end
  if type(p) == "table" and (math.type(p[1]) or next(p) == nil) then return p, p end
  error(("generate: prompt %d is a %s; wanted a text, a list of ids, or a row with a prompt")
    :format(i, type(p) == "table" and "table without a prompt" or type(p)), 0)
end

-- The fewest tokens whose text still covers `text`.
local function trim(s, tok, text)
  local n = #s.ids
  while n > 0 do
    local fewer = table.move(s.ids, 1, n - 1, 1, {})
    if #continuation(tok, s.window, s.base, fewer) < #text then break end
    n = n - 1
  end
  for k = #s.ids, n + 1, -1 do
    s.ids[k], s.logprobs[k] = nil, nil
  end
end

local Run = {}
Run.__index = Run

-- Ends running rows whose text now holds a stop text. A stop text that the last
-- token completed lies within the last `longest` bytes, so few tokens are decoded.
function Run:watch()
  local i, last = self.g:drew()
  while i <= last do
    local index, _, tail = self.g:look(i, self.longest + 9)
    local stopped = false
    if stream.find_stop(self.tok:decode(tail), self.stops) then
      local p, _, _, ids = self.prompts[index], self.g:look(i)
      self:joint(p)
      stopped = stream.find_stop(continuation(self.tok, p.window, p.base, ids), self.stops)
    end
    if stopped then
      self.g:stop(i)
      last = last - 1
    else
      i = i + 1
    end
  end
end

function Run:joint(p)
  if not p.window then p.window, p.base = stream.window(self.tok, p.ids) end
end

function Run:finish(index, sample, ids, logprobs, finish)
  local p = self.prompts[index]
  local text
  if self.tok then
    self:joint(p)
    text = continuation(self.tok, p.window, p.base, ids)
    local at = stream.find_stop(text, self.stops)
    if at then
      text, finish = text:sub(1, at - 1), "stop"
      trim({ ids = ids, logprobs = logprobs, window = p.window, base = p.base }, self.tok, text)
    end
  end
  local sum = 0.0
  for _, lp in ipairs(logprobs) do sum = sum + lp end
  self.out[(index - 1) * self.n + sample] =
    { prompt = p.prompt, text = text, ids = ids, logprob = sum, logprobs = logprobs, finish = finish }
end

---Answers to prompts, prompt by prompt (n of each in a row).
---ids ends with the stop token where the model gave one (finish = "stop"), so that logprob = model:score of
---{ prompt = ids of the prompt, completion = ids }. With a stop text, ids are the fewest tokens that cover `text`.
---A prompt that leaves no room in the context is an error naming it; an answer that reaches the context's end, or
---max_tokens, has finish = "length". An answer does not depend on batch_size or on the other prompts' text.
---dtype: with f32, logprob is the score of the same ids to 1e-4 a token. With bf16 (weights, activations, keys and
---values rounded) and int8 (weights and what they are multiplied with in 8 bits, with scales; keys and values bf16) it
---differs by about 0.01 and 0.04 a token, at most some tenths.
---What ends an answer is model:stop_ids(); temperature, top_p and the like of generation_config.json are not used.
---@param model table
---@param prompts table # texts, lists of ids, or rows with .prompt
---@param opts? table
---@return { prompt: any, text: string|nil, ids: integer[], logprob: number, logprobs: number[], finish: "stop"|"length" }[]
local function generate(model, prompts, opts)
  if type(prompts) ~= "table" then
    error(("generate: prompts is a %s; wanted a list: { %s }"):format(type(prompts), "\"Once upon a time\""), 0)
  end
  local o = options.resolve("generate", SPEC, opts)
  local stops, longest = stop_list(o.stop)
  if #stops > 0 and not model.tokenizer then
    error("generate: stop texts need a tokenizer, and this model has none", 0)
  end
  local total = #prompts * o.n
  if total == 0 then return {} end
  local g <close> = lm.generator(model.decoder, math.min(o.batch_size, total), model:stop_ids(), o.dtype)
  local run = setmetatable({ g = g, tok = model.tokenizer, prompts = {}, stops = stops, longest = longest,
    n = o.n, out = {} }, Run)
  for i = 1, #prompts do
    local prompt, ids = prompt_of(model, prompts[i], i)
    run.prompts[i] = { prompt = prompt, ids = ids }
    g:add(ids, i, o)
  end
  local done, tokens, active = 0, 0, total
  while active > 0 do
    local drawn
    active, drawn = g:step(#stops > 0 and 1 or 8)
    tokens = tokens + drawn
    if #stops > 0 then run:watch() end
    while true do
      local index, sample, ids, logprobs, finish = g:take()
      if not index then break end
      run:finish(index, sample, ids, logprobs, finish)
      done = done + 1
    end
    if #stops > 0 then active = total - done end
    if o.on_progress then o.on_progress { done = done, total = total, tokens = tokens } end
  end
  return run.out
end

return generate
