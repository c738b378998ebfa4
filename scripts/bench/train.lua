-- Training workloads: a step is forward, backward and one AdamW update.
local core = require "perilune.core"
local measure = require "scripts.bench.measure"
local pl = require "perilune"
local shapes = require "scripts.bench.shapes"

local M = {}

-- Runs f as the dtype says.
local function within(dtype, f)
  if dtype == "bf16" then return pl.autocast("bf16", f) end
  return f()
end

local function sft_rows(name, count, length)
  local rows = {}
  for r = 1, count do
    rows[r] = { ids = shapes.ids(length + 1, shapes.shapes[name].V, r), start = 2, n_prompt = 1 }
  end
  return rows
end

-- A function that does one step on random tokens and gives the loss.
function M.sft_step(model, name, count, length, dtype)
  local opt = pl.optim.adamw(model:parameters(), { lr = 1e-4 })
  local batch = sft_rows(name, count, length)
  return function()
    local loss = within(dtype, function() return -model:completion_logprobs(batch):mean() end)
    loss:backward()
    opt:step()
    opt:zero_grad()
    return loss:item()
  end
end

---w: { shape, batch, length, dtype }
function M.sft(w, seconds)
  local step = M.sft_step(shapes.model(w.shape), w.shape, w.batch, w.length, w.dtype)
  local r = measure.rounds(seconds, w.dtype, step)
  local out = measure.figures(r, { amount = w.batch * w.length, unit = "tokens/s", probe = w.dtype,
    work = shapes.sft_work(w.shape, w.batch, w.length) })
  out.rss = core.base.memory().rss_peak
  return out
end

---w: { shape, batch = pairs, length, dtype }; the prompt is half; the reference's sums are kept
function M.dpo(w, seconds)
  local half, vocab = w.length // 2, shapes.shapes[w.shape].V
  local model = shapes.model(w.shape)
  local opt = pl.optim.adamw(model:parameters(), { lr = 1e-5 })
  local rows = {} -- chosen and rejected of each pair, as the trainer has them
  for i = 1, w.batch do
    local prompt = shapes.ids(half + 1, vocab, i)
    local function row(seed)
      local ids = table.move(shapes.ids(half, vocab, seed), 1, half, half + 2, table.move(prompt, 1, half + 1, 1, {}))
      return { ids = ids, start = half + 2, n_prompt = half + 1 }
    end
    rows[2 * i - 1], rows[2 * i] = row(1000 + i), row(2000 + i)
  end
  local reference = pl.no_grad(function()
    return within(w.dtype, function() return model:pair_sums(rows) end)
  end)
  local function step()
    local loss = within(w.dtype, function()
      local gain = model:pair_sums(rows) - reference
      return -pl.log_sigmoid(0.1 * (gain:narrow(2, 1, 1) - gain:narrow(2, 2, 1))):mean()
    end)
    loss:backward()
    opt:step()
    opt:zero_grad()
    return loss:item()
  end
  local out = measure.figures(measure.rounds(seconds, w.dtype, step), { amount = w.batch, unit = "pairs/s",
    probe = w.dtype, work = shapes.pairs_work(w.shape, w.batch, half, half) })
  out.rss = core.base.memory().rss_peak
  return out
end

return M
