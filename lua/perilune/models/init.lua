--- Models as Hugging Face directories: read strictly, written atomically.
--- Families are one file each, found by config.json's model_type; it must not
--- know what a family computes.
local core = require "perilune.core"
local options = require "perilune.options"
local Model = require "perilune.model"
local base, format, lm = core.base, core.format, core.lm

local models = {}

-- model_type -> module
local FAMILIES = {
  gpt2 = "perilune.models.gpt2",
  llama = "perilune.models.llama",
}

-- kept byte for byte from load to save
local KEPT = { "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja" }

local function fail(where, message, ...)
  error(where .. ": " .. message:format(...), 0)
end

-- Without JSON's nulls: an absent key and a null one mean the same in these files.
local function without_nulls(v)
  if type(v) ~= "table" then return v end
  local out = setmetatable({}, getmetatable(v))
  for k, x in pairs(v) do
    if x ~= base.null then out[k] = without_nulls(x) end
  end
  return out
end

local function read_json(path)
  local t, message = base.json_read(path)
  if t == nil then error(message, 0) end
  if type(t) ~= "table" then fail(path, "wanted a JSON object") end
  return without_nulls(t)
end

local function family_of(config, where)
  local kind = config.model_type
  local name = FAMILIES[kind]
  if not name then
    local known = {}
    for k in pairs(FAMILIES) do known[#known + 1] = k end
    table.sort(known)
    fail(where, "%s (families: lua/perilune/models/)", options.unknown("model_type", tostring(kind), known))
  end
  return require(name)
end

---- weights

-- name -> path of the file that holds it
local function weight_files(dir)
  local single = dir .. "/model.safetensors"
  local index = single .. ".index.json"
  if base.exists(index) then
    local map = read_json(index).weight_map
    if type(map) ~= "table" then fail(index, "weight_map is missing") end
    local paths = {}
    for name, file in pairs(map) do
      if type(file) ~= "string" or file:find("/", 1, true) then
        fail(index, 'weight_map["%s"] is not a file name', tostring(name))
      end
      paths[name] = dir .. "/" .. file
    end
    return paths, index
  end
  if base.exists(single) then return nil, single end
  for _, file in ipairs(base.list_dir(dir)) do
    if file:find("%.bin$") or file:find("%.pt$") or file:find("%.pth$") then
      fail(dir, "%s is a pickle, which can run code when read, so it is refused; convert it once with Python: "
        .. "transformers' AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)", file)
    end
  end
  fail(dir, "no model.safetensors and no model.safetensors.index.json")
end

-- Every tensor that the files hold: name -> { st, info }. Opened files are closed by their collector.
local function open_weights(dir)
  local paths, where = weight_files(dir)
  local files, found = {}, {}
  local function open(path)
    if not files[path] then
      local st, message = format.safetensors_open(path)
      if not st then error(message, 0) end
      files[path] = st
      for _, name in ipairs(st:names()) do
        if found[name] then fail(path, 'tensor "%s" is in two files', name) end
        found[name] = st
      end
    end
  end
  if not paths then
    open(where)
  else
    local order = {}
    for _, path in pairs(paths) do order[#order + 1] = path end
    table.sort(order)
    for _, path in ipairs(order) do open(path) end
    for name, path in pairs(paths) do
      if found[name] ~= files[path] then
        fail(where, 'says that "%s" is in %s, but it is not', name, path)
      end
    end
  end
  return found, where
end

local function some_of(list)
  table.sort(list)
  local text = table.concat(list, ", ", 1, math.min(#list, 5))
  return #list > 5 and ("%s and %d more"):format(text, #list - 5) or text
end

local function check_shape(where, name, info, want)
  if table.concat(info.shape, ", ") ~= table.concat(want, ", ") then
    fail(where, "%s has shape [%s]; config.json asks for [%s]", name, table.concat(info.shape, ", "),
      table.concat(want, ", "))
  end
  if not info.dtype:find("^B?F%d+$") then
    fail(where, "%s is %s; wanted F32, F16 or BF16", name, info.dtype)
  end
end

-- A tied head may be in the file as well, but then it must be the embedding.
local function check_tied_head(where, family, found, embed)
  local name = family.weight_name "head"
  local at = found[name]
  if not at then return end
  found[name] = nil
  local head = lm.to_float(at.st:tensor(at.name))
  if not lm.equal(head, embed) then
    fail(where, "tie_word_embeddings is true, but %s is in the file and differs from the embedding; "
      .. "set tie_word_embeddings to false in config.json, or remove the tensor", name)
  end
end

-- How files hold a weight: most families as it is.
local function stored(family, name)
  return family.stored and family.stored(name) or { tensor = family.weight_name(name) }
end

-- The shape of the tensor that holds a weight of this shape.
local function stored_shape(shape, at)
  local out = at.transposed and { shape[2], shape[1] } or { table.unpack(shape) }
  out[#out] = out[#out] * (at.parts or 1)
  return out
end

-- The weight in a file's tensor; a part of it gets memory of its own.
local function from_stored(t, at)
  if at.parts then
    local size = t:size(-1) // at.parts
    t = t:narrow(-1, (at.part - 1) * size + 1, size):clone()
  end
  return (at.transposed and t:t() or t):contiguous()
end

-- All weights as files hold them: name -> tensor.
local function to_stored(m)
  local out, parts = {}, {}
  for i, w in ipairs(m.weights) do
    local at = stored(m.family, w.name)
    local t = m.params[i]:detach()
    if at.transposed then t = t:t() end
    if at.parts then
      parts[at.tensor] = parts[at.tensor] or {}
      parts[at.tensor][at.part] = t
    else
      out[at.tensor] = t
    end
  end
  for name, list in pairs(parts) do out[name] = core.tensor.cat(list, -1) end
  return out
end

-- name as the family has it -> { st, name in the file }
local function by_full_name(family, found, where)
  local out = {}
  for name, st in pairs(found) do
    local full = family.full_name and family.full_name(name) or name
    if out[full] then fail(where, "holds both %s and %s, which mean the same", full, full == name and out[full].name or name) end
    out[full] = { st = st, name = name }
  end
  return out
end

local function refuse_missing(where, family, missing)
  local names, n = {}, 0
  for name in pairs(missing) do
    n = n + 1
    names[n] = name
  end
  if n == 0 then return end
  local hint = missing[family.weight_name "head"] and n == 1
    and " (config.json does not say tie_word_embeddings = true)" or ""
  fail(where, "%d tensors are missing: %s%s", n, some_of(names), hint)
end

local function load_weights(dir, family, config)
  local files, where = open_weights(dir)
  local found = by_full_name(family, files, where)
  local params, missing, used = {}, {}, {}
  for i, w in ipairs(lm.weights(family.decoder(config))) do
    local at = stored(family, w.name)
    local file = found[at.tensor]
    if file then
      used[at.tensor] = true
      check_shape(where, file.name, file.st:info(file.name), stored_shape(w.shape, at))
      params[i] = from_stored(lm.to_float(file.st:tensor(file.name)), at)
    else
      missing[at.tensor] = true
    end
  end
  refuse_missing(where, family, missing)
  for name in pairs(used) do found[name] = nil end
  if config.tie_word_embeddings then check_tied_head(where, family, found, params[1]) end
  local extra = {}
  for name, file in pairs(found) do
    if not family.ignorable(name) then extra[#extra + 1] = file.name end
  end
  if #extra > 0 then
    fail(where, "%d tensors that a %s does not have: %s", #extra, family.architecture, some_of(extra))
  end
  return params
end

---- tokenizer and other files

local function eos_of(tokenizer_config)
  local eos = tokenizer_config and tokenizer_config.eos_token
  if type(eos) == "table" then eos = eos.content end
  return type(eos) == "string" and eos or nil
end

local function load_tokenizer(dir)
  local path = dir .. "/tokenizer.json"
  if base.exists(path) then return core.text.load(path) end
  if base.exists(dir .. "/tokenizer.model") then
    fail(dir, "holds tokenizer.model but no tokenizer.json; make one with transformers: "
      .. "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)")
  end
  return nil
end

-- What a save that was killed between two steps left of the model that was there (base.replace, on
-- file systems that cannot exchange names).
local function set_aside(dir)
  local parent, name = dir:match "^(.*/)([^/]+)$"
  name = name or dir
  for _, entry in ipairs(base.list_dir(parent or ".") or {}) do
    if entry:sub(1, #name + 5) == name .. ".old-" and base.is_dir((parent or "") .. entry) then
      return ("; a save was cut short, and what was there is %s%s: rename it to %s"):format(parent or "", entry, dir)
    end
  end
  return ""
end

---Reads a Hugging Face directory. Strict: what is missing, unexpected or of another shape is an error that names it.
---Half-precision weights are read and computed in f32.
---@param dir string
---@return perilune.Model
function models.load(dir)
  if type(dir) ~= "string" then error("load: wanted a directory's path, got a " .. type(dir), 0) end
  dir = #dir > 1 and dir:gsub("/+$", "") or dir
  if not base.is_dir(dir) then
    fail(dir, base.exists(dir) and "is a file; wanted a Hugging Face directory (config.json, model.safetensors, tokenizer.json)"
      or "no such directory" .. set_aside(dir))
  end
  local config_path = dir .. "/config.json"
  if not base.exists(config_path) then fail(dir, "holds no config.json: not a Hugging Face model directory") end
  local given = read_json(config_path)
  local family = family_of(given, config_path)
  local config = family.complete(given, config_path)
  local files = {}
  for _, name in ipairs(KEPT) do
    if base.exists(dir .. "/" .. name) then files[name] = assert(base.read_file(dir .. "/" .. name)) end
  end
  local generation = dir .. "/generation_config.json"
  local m = Model.new {
    family = family,
    config = config,
    params = load_weights(dir, family, config),
    tokenizer = load_tokenizer(dir),
    generation_config = base.exists(generation) and read_json(generation) or {},
    files = files,
  }
  if files["tokenizer_config.json"] then
    m.tokenizer_eos = eos_of(read_json(dir .. "/tokenizer_config.json"))
  end
  return m
end

---- new

local NEW = {
  tokenizer = { type = "any", doc = "a tokenizer, the path of a tokenizer.json, or its text" },
  seed = { 0, doc = "weights are a function of the seed" },
}

local function tokenizer_from(v)
  if type(v) ~= "string" then return v end
  if v:find("^%s*{") then return core.text.from_json(v) end
  return core.text.load(v)
end

-- A vector is a bias ("norm_b", "layers.3.q_b") or a norm's weight.
local function new_weight(family, config, w, seed, i)
  if #w.shape == 1 then
    return core.tensor[w.name:find "_b$" and "zeros" or "ones"](table.unpack(w.shape))
  end
  local p = core.tensor.zeros(table.unpack(w.shape))
  local std = family.init_std and family.init_std(w.name, config) or config.initializer_range
  lm.init_normal(p, seed, i, std)
  return p
end

---A model with random weights: N(0, initializer_range), norms 1, biases 0; as a family's init_std says where it has one.
---@param config table # keys as in config.json. model_type "llama" (default): vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads; "gpt2": vocab_size, n_embd, n_layer, n_head
---@param opts? { tokenizer?: any, seed?: integer }
---@return perilune.Model
function models.new(config, opts)
  local o = options.resolve("models.new", NEW, opts)
  if type(config) ~= "table" then error("models.new: config is a " .. type(config) .. "; wanted a table", 0) end
  local given = without_nulls(config)
  given.model_type = given.model_type or "llama"
  local family = family_of(given, "models.new")
  local full = family.complete(given, "models.new")
  local params = {}
  for i, w in ipairs(lm.weights(family.decoder(full))) do
    params[i] = new_weight(family, full, w, o.seed, i)
  end
  return Model.new { family = family, config = full, params = params, tokenizer = tokenizer_from(o.tokenizer) }
end

---- save

local function token_text(m, id)
  return id and m.tokenizer:id_to_token(id)
end

-- The least that transformers wants beside a tokenizer.json.
local function tokenizer_config(m)
  local first = m.end_token(m)
  return {
    tokenizer_class = "PreTrainedTokenizerFast",
    model_max_length = m.shape.context,
    bos_token = token_text(m, m.tokenizer:bos_declared()),
    eos_token = token_text(m, first),
    clean_up_tokenization_spaces = false,
  }
end

local function write_all(m, dir)
  local function put(name, text) assert(base.write_file(dir .. "/" .. name, text)) end
  local config = {}
  for k, v in pairs(m.config) do config[k] = v end
  config.torch_dtype, config.dtype = "float32", nil -- what is written below, whatever was read
  for _, key in ipairs { "bos_token_id", "eos_token_id" } do
    if config[key] == nil then config[key] = base.null end -- absent, transformers takes its family's own
  end
  put("config.json", base.json_encode(config, { indent = 2 }) .. "\n")
  if next(m.generation_config) then
    put("generation_config.json", base.json_encode(m.generation_config, { indent = 2 }) .. "\n")
  end
  if m.tokenizer then
    put("tokenizer.json", m.tokenizer:json())
    if not m.files["tokenizer_config.json"] then
      put("tokenizer_config.json", base.json_encode(tokenizer_config(m), { indent = 2 }) .. "\n")
    end
  end
  for name, text in pairs(m.files) do put(name, text) end
  format.safetensors_write(dir .. "/model.safetensors", to_stored(m), { format = "pt" })
end

local function check_target(dir)
  if not base.exists(dir) then return end
  if not base.is_dir(dir) then fail(dir, "is a file; save wants a directory") end
  if #base.list_dir(dir) > 0 and not base.exists(dir .. "/config.json") then
    fail(dir, "exists and holds other files, but no model; save to a new directory")
  end
end

---Writes into a directory beside the target, then exchanges the two: a failure or Ctrl-C at any
---moment leaves what was there.
---@param m perilune.Model
---@param dir string
---@return boolean # true
function models.save(m, dir)
  if type(dir) ~= "string" or dir == "" then error("save: wanted a directory's path, got a " .. type(dir), 0) end
  dir = #dir > 1 and dir:gsub("/+$", "") or dir
  check_target(dir)
  local fresh = ("%s.tmp-%d"):format(dir, base.pid())
  base.remove_tree(fresh)
  local tidy <close> = base.finally(function() base.remove_tree(fresh) end)
  assert(base.mkdirs(fresh))
  local ok, message = pcall(function()
    write_all(m, fresh)
    assert(base.replace(fresh, dir))
  end)
  if not ok then error(("save: %s: %s"):format(dir, tostring(message)), 0) end
  return true
end

return models
