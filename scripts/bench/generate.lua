-- Generation workloads: sampling at temperature 1 over the whole vocabulary, with the
-- log-probability of each token drawn.
local core = require "perilune.core"
local measure = require "scripts.bench.measure"
local shapes = require "scripts.bench.shapes"

local M = {}

local PROMPT, NEW = 32, 128

local BYTES = { f32 = 4, bf16 = 2, int8 = 1 }

-- Seconds for `batch` prompts of `length` tokens and `new` drawn after each.
local function run(model, w, length, new)
  local prompts = {}
  for i = 1, w.batch do prompts[i] = shapes.ids(length, shapes.shapes[w.shape].V, i) end
  local o = { max_tokens = new, temperature = 1.0, seed = 3, batch_size = w.batch }
  if w.dtype ~= "f32" then o.dtype = w.dtype end
  local t, out = measure.time(function() return model:generate(prompts, o) end)
  local drawn = 0
  for _, s in ipairs(out) do drawn = drawn + #s.ids end
  assert(drawn == w.batch * new, "an answer ended early")
  return t
end

-- The median round of f, which gives seconds; f is asked at least three times. The process's
-- memory is read before the first probe, which takes some of its own.
local function rounds(seconds, probe, f)
  f()
  local rss = core.base.memory().rss_peak
  local times, peaks, stop = {}, {}, core.base.now() + seconds
  repeat
    peaks[#peaks + 1] = measure.probes[probe]()
    times[#times + 1] = f()
  until core.base.now() > stop and #times >= 3
  table.sort(times)
  return { median = measure.median(times), best = times[1], n = #times, rss = rss,
    peak = #peaks > 0 and measure.median(peaks) or nil }
end

---w: { shape, batch, dtype, zeros?, new? }: drawn tokens a second after the prompts were read.
---One row is bound by reading the weights, more rows by multiplying.
function M.generate(w, seconds)
  local model = shapes.model(w.shape, w.zeros)
  local blocks, head = shapes.weights(w.shape)
  local new = w.new or NEW
  local probe = w.batch == 1 and "dram" or w.dtype
  -- the prompts alone are timed too, and their time taken off
  local r = rounds(seconds, probe, function()
    return run(model, w, PROMPT, 1 + new) - run(model, w, PROMPT, 1)
  end)
  local tokens = w.batch * new
  local work = probe == "dram" and (blocks + head) * BYTES[w.dtype] * new or 2 * (blocks + head) * tokens
  local out = measure.figures(r, { amount = tokens, unit = "tokens/s", probe = probe, work = work })
  out.rss = r.rss
  return out
end

---w: { shape, length, dtype }: one prompt read, one token drawn.
function M.prefill(w, seconds)
  w.batch = 1
  local model = shapes.model(w.shape)
  local blocks, head = shapes.weights(w.shape)
  local probe = w.dtype
  local r = rounds(seconds, probe, function() return run(model, w, w.length, 1) end)
  local out = measure.figures(r, { amount = w.length, unit = "tokens/s", probe = probe,
    work = 2 * (blocks * w.length + head) + shapes.attention(w.shape, w.length * w.length / 2) })
  out.rss = r.rss
  return out
end

return M
