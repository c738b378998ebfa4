--- The Llama family: what config.json means to the decoder, and the names of
--- the weights. To add a family, write such a file and list it in models/init.lua.
--- What the decoder cannot compute is refused by name, never skipped.
local read = require "perilune.models.config"
local refuse = read.refuse

local llama = {
  model_type = "llama",
  architecture = "LlamaForCausalLM",
}

-- transformers' own defaults for keys that a config.json may leave out
local DEFAULTS = {
  hidden_act = "silu",
  rms_norm_eps = 1e-6,
  rope_theta = 10000.0,
  max_position_embeddings = 2048,
  initializer_range = 0.02,
  tie_word_embeddings = false,
  attention_bias = false,
  mlp_bias = false,
}

local NEEDED = {
  "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
}

-- rope_theta on top (transformers 4) or in rope_parameters (5); scaling is not computed here
local function rope_theta(config, where)
  local theta = config.rope_theta
  for _, key in ipairs { "rope_parameters", "rope_scaling" } do
    local r = config[key]
    if type(r) == "table" then
      local kind = r.rope_type or r.type or "default"
      if kind ~= "default" then
        refuse(where, '%s of type "%s" is not supported (only "default"): long contexts made so would be wrong',
          key, tostring(kind))
      end
      theta = r.rope_theta or theta
    end
  end
  return theta or DEFAULTS.rope_theta
end

---A config with the defaults filled in and nothing that cannot be computed.
---@param given table # as config.json
---@param where string # named in errors
---@return table config
function llama.complete(given, where)
  local config = read.fill(given, DEFAULTS, NEEDED, where)
  config.num_key_value_heads = config.num_key_value_heads or config.num_attention_heads
  config.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
  config.rope_theta = rope_theta(config, where)
  if config.hidden_act ~= "silu" and config.hidden_act ~= "swish" then
    refuse(where, 'hidden_act "%s" is not supported; only "silu"', tostring(config.hidden_act))
  end
  if (config.partial_rotary_factor or 1) ~= 1 then
    refuse(where, "partial_rotary_factor %s is not supported; only 1", tostring(config.partial_rotary_factor))
  end
  config.model_type = llama.model_type
  config.architectures = { llama.architecture }
  return config
end

---What the decoder wants to know.
---@param config table # a complete one
---@return table
function llama.decoder(config)
  return {
    n_layers = config.num_hidden_layers,
    hidden = config.hidden_size,
    heads = config.num_attention_heads,
    kv_heads = config.num_key_value_heads,
    head_dim = config.head_dim,
    ffn = config.intermediate_size,
    vocab = config.vocab_size,
    context = config.max_position_embeddings,
    eps = config.rms_norm_eps,
    theta = config.rope_theta,
    tied = config.tie_word_embeddings,
    attention_bias = config.attention_bias,
    mlp_bias = config.mlp_bias,
  }
end

local PARTS = {
  norm1 = "input_layernorm",
  q = "self_attn.q_proj",
  k = "self_attn.k_proj",
  v = "self_attn.v_proj",
  o = "self_attn.o_proj",
  norm2 = "post_attention_layernorm",
  gate = "mlp.gate_proj",
  up = "mlp.up_proj",
  down = "mlp.down_proj",
}

---The file's name of a weight, from the decoder's ("layers.3.q").
---@param name string
---@return string
function llama.weight_name(name)
  local layer, part = name:match "^layers%.(%d+)%.(%w+)"
  if layer then return ("model.layers.%s.%s.%s"):format(layer, PARTS[part], name:find "_b$" and "bias" or "weight") end
  return ({ embed = "model.embed_tokens.weight", norm = "model.norm.weight", head = "lm_head.weight" })[name]
end

---Entries that some files hold and that carry no weight: the rotary frequencies of old exports.
---@param name string
---@return boolean
function llama.ignorable(name)
  return name:find("rotary_emb%.inv_freq$") ~= nil
end

return llama
