-- Does bf16 train as f32 does? nanoGPT's small run on tinyshakespeare, character by character:
-- a network of that size, its hyper-parameters and number of steps, without dropout, in both
-- precisions over several seeds. nanoGPT reports a validation loss of 1.88 for it. Fails where a
-- mean is above that or the two means are apart. Needs the text (under PL_SHARED, or ../shared);
-- it takes minutes. The network is a Llama; with "gpt2" it is a GPT-2, which ends a little higher.
--
--   perilune scripts/train-parity.lua [STEPS [SEEDS [llama|gpt2]]]
local core = require("perilune.core").base
local options = require "perilune.options"
local pl = require "perilune"

-- The i-th argument, a count of at least 1.
local function count(i, name, default)
  if arg[i] == nil then return default end
  local n = math.tointeger(tonumber(arg[i]))
  if not n or n < 1 then error(('%s is "%s", wanted a whole number of at least 1, such as %d'):format(name, arg[i], default), 0) end
  return n
end

local STEPS, SEEDS, FAMILY = count(1, "STEPS", 2000), count(2, "SEEDS", 3), arg[3] or "llama"
if FAMILY ~= "llama" and FAMILY ~= "gpt2" then error(options.unknown("family", FAMILY, { "llama", "gpt2" }), 0) end
local CONTEXT, BATCH = 64, 12
local MOST, APART = 1.88, 0.01
local WINDOWS = 0x77696e646f7773 -- "windows": the stream that places are drawn from

-- The text as ids, in the order of its characters' codes.
local function read(path)
  local text = assert(core.read_file(path))
  local seen, id_of, n = {}, {}, 0
  for i = 1, #text do seen[text:byte(i)] = true end
  for c = 0, 255 do
    if seen[c] then
      id_of[c], n = n, n + 1
    end
  end
  local ids = {}
  for i = 1, #text do ids[i] = id_of[text:byte(i)] end
  return ids, n
end

-- CONTEXT tokens from `at` on and the one after them: a row that is trained from its second token on.
local function window(ids, at)
  return { prompt = { ids[at] }, completion = table.move(ids, at + 1, at + CONTEXT, 1, {}) }
end

-- Rows at places drawn from all there are, none twice.
local function drawn(ids, last, seed)
  local rows = {}
  local places = core.permutation(seed, WINDOWS, last - CONTEXT)
  for i = 1, STEPS * BATCH do rows[i] = window(ids, places[i]) end
  return rows
end

-- Mean loss a token over all of the text after `first`, in f32.
local function validation(model, ids, first)
  local rows = {}
  for at = first, #ids - CONTEXT, CONTEXT do rows[#rows + 1] = window(ids, at) end
  return pl.no_grad(function()
    local sums, counts = model:completion_sums((model:tokenize_rows(rows)))
    return -sums:sum():item() / counts:sum():item()
  end)
end

local function shape(vocab)
  if FAMILY == "gpt2" then
    return { model_type = "gpt2", vocab_size = vocab, n_positions = CONTEXT + 1, n_embd = 128, n_layer = 4, n_head = 4 }
  end
  return { vocab_size = vocab, max_position_embeddings = CONTEXT + 1, hidden_size = 128, num_hidden_layers = 4,
    num_attention_heads = 4, intermediate_size = 352, tie_word_embeddings = true } -- as many weights as with 4 x 128
end

local function train(ids, vocab, last, seed, bf16)
  local model = pl.models.new(shape(vocab), { seed = seed })
  return pl.train.sft(model, drawn(ids, last, seed), {
    lr = 1e-3, min_lr_ratio = 0.1, lr_scheduler = "cosine", warmup_steps = STEPS // 20, betas = { 0.9, 0.99 },
    weight_decay = 0.1, max_grad_norm = 1.0, batch_size = BATCH, epochs = 1, seed = seed, bf16 = bf16,
    in_place = true, label = ("%s, seed %d"):format(bf16 and "bf16" or "f32", seed),
  })
end

local path = (os.getenv "PL_SHARED" or "../shared") .. "/data/text/tinyshakespeare.txt"
local ids, vocab = read(path)
local last = #ids * 9 // 10
local means = { f32 = 0, bf16 = 0 }
print(("%-6s %10s %10s %10s %12s"):format("seed", "precision", "train", "validation", "tokens/s"))
for seed = 1, SEEDS do
  for _, precision in ipairs { "f32", "bf16" } do
    local m = train(ids, vocab, last, seed, precision == "bf16")
    local loss, tail = validation(m, ids, last + 1), 0
    for k = STEPS - 99, STEPS do tail = tail + m.history[math.max(k, 1)].loss / 100 end
    means[precision] = means[precision] + loss / SEEDS
    print(("%-6d %10s %10.4f %10.4f %12.0f"):format(seed, precision, tail, loss,
      STEPS * BATCH * CONTEXT / m.history.summary.seconds))
    io.stdout:flush()
  end
end
local apart = math.abs(means.f32 - means.bf16)
local good = means.f32 <= MOST and means.bf16 <= MOST and apart <= APART
print(("%-6s %10s %10s %10.4f"):format("mean", "f32", "", means.f32))
print(("%-6s %10s %10s %10.4f"):format("mean", "bf16", "", means.bf16))
print(("apart %.4f (at most %.2f), validation at most %.2f: %s"):format(apart, APART, MOST, good and "ok" or "missed"))
os.exit(good)
