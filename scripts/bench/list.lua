-- The workloads of `make bench` and `make bench-peers`, each with the figures to reach:
--   share  of the machine's peak (bf16 or f32 multiply-adds, DRAM reads), measured in the same seconds
--   rss    peak memory of the process, bytes
--   value  at most this (growth)
--   ratio  to the best peer, for bench-peers; peer names what runs there
local generate = require "scripts.bench.generate"
local growth = require "scripts.bench.growth"
local pl = require "perilune"
local shapes = require "scripts.bench.shapes"
local train = require "scripts.bench.train"

local M = {}

-- What a workload needs of this build; each gives true, or why not.
local function able(f, what)
  return function()
    local ok = pcall(f)
    return ok or ("not there yet: " .. what)
  end
end

local micro = { vocab_size = 8, hidden_size = 8, intermediate_size = 8, num_hidden_layers = 1,
  num_attention_heads = 2, max_position_embeddings = 8 }

M.needs = {
  autocast = able(function() pl.autocast("bf16", function() end) end, "pl.autocast"),
  gpt2 = able(function()
    local c = shapes.config "gpt2"
    c.n_embd, c.n_layer, c.n_head, c.n_inner, c.vocab_size, c.n_positions = 8, 1, 2, 8, 8, 8
    pl.models.new(c)
  end, "the GPT-2 family"),
  packed = able(function()
    for _, dtype in ipairs { "bf16", "int8" } do
      pl.models.new(micro):generate({ { 1 } }, { max_tokens = 1, dtype = dtype })
    end
  end, "generation with bf16 and int8 weights"),
}

local list = {}

-- name, run, { what, to_reach, needs ... } and the workload's own parameters
local function add(name, what, run, w)
  w.name, w.what, w.run = name, what, run
  w.to_reach, w.needs = w.to_reach or {}, w.needs or {}
  if w.shape == "gpt2" then table.insert(w.needs, "gpt2") end
  list[#list + 1] = w
end

local function sft(shape, batch, length, dtype, to_reach)
  add(("sft-%s-%s"):format(shape, dtype), ("SFT %s, %d x %d"):format(shape, batch, length), train.sft,
    { shape = shape, batch = batch, length = length, dtype = dtype, to_reach = to_reach, peer = "sft",
      needs = dtype == "bf16" and { "autocast" } or {} })
end

sft("15m", 8, 256, "bf16", { share = 0.73, rss = 0.6e9, ratio = 1.6 })
sft("gpt2", 4, 256, "bf16", { share = 0.75, rss = 2.2e9, ratio = 1.3 })
sft("tiny", 32, 128, "bf16", { share = 0.52, ratio = 2 })
sft("15m", 8, 256, "f32", { share = 0.82 })
sft("gpt2", 4, 256, "f32", { share = 0.82 })
sft("tiny", 32, 128, "f32", { share = 0.60 })

for _, row in ipairs { { "15m", 2.8 }, { "gpt2", 2.1 } } do
  add(("dpo-%s-bf16"):format(row[1]), ("DPO %s, 4 pairs x 256"):format(row[1]), train.dpo,
    { shape = row[1], batch = 4, length = 256, dtype = "bf16", to_reach = { ratio = row[2] }, peer = "dpo", needs = { "autocast" } })
end

-- the faster of the two smaller forms of the weights is what is compared
for _, dtype in ipairs { "f32", "bf16", "int8" } do
  for _, row in ipairs { { 1, 2 }, { 8, 2.7 }, { 64, 6 } } do
    add(("gen-15m-%d-%s"):format(row[1], dtype), ("generation 15m, batch %d"):format(row[1]), generate.generate,
      { shape = "15m", batch = row[1], dtype = dtype, to_reach = { ratio = dtype ~= "f32" and row[2] or nil }, peer = "gen",
        needs = dtype ~= "f32" and { "packed" } or {} })
  end
end
add("gen-1b-1-bf16", "generation 1.1B, batch 1", generate.generate,
  { shape = "1b", batch = 1, dtype = "bf16", zeros = true, new = 16, to_reach = { share = 0.80 }, needs = { "packed" } })
add("prefill-15m-bf16", "prefill 15m, 512 tokens", generate.prefill,
  { shape = "15m", length = 512, dtype = "bf16", to_reach = { share = 0.60 }, peer = "prefill", needs = { "packed" } })
add("prefill-15m-f32", "prefill 15m, 512 tokens", generate.prefill, { shape = "15m", length = 512, dtype = "f32" })

add("growth-batch", "step time, batch 1..64: off a straight line", growth.batch,
  { shape = "15m", dtype = "bf16", to_reach = { value = 0.10 }, needs = { "autocast" } })
add("growth-length", "step time, length 64..1024: off the work", growth.length,
  { shape = "15m", dtype = "bf16", to_reach = { value = 0.10 }, needs = { "autocast" } })
add("growth-attention", "attention, bytes a token: 8,192 against 512", growth.attention_memory, { dtype = "f32", to_reach = { value = 0.10 } })

add("sft-study-64", "SFT study, 16 x 64", train.sft, { shape = "study", batch = 16, length = 64, dtype = "f32" })
add("sft-study-20", "SFT study, 16 x 20", train.sft, { shape = "study", batch = 16, length = 20, dtype = "f32" })
for _, n in ipairs { 1, 64, 256 } do
  add(("gen-study-%d"):format(n), ("generation study, batch %d"):format(n), generate.generate,
    { shape = "study", batch = n, dtype = "f32" })
end

M.list = list

function M.find(name)
  for _, w in ipairs(list) do
    if w.name == name then return w end
  end
end

---All workloads, or those whose name contains one of the words.
---@param words string[]
function M.select(words)
  if #words == 0 then return list end
  local out, used = {}, {}
  for _, w in ipairs(list) do
    for _, word in ipairs(words) do
      if w.name:find(word, 1, true) then
        used[word] = true
        if out[#out] ~= w then out[#out + 1] = w end
      end
    end
  end
  for _, word in ipairs(words) do
    if not used[word] then
      local names = {}
      for i, w in ipairs(list) do names[i] = w.name end
      error(("no workload has %q in its name; there are: %s"):format(word, table.concat(names, ", ")), 0)
    end
  end
  return out
end

-- Did a result reach what its workload is to reach? By figure: true or false.
local function verdict(w, r)
  local to = w.to_reach
  return {
    share = to.share and r.share and r.share >= to.share,
    rss = to.rss and r.rss and r.rss <= to.rss,
    value = to.value and r.value and r.value <= to.value,
  }
end

---Runs one workload in this process.
---@return table result with name, what, dtype, to_reach, reached; or missing = why
function M.run(w, seconds)
  local r
  for _, need in ipairs(w.needs) do
    local ok = M.needs[need]()
    if ok ~= true then r = { missing = ok } end
  end
  r = r or w.run(w, seconds)
  r.name, r.what, r.dtype, r.peer = w.name, w.what, w.dtype, w.peer
  r.to_reach, r.reached = w.to_reach, verdict(w, r)
  return r
end

return M
