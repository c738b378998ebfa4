-- How cost grows: the step's time with batch and length, attention's memory with length.
local core = require "perilune.core"
local measure = require "scripts.bench.measure"
local pl = require "perilune"
local shapes = require "scripts.bench.shapes"
local train = require "scripts.bench.train"

local M = {}

local function step_time(model, w, count, length, seconds)
  local step = train.sft_step(model, w.shape, count, length, w.dtype)
  local r = measure.rounds(seconds, w.dtype, step, 1)
  collectgarbage()
  return r.median * (r.peak or 1) -- in units of the peak's work: free of the machine's moods
end

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
  local model, x, y, each = shapes.model(w.shape), {}, {}, {}
  for _, count in ipairs { 1, 2, 4, 8, 16, 32, 64 } do
    x[#x + 1] = count * 256
    y[#y + 1] = step_time(model, w, count, 256, seconds / 4)
    each[#each + 1] = ("%d: %.2f"):format(count, y[#y] / x[#x] / (y[1] / x[1]))
  end
  return { value = off_line(x, y), note = "per token, by batch: " .. table.concat(each, ", ") }
end

---w: { shape, dtype }: time against work, 2,048 tokens in sequences of 64 to 1024.
function M.length(w, seconds)
  local model, x, y, each = shapes.model(w.shape), {}, {}, {}
  for _, length in ipairs { 64, 128, 256, 512, 1024 } do
    x[#x + 1] = shapes.sft_work(w.shape, 2048 // length, length)
    y[#y + 1] = step_time(model, w, 2048 // length, length, seconds / 4)
    each[#each + 1] = ("%d: %.2f"):format(length, y[#y] / y[1])
  end
  local worst = 0
  for i = 1, #x do worst = math.max(worst, math.abs(y[i] / x[i] / (y[1] / x[1]) - 1)) end
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
