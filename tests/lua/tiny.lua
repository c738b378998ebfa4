-- A model of a few thousand weights with the world's tokenizer, for tests of what is around a model.
local pl = require "perilune"
local text = require "perilune.world.text"

---@param seed integer
---@return perilune.Model
return function(seed)
  local tokenizer = text.tokenizer()
  return pl.models.new({
    model_type = "llama", vocab_size = tokenizer:vocab_size(), hidden_size = 16, intermediate_size = 32,
    num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64, tie_word_embeddings = true,
    rms_norm_eps = 1e-5, rope_theta = 10000.0, eos_token_id = tokenizer:token_to_id "</s>",
  }, { tokenizer = tokenizer, seed = seed })
end
