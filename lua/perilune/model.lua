--- A language model for Lua: weights with names, a configuration, a tokenizer,
--- and what can be asked of them. The mathematics is C (core.lm); how families
--- differ is lua/perilune/models/. It must not train and must not read files.
local core = require "perilune.core"
local options = require "perilune.options"
local rows = require "perilune.rows"
local lm = core.lm

---@class perilune.Model
---@field config table # as config.json, defaults filled in
---@field tokenizer any # nil where the model has none
---@field generation_config table # as generation_config.json
---@field shape table # what the decoder was made for, whatever the family calls it: n_layers, hidden, vocab, context ...
---@field history table # what training did to it; see train
---@field decoder any # core.lm's handle on the weights
local Model = { __name = "perilune.Model" }
Model.__index = Model

local SCORE_TOKENS = 8192 -- read at a time while nothing is recorded

local function deep_copy(v)
  if type(v) ~= "table" then return v end
  local out = {}
  for k, x in pairs(v) do out[k] = deep_copy(x) end
  return setmetatable(out, getmetatable(v))
end

---Puts a model together. params: f32 tensors in the decoder's order.
---@param spec { family: table, config: table, params: table, tokenizer: any, generation_config: table, files: table }
---@return perilune.Model
function Model.new(spec)
  local shape = spec.family.decoder(spec.config)
  local m = setmetatable({
    family = spec.family,
    config = spec.config,
    shape = shape,
    weights = lm.weights(shape), -- the decoder's names, in the order of params
    tokenizer = spec.tokenizer,
    generation_config = spec.generation_config or {},
    files = spec.files or {}, -- name -> bytes of files kept as they were
    history = {},
    params = spec.params,
    token_cache = { n = 0, of = {} },
  }, Model)
  m.decoder = lm.decoder(shape, spec.params)
  for i, w in ipairs(m.weights) do
    local p = spec.params[i]
    p.name = spec.family.weight_name(w.name)
    p:requires_grad_()
  end
  return m
end

