-- Throughput of `perilune serve` with parallel streams against model:generate with the same
-- batch: `perilune scripts/bench-serve.lua [shape = 15m|tiny|1b] [streams = 32] [new tokens = 64] [rounds = 7] [python]`.
-- python: an interpreter that has the official openai client, which then makes the load.
-- A seeded random model of the shape is saved and served in a second process on this machine, and
-- build/tests/load (make tests) is the client, whose share of one core is printed. The speed of a
-- shared machine moves, so each round of serve is compared with the mean of generate before and
-- after it, and the median of these ratios counts.
local pl = require "perilune"
local base = require("perilune.core").base
local wordlevel = require "perilune.text.wordlevel"

local SHAPES = { -- hidden, layers, heads, kv heads, ffn, vocabulary, context
  tiny = { 128, 2, 4, 4, 256, 366, 512 },
  ["15m"] = { 288, 6, 6, 6, 768, 32000, 512 },
  ["1b"] = { 2048, 22, 32, 4, 5632, 32000, 2048 },
}
local WAVES = 2

local shape = arg and arg[1] or "15m"
local streams, new = tonumber(arg and arg[2]) or 32, tonumber(arg and arg[3]) or 64
local rounds = tonumber(arg and arg[4]) or 7
local s = SHAPES[shape] or error("the shape is one of tiny, 15m, 1b", 0)
local python = arg and arg[5]
local load = (os.getenv "PL_TESTS" or "build/tests") .. "/load"
local perilune = os.getenv "PL_BIN" or base.exe_dir() .. "/perilune"
if not base.exists(load) then error(load .. " is not there: make tests", 0) end

local words = {}
for i = 1, s[6] - 1 do words[i] = (" w%d"):format(i) end
local model = pl.models.new({
  model_type = "llama", architectures = { "LlamaForCausalLM" }, hidden_size = s[1], num_hidden_layers = s[2],
  num_attention_heads = s[3], num_key_value_heads = s[4], intermediate_size = s[5], vocab_size = s[6],
  max_position_embeddings = s[7], rms_norm_eps = 1e-5, rope_theta = 10000.0, tie_word_embeddings = true,
  hidden_act = "silu",
}, { seed = 1, tokenizer = wordlevel.json(words, { pattern = " w[0-9]+" }) })

local dir = os.tmpname()
os.remove(dir)
model:save(dir)

local prompts, bodies = {}, {}
for i = 1, streams * WAVES do
  prompts[i] = {}
  for j = 1, 16 do prompts[i][j] = (i * 31 + j * 17) % s[6] end
  bodies[i] = pl.json.encode { prompt = prompts[i], max_tokens = new, seed = i, stream = true,
    stream_options = { include_usage = true } }
end
assert(base.write_file(dir .. "/bodies", table.concat(bodies, "\n")))

local function output(command)
  local p = assert(io.popen(command))
  local text = p:read "a"
  p:close()
  return text
end

local function median(t)
  table.sort(t)
  return t[(#t + 1) // 2]
end

local log = dir .. "/log"
local pid = output(("%q serve %q port=0 batch_size=%d >/dev/null 2>%q & echo $!"):format(perilune, dir, streams, log)):match "%d+"
local port
for _ = 1, 600 do
  port = base.exists(log) and base.read_file(log):match "http://127%.0%.0%.1:(%d+)"
  if port then break end
  base.sleep(0.1)
end

local ok, problem = pcall(function()
  if not port then error("the server did not start: " .. (base.read_file(log) or ""), 0) end
  print(("%s; %d threads; shape %s; %d streams, %d requests of 16 + %d tokens a round"):format(base.cpu_name(),
    base.threads(), shape, streams, #prompts, new))
  local function generate(seed)
    local began, n = base.now(), 0
    for _, o in ipairs(model:generate(prompts, { max_tokens = new, batch_size = streams, seed = seed })) do n = n + #o.ids end
    return n / (base.now() - began)
  end
  local ratios, served, cpu = {}, {}, {}
  generate(0)
  local before = generate(1)
  for round = 1, rounds do
    local bodies_file = dir .. "/bodies"
    local text = output(python and ("%q tests/parity/load.py %s %q %d %d"):format(python, port, bodies_file, streams, #prompts)
      or ("%q bench %s /v1/completions %q %d %d"):format(load, port, bodies_file, streams, #prompts))
    local r = assert(pl.json.decode(text))
    if r.failed > 0 then error("requests failed: " .. text, 0) end
    local after = generate(round + 1)
    local alone = (before + after) / 2
    ratios[round], served[round], cpu[round] = r.tokens_per_s / alone, r.tokens_per_s, r.client_cpu
    print(("  round %d: generate %.0f and %.0f tokens/s, serve between them %.0f (%.1f %%), client %.1f %% of a core"):format(
      round, before, after, r.tokens_per_s, 100 * ratios[round], 100 * r.client_cpu))
    before = after
  end
  print(("medians: serve %.0f tokens/s, %.1f %% of generate; client %.1f %% of a core"):format(median(served),
    100 * median(ratios), 100 * median(cpu)))
end)
os.execute(("kill %s"):format(pid))
base.remove_tree(dir)
if not ok then error(problem, 0) end
