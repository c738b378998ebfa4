-- How cost grows: the step's time with batch and length, attention's memory with length.
local core = require "perilune.core"
local measure = require "scripts.bench.measure"
local pl = require "perilune"
local shapes = require "scripts.bench.shapes"
local train = require "scripts.bench.train"

local M = {}

-- Largest relative distance of y from the straight line a + b x that fits it best (relative
-- least squares): a is what a step costs whatever its size, the optimizer's update above all.
local function off_line(x, y)
  local sw, sx, sy, sxx, sxy = 0, 0, 0, 0, 0
  for i = 1, #x do
    local w = 1 / (y[i] * y[i])
    sw, sx, sy = sw + w, sx + w * x[i], sy + w * y[i]
    sxx, sxy = sxx + w * x[i] * x[i], sxy + w * x[i] * y[i]
  end
  local b = (sw * sxy - sx * sy) / (sw * sxx - sx * sx)
  local a = (sy - b * sx) / sw
  local worst = 0
  for i = 1, #x do worst = math.max(worst, math.abs(y[i] / (a + b * x[i]) - 1)) end
  return worst
end

---w: { shape, dtype }: time against tokens, batch 1 to 64 at 256 tokens.
function M.batch(w, seconds)
  local model, counts, x, steps, each = shapes.model(w.shape), { 1, 2, 4, 8, 16, 32, 64 }, {}, {}, {}
  for i, count in ipairs(counts) do
    x[i] = count * 256
    steps[i] = train.sft_step(model, w.shape, count, 256, w.dtype)
  end
  local y = measure.turns(seconds, w.dtype, steps)
  for i, count in ipairs(counts) do each[i] = ("%d: %.2f"):format(count, y[i] / x[i] / (y[1] / x[1])) end
  return { value = off_line(x, y), note = "per token, by batch: " .. table.concat(each, ", ") }
end

---w: { shape, dtype }: time against work, 2,048 tokens in sequences of 64 to 1024.
function M.length(w, seconds)
  local model, lengths, x, steps, each = shapes.model(w.shape), { 64, 128, 256, 512, 1024 }, {}, {}, {}
  for i, length in ipairs(lengths) do
    x[i] = shapes.sft_work(w.shape, 2048 // length, length)
    steps[i] = train.sft_step(model, w.shape, 2048 // length, length, w.dtype)
  end
  local y, worst = measure.turns(seconds, w.dtype, steps), 0
  for i, length in ipairs(lengths) do
    each[i] = ("%d: %.2f"):format(length, y[i] / y[1])
    worst = math.max(worst, math.abs(y[i] / x[i] / (y[1] / x[1]) - 1))
  end
  return { value = worst, note = "per token, by length: " .. table.concat(each, ", ") }
end

---Memory that attention's forward and backward take a token, at 512 and at 8,192 tokens.
function M.attention_memory()
  local H, D = 6, 48
  local function bytes(n)
    local function input(seed) return pl.randn(n, H * D, { seed = seed }):requires_grad_() end
    local q, k, v = input(1), input(2), input(3)
    collectgarbage()
    local before = core.base.memory().live
    local y = pl.attention(q, k, v, { 0, n }, H, H)
    y:sum():backward()
    local peak = core.base.memory().peak - before
    for _, t in ipairs { q, k, v, y } do t:free() end
    collectgarbage()
    return peak / n
  end
  local short, long = bytes(512), bytes(8192)
  return { value = math.abs(long / short - 1),
    note = ("%.1f and %.1f KiB a token"):format(short / 1024, long / 1024) }
end

return M