---The weights in a fixed order, tied ones once, each with its `.name`: as in the file, where that has it as one tensor.
---@return table
function Model:parameters()
  return table.move(self.params, 1, #self.params, 1, {})
end

---Weights by their name.
---@return table<string, any>
function Model:state_dict()
  local out = {}
  for _, p in ipairs(self.params) do out[p.name] = p end
  return out
end

---Copies weights into this model's own, by name.
---@param weights table<string, any> of another model of this shape: its state_dict()
---@return perilune.Model self
function Model:load_state_dict(weights)
  local unknown = {}
  for name in pairs(weights) do unknown[name] = true end
  for _, p in ipairs(self.params) do
    local from = weights[p.name]
    if not from then error(("load_state_dict: the weight %s is missing"):format(p.name), 2) end
    local got, wanted = table.concat(from:shape(), " x "), table.concat(p:shape(), " x ")
    if got ~= wanted then error(("load_state_dict: %s is %s, wanted %s"):format(p.name, got, wanted), 2) end
    unknown[p.name] = nil
  end
  local name = next(unknown)
  if name then error(("load_state_dict: there is no weight %s in this model"):format(name), 2) end
  require("perilune").no_grad(function()
    for _, p in ipairs(self.params) do p:copy_(weights[p.name]) end
  end)
  return self
end

---Names of the weights that training leaves alone: `parameter:requires_grad_(false)`.
---@return string[]
function Model:frozen()
  local out = {}
  for _, p in ipairs(self.params) do
    if not p.requires_grad then out[#out + 1] = p.name end
  end
  return out
end

---Freezes these weights and no others.
---@param names string[]
---@return perilune.Model self
function Model:freeze(names)
  if type(names) ~= "table" then
    error(("freeze: wanted a list of weights' names, got %s"):format(
      type(names) == "string" and ("%q"):format(names) or "a " .. type(names)), 2)
  end
  local known, wanted = {}, {}
  for i, p in ipairs(self.params) do known[i], wanted[p.name] = p.name, false end
  for at, name in pairs(names) do
    if math.type(at) ~= "integer" or type(name) ~= "string" then
      error(("freeze: wanted a list of weights' names, got %s = a %s in it"):format(tostring(at), type(name)), 2)
    end
    if wanted[name] == nil then error("freeze: " .. options.unknown("weight", name, known), 2) end
    wanted[name] = true
  end
  for _, p in ipairs(self.params) do p:requires_grad_(not wanted[p.name]) end
  return self
end

---How many numbers the weights hold; tied weights count once.
---@return integer
function Model:num_parameters()
  local n = 0
  for _, p in ipairs(self.params) do n = n + p:numel() end
  return n
end

local function eos_ids(of)
  local v = of.eos_token_id
  if math.type(v) == "integer" then return { v } end
  return type(v) == "table" and v or {}
end

---Ids that end an answer: eos_token_id of generation_config.json and of config.json, each one id or a list,
---and end_token(): what training closes an answer with.
---@return integer[]
function Model:stop_ids()
  local seen, out = {}, {}
  for _, list in ipairs { eos_ids(self.generation_config), eos_ids(self.config), { self:end_token() } } do
    for _, id in ipairs(list) do
      if not seen[id] then out[#out + 1] = id end
      seen[id] = true
    end
  end
  return out
end

---The id that closes a text in scoring and training: the tokenizer's eos_token, else config.json's
---eos_token_id, else generation_config.json's (the first of a list). nil where none is named.
---@return integer|nil
function Model:end_token()
  local named = self.tokenizer_eos
  if named and self.tokenizer then
    local id = self.tokenizer:token_to_id(named)
    if id then return id end
  end
  return eos_ids(self.config)[1] or eos_ids(self.generation_config)[1]
end

---Rows as token ids, by the rules in rows.lua.
---@param data table # a dataset or a list of rows
---@param opts? { max_length?: integer, truncation?: "error"|"cut" }
---@return table rows
---@return table report
function Model:tokenize_rows(data, opts)
  return rows.tokenize(self, data, opts)
end

---log p(token | all before it) for every token but a row's first.
---Entry [r][t] is that of the row's token t + 1; rows are padded with 0 to the longest.
---The mask is 1 on the tokens that count: the completion and its end token; with no prompt, all.
---Differentiable. See rows.lua for what a row may be.
---@param data table
---@param opts? { max_length?: integer, truncation?: "error"|"cut" }
---@return any lp # [rows, T-1]
---@return any mask # f32 [rows, T-1]
function Model:logprobs(data, opts)
  local list = rows.tokenize(self, data, opts)
  local flat, _, place, width, mask = self.decoder:score(list, true, SCORE_TOKENS)
  return lm.place(flat, place, #list, width), mask
end

---Log-probabilities of the tokens that count, without padding: [M], and each one's 0-based row, i32 [M].
---@param list table # what tokenize_rows returned
---@return any flat
---@return any row_of
function Model:completion_logprobs(list)
  local flat, row_of = self.decoder:score(list, false, SCORE_TOKENS)
  return flat, row_of
end

---Summed log-probability of each row's tokens that count: [n], and how many those are: f32 [n].
---@param list table # what tokenize_rows returned
---@return any sums
---@return any n_tokens
function Model:completion_sums(list)
  local flat, row_of = self.decoder:score(list, false, SCORE_TOKENS)
  local counts = {}
  for i, row in ipairs(list) do counts[i] = #row.ids - row.start + 1 end
  return lm.group_sum(flat, row_of, #list), core.tensor.tensor(counts)
end

---The same sums of pairs of rows, 1 and 2, 3 and 4, ...: [n / 2, 2]. The prompt that two of them have in
---common is computed once.
---@param list table # what tokenize_rows returned
---@return any sums
function Model:pair_sums(list)
  local flat, row_of = self.decoder:score(list, false, SCORE_TOKENS, true)
  return lm.group_sum(flat, row_of, #list):reshape(#list // 2, 2)
end

---Summed log-probability of each row's completion, its end token included: [n]. Differentiable.
---@param data table
---@param opts? { max_length?: integer, truncation?: "error"|"cut" }
---@return any # [n]
function Model:score(data, opts)
  return (self:completion_sums(rows.tokenize(self, data, opts)))
end

Model.generate = require "perilune.generate"

---A model with weights of its own and the same values, frozen where these are; nothing of its history.
---@return perilune.Model
function Model:clone()
  local m = Model.new {
    family = self.family,
    config = deep_copy(self.config),
    params = lm.copies(self.params),
    tokenizer = self.tokenizer,
    generation_config = deep_copy(self.generation_config),
    files = deep_copy(self.files),
  }
  m.tokenizer_eos = self.tokenizer_eos
  return m:freeze(self:frozen())
end

---Identity of the content: sha256 over configuration, tokenizer and weights.
---@return string # hex
function Model:hash()
  local version = lm.version(self.params)
  if not self.hashed or self.hashed.version ~= version then
    local config = deep_copy(self.config)
    config.torch_dtype, config.dtype = nil, nil -- of the file; the values are f32 with and without them
    local text = table.concat({
      core.base.json_encode(config), core.base.json_encode(self.generation_config),
      self.tokenizer and self.tokenizer:hash() or "", tostring(self:end_token()),
    }, "\0")
    self.hashed = { version = version, hex = lm.hash(text, self.params) }
  end
  return self.hashed.hex
end

---Writes a Hugging Face directory, all of it or nothing: config.json, model.safetensors,
---generation_config.json, and the tokenizer's files where there is one.
---@param dir string # a model that is already there is replaced
---@return boolean # true; failures raise
function Model:save(dir)
  return require("perilune.models").save(self, dir)
end

local function count(n)
  local s = ("%d"):format(n)
  return (s:reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", ""))
end

local function shape_text(p)
  return "[" .. table.concat(p:shape(), ", ") .. "]"
end

-- One line a weight, layers of equal shape folded into one.
function Model:__tostring()
  local shape = self.shape
  local lines = { ("%s: %s parameters, f32, vocabulary %s, context %s%s"):format(self.family.architecture,
    count(self:num_parameters()), count(shape.vocab), count(shape.context), shape.tied and ", tied head" or "") }
  local line = function(depth, name, p)
    lines[#lines + 1] = ("%s%-" .. (40 - 2 * depth) .. "s %-14s %12s"):format(("  "):rep(depth),
      name:gsub("%.weight$", ""), shape_text(p), count(p:numel()))
  end
  local in_layer, told = 0, false
  for i, w in ipairs(self.weights) do
    if w.name:find "^layers%.0%." then in_layer = in_layer + self.params[i]:numel() end
  end
  for i, w in ipairs(self.weights) do
    local p = self.params[i]
    local layer = w.name:match "^layers%.(%d+)%."
    if not layer then
      line(1, p.name, p)
    elseif layer == "0" then
      local all, part = p.name:match "^(.-)%.0%.(.+)$"
      if not told then
        lines[#lines + 1] = ("  %s, %d of %s parameters:"):format(all, shape.n_layers, count(in_layer))
        told = true
      end
      line(2, part, p)
    end
  end
  return table.concat(lines, "\n")
end

return Model
