-- perilune tests/parity/models.lua OUT: two small models with random weights for `perilune serve`:
-- OUT/words has one token a word, OUT/bytes byte-level BPE, so that characters come in parts.
local base = require("perilune.core").base
local core = require "perilune.core"
local pl = require "perilune"

local out = arg[1]

local function save(name, tokenizer, eos, hidden)
  pl.models.new({
    model_type = "llama", vocab_size = tokenizer:vocab_size(), hidden_size = hidden, intermediate_size = 2 * hidden,
    num_hidden_layers = 2, num_attention_heads = 4, max_position_embeddings = 256, tie_word_embeddings = false,
    rms_norm_eps = 1e-5, rope_theta = 10000.0, eos_token_id = tokenizer:token_to_id(eos), initializer_range = 0.3,
  }, { tokenizer = tokenizer, seed = 11 }):save(out .. "/" .. name)
end

save("words", require("perilune.world.text").tokenizer(), "</s>", 32)

for _, entry in ipairs(base.json_read("tests/golden/tokenizer_own.json").tokenizers) do
  if entry.name == "gpt2" then save("bytes", core.text.from_json(entry.json, "gpt2"), "<|endoftext|>", 64) end
end
