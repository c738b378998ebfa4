--- The GPT-2 family: what config.json means to the decoder, and where the weights
--- lie in the file: linear ones [in, out] (transformers' Conv1D), queries, keys and
--- values side by side in one. What the decoder cannot compute is refused by name.
--- Dropout is not applied, in training neither.
local read = require "perilune.models.config"
local refuse = read.refuse

local gpt2 = {
  model_type = "gpt2",
  architecture = "GPT2LMHeadModel",
}

-- transformers' own defaults for keys that a config.json may leave out
local DEFAULTS = {
  n_positions = 1024,
  activation_function = "gelu_new",
  layer_norm_epsilon = 1e-5,
  initializer_range = 0.02,
  scale_attn_weights = true,
  scale_attn_by_inverse_layer_idx = false,
  add_cross_attention = false,
  tie_word_embeddings = true,
}

local NEEDED = { "vocab_size", "n_embd", "n_layer", "n_head", "n_positions" }

-- two names of one function
local ACTIVATIONS = { gelu_new = true, gelu_pytorch_tanh = true }

local function check_kind(config, where)
  if not ACTIVATIONS[config.activation_function] then
    refuse(where, 'activation_function "%s" is not supported; only "gelu_new" (the tanh form)',
      tostring(config.activation_function))
  end
  for _, key in ipairs { "scale_attn_by_inverse_layer_idx", "add_cross_attention" } do
    if config[key] then refuse(where, "%s = true is not supported", key) end
  end
  if not config.scale_attn_weights then
    refuse(where, "scale_attn_weights = false is not supported: attention is scaled by 1/sqrt(head size)")
  end
  if type(config.pruned_heads) == "table" and next(config.pruned_heads) then
    refuse(where, "pruned_heads is not supported: heads are missing")
  end
end

---A config with the defaults filled in and nothing that cannot be computed.
---@param given table # as config.json
---@param where string # named in errors
---@return table config
function gpt2.complete(given, where)
  local config = read.fill(given, DEFAULTS, NEEDED, where)
  if config.n_inner ~= nil then read.check_size(config, "n_inner", where) end
  if config.n_embd % config.n_head ~= 0 then
    refuse(where, "n_embd = %d does not divide into n_head = %d heads", config.n_embd, config.n_head)
  end
  check_kind(config, where)
  config.model_type = gpt2.model_type
  config.architectures = { gpt2.architecture }
  return config
end

---What the decoder wants to know.
---@param config table # a complete one
---@return table
function gpt2.decoder(config)
  return {
    n_layers = config.n_layer,
    hidden = config.n_embd,
    heads = config.n_head,
    kv_heads = config.n_head,
    head_dim = config.n_embd // config.n_head,
    ffn = config.n_inner or 4 * config.n_embd,
    vocab = config.vocab_size,
    context = config.n_positions,
    eps = config.layer_norm_epsilon,
    tied = config.tie_word_embeddings,
    norm = "layer",
    act = "gelu_tanh",
    learned_pos = true,
    attention_bias = true,
    mlp_bias = true,
  }
end

local TOP = {
  embed = "transformer.wte.weight",
  pos_embed = "transformer.wpe.weight",
  norm = "transformer.ln_f.weight",
  norm_b = "transformer.ln_f.bias",
  head = "lm_head.weight",
}

-- the decoder's name, a bias without its _b -> module; which third of it
local PARTS = {
  norm1 = { "ln_1" },
  norm2 = { "ln_2" },
  q = { "attn.c_attn", 1 },
  k = { "attn.c_attn", 2 },
  v = { "attn.c_attn", 3 },
  o = { "attn.c_proj" },
  up = { "mlp.c_fc" },
  down = { "mlp.c_proj" },
}

local function in_layer(name)
  local layer, part = name:match "^layers%.(%d+)%.(%w+)"
  if not layer then return nil end
  return ("transformer.h.%s."):format(layer), part, name:find "_b$" and "bias" or "weight"
end

---A weight's own name, from the decoder's ("layers.3.q"): as in the file, save the thirds of c_attn.
---@param name string
---@return string
function gpt2.weight_name(name)
  local layer, part, kind = in_layer(name)
  if not layer then return TOP[name] end
  local module, third = table.unpack(PARTS[part])
  return ("%s%s.%s%s"):format(layer, module, third and part .. "." or "", kind)
end

---Where the file holds a weight: in which tensor, which of how many equal parts of its last dim
---(nil: all of it), and whether as [in, out].
---@param name string # the decoder's
---@return { tensor: string, part: integer?, parts: integer?, transposed: boolean }
function gpt2.stored(name)
  local layer, part, kind = in_layer(name)
  if not layer then return { tensor = TOP[name], transposed = false } end
  local module, third = table.unpack(PARTS[part])
  return {
    tensor = layer .. module .. "." .. kind,
    part = third,
    parts = third and 3,
    transposed = kind == "weight" and not part:find "^norm",
  }
end

---Files of the model without its head leave out the first part of the names.
---@param name string # as in a file
---@return string
function gpt2.full_name(name)
  if name:find "^transformer%." or name:find "^lm_head%." then return name end
  return "transformer." .. name
end

---Entries that some files hold and that carry no weight: the causal mask of old exports.
---@param name string
---@return boolean
function gpt2.ignorable(name)
  return name:find "^transformer%.h%.%d+%.attn%.bias$" ~= nil or name:find "%.attn%.masked_bias$" ~= nil
end

---Standard deviation of a new model's weight: what adds into the residual stream starts smaller
---the more layers add (Radford et al. 2019).
---@param name string # the decoder's
---@param config table
---@return number
function gpt2.init_std(name, config)
  local adds = name:find "%.o$" or name:find "%.down$"
  return config.initializer_range * (adds and (2 * config.n_layer) ^ -0.5 or 1)
end

return gpt2
