-- The model shapes of the benchmarks, their configurations, and how much work they are. A
-- multiply-add counts two; what is computed twice to save memory does not count; causal
-- attention is half the square.
local pl = require "perilune"

local M = {}

-- d width, L layers, H heads, K heads of keys and values, ff feed-forward, V vocabulary
M.shapes = {
  ["15m"] = { kind = "llama", d = 288, L = 6, H = 6, K = 6, ff = 768, V = 32000, tied = true },
  tiny = { kind = "llama", d = 128, L = 4, H = 4, K = 4, ff = 352, V = 512, tied = true },
  study = { kind = "llama", d = 128, L = 2, H = 4, K = 4, ff = 256, V = 366, tied = true },
  ["1b"] = { kind = "llama", d = 2048, L = 22, H = 32, K = 4, ff = 5632, V = 32000, tied = false },
  gpt2 = { kind = "gpt2", d = 768, L = 12, H = 12, K = 12, ff = 3072, V = 50257, tied = true },
}

function M.config(name)
  local s = M.shapes[name]
  if s.kind == "gpt2" then
    return {
      model_type = "gpt2", n_embd = s.d, n_layer = s.L, n_head = s.H, n_inner = s.ff, vocab_size = s.V,
      n_positions = 1024, activation_function = "gelu_new", layer_norm_epsilon = 1e-5, tie_word_embeddings = true,
    }
  end
  return {
    model_type = "llama", hidden_size = s.d, num_hidden_layers = s.L, num_attention_heads = s.H,
    num_key_value_heads = s.K, intermediate_size = s.ff, vocab_size = s.V, max_position_embeddings = 2048,
    rms_norm_eps = 1e-5, rope_theta = 10000.0, tie_word_embeddings = s.tied, hidden_act = "silu",
  }
end

---A model of the shape with random weights, or with zeros where drawing them takes longer than the benchmark.
function M.model(name, zeros)
  local config = M.config(name)
  if not zeros then return pl.models.new(config, { seed = 1 }) end
  local family = require("perilune.models." .. M.shapes[name].kind)
  local full = family.complete(config, "bench")
  local params = {}
  for i, w in ipairs(require("perilune.core").lm.weights(family.decoder(full))) do
    params[i] = (#w.shape == 1 and pl.ones or pl.zeros)(table.unpack(w.shape))
  end
  return require("perilune.model").new { family = family, config = full, params = params }
end

---Weights that take part in products.
---@return number blocks
---@return number head
function M.weights(name)
  local s = M.shapes[name]
  local kv = s.d * s.K // s.H
  return s.L * (2 * s.d * s.d + 2 * s.d * kv + (s.kind == "gpt2" and 2 or 3) * s.d * s.ff), s.V * s.d
end

---Forward work of attention over `pairs` of query and key.
function M.attention(name, pairs_of)
  local s = M.shapes[name]
  return 4 * s.L * s.d * pairs_of
end

---A training step over `count` sequences of `length` with a loss on all tokens.
function M.sft_work(name, count, length)
  local blocks, head = M.weights(name)
  return 3 * (2 * (blocks + head) * count * length + M.attention(name, count * length * length / 2))
end

---A step over pairs: prompt once, both completions, loss on the completions; the least there is to do.
function M.pairs_work(name, count, prompt, completion)
  local blocks, head = M.weights(name)
  local tokens = prompt + 2 * completion
  local seen = prompt * prompt / 2 + 2 * (prompt * completion + completion * completion / 2)
  return 3 * count * (2 * blocks * tokens + 2 * head * 2 * completion + M.attention(name, seen))
end

---Token ids that look like nothing in particular.
function M.ids(length, vocab, seed)
  local out = {}
  for i = 1, length do out[i] = (seed * 7919 + i * 104729 + i * i * 31) % vocab end
  return out
end

return M
