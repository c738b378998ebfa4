-- Speed of this machine and of perilune on it: `make bench`, or
-- `perilune scripts/bench.lua [seconds] [shape]`. Prints the fp32 peak (multiply-adds
-- in registers, all threads), the training step of a 15M-parameter and of a tiny Llama
-- shape as a share of it, the step of the embedded study's shape, and generation.
-- With a shape (15m, tiny, study) only what has that name.
--
-- A step is forward, backward and one AdamW update. Its work is counted as
-- 6 x matmul weights x tokens plus causal attention at half the square
-- (12 x layers x tokens x length / 2 x width): what is computed twice to save
-- memory does not count. Rounds of peak and steps alternate, because the speed of a
-- shared machine moves; both medians and bests are given.
local pl = require "perilune"
local core = require "perilune.core"
local base = core.base

local SECONDS = tonumber(arg and arg[1]) or 6 -- measured per shape
local ONLY = arg and arg[2]

local function median(t)
  local s = table.move(t, 1, #t, 1, {})
  table.sort(s)
  return s[(#s + 1) // 2]
end

local function time(f)
  local t = base.now()
  local r = f()
  return base.now() - t, r
end

-- GFLOP/s over about 30 ms
local function peak_once()
  local seconds, flops = time(function() return base.fma_probe(4000000) end)
  return flops / seconds * 1e-9
end

local function config(hidden, layers, heads, ffn, vocab, context)
  return {
    model_type = "llama", architectures = { "LlamaForCausalLM" },
    hidden_size = hidden, num_hidden_layers = layers, num_attention_heads = heads,
    num_key_value_heads = heads, intermediate_size = ffn, vocab_size = vocab,
    max_position_embeddings = context, rms_norm_eps = 1e-5, rope_theta = 10000.0,
    tie_word_embeddings = true, hidden_act = "silu",
  }
end

local function rows(count, length, vocab)
  local out = {}
  for r = 1, count do
    local ids = {}
    for i = 1, length + 1 do ids[i] = (r * 7919 + i * 104729 + i * i * 31) % vocab end
    out[r] = { ids = ids, start = 2, n_prompt = 1 }
  end
  return out
end

local function flops_per_step(c, count, length)
  local d, f = c.hidden_size, c.intermediate_size
  local weights = c.num_hidden_layers * (4 * d * d + 3 * d * f) + c.vocab_size * d
  local tokens = count * length
  return 6 * weights * tokens + 12 * c.num_hidden_layers * tokens * length / 2 * d
end

local function train(name, c, count, length)
  if ONLY and name ~= ONLY then return end
  local model = pl.models.new(c, { seed = 1 })
  local params = model:parameters()
  local opt = pl.optim.adamw(params, { lr = 1e-4 })
  local batch = rows(count, length, c.vocab_size)
  local function step()
    local loss = -model:completion_logprobs(batch):mean()
    loss:backward()
    opt:step()
    opt:zero_grad()
    return loss:item()
  end
  local steps, peaks, first, last = {}, {}, nil, nil
  for _ = 1, 2 do first = first or step() end
  local stop = base.now() + SECONDS
  repeat
    peaks[#peaks + 1] = peak_once()
    local t, loss = time(step)
    steps[#steps + 1], last = t, loss
  until base.now() > stop and #steps >= 3
  local work = flops_per_step(c, count, length) * 1e-9
  local best = math.huge
  for _, t in ipairs(steps) do best = math.min(best, t) end
  local top = 0
  for _, p in ipairs(peaks) do top = math.max(top, p) end
  local mid, peak = median(steps), median(peaks)
  print(("train %-8s %d x %d tokens: step %.1f ms (best %.1f), %.0f tokens/s, %.2f GFLOP a step"):format(
    name, count, length, mid * 1e3, best * 1e3, count * length / mid, work))
  print(("  %.1f GFLOP/s = %.1f %% of the fp32 peak %.1f (medians); best against best %.1f %% of %.1f; loss %.3f -> %.3f"):format(
    work / mid, 100 * work / mid / peak, peak, 100 * work / best / top, top, first, last))
end

local function generate(name, c, prompts, max_tokens)
  if ONLY and name ~= ONLY then return end
  local model = pl.models.new(c, { seed = 1 })
  local list = {}
  for i = 1, prompts do
    list[i] = {}
    for j = 1, 16 do list[i][j] = (i * 31 + j * 17) % c.vocab_size end
  end
  local best = 0
  for _ = 1, 3 do
    local n = 0
    local t, outs = time(function()
      return model:generate(list, { max_tokens = max_tokens, temperature = 1.0, seed = 3 })
    end)
    for _, o in ipairs(outs) do n = n + #o.ids end
    best = math.max(best, n / t)
  end
  print(("generate %-5s %3d prompts of 16 tokens, %d new each: %.0f tokens/s"):format(name, prompts, max_tokens, best))
end

print(("%s; %d threads; kernels: %s"):format(base.cpu_name(), base.threads(), base.isa()))
peak_once()
local m15 = config(288, 6, 6, 768, 32000, 512)
local tiny = config(128, 4, 4, 352, 512, 512)
local study = config(128, 2, 4, 256, 366, 512)
train("15m", m15, 8, 256)
train("tiny", tiny, 32, 128)
train("study", study, 16, 64)
train("study", study, 16, 20)
for _, n in ipairs { 1, 8, 64 } do generate("15m", m15, n, 32) end
for _, n in ipairs { 1, 64, 256 } do generate("study", study, n, 32) end
