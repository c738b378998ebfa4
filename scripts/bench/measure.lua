-- What the workloads of `make bench` share: the clock, probes of the machine's peaks, rounds
-- of probe and step in turn. The speed of a shared machine moves, so a figure counts only
-- beside the peak of the same seconds.
local base = require("perilune.core").base

local M = {}

function M.median(list)
  local s = table.move(list, 1, #list, 1, {})
  table.sort(s)
  return s[(#s + 1) // 2]
end

---@return number seconds
---@return any result of f
function M.time(f)
  local began = base.now()
  local result = f()
  return base.now() - began, result
end

-- f(amount) -> work done; gives 1e9 units a second over about 30 ms.
local function rate(f, amount)
  local seconds, work = M.time(function() return f(amount) end)
  return work / seconds * 1e-9
end

-- Without the instruction all is computed in f32.
local function native(probe)
  local best = rate(probe, 4000000)
  return best > 0 and best or rate(base.fma_probe, 4000000)
end

-- By name: what the machine can do at most right now.
M.probes = {
  f32 = function() return rate(base.fma_probe, 4000000) end,
  bf16 = function() return native(base.bf16_probe) end,
  int8 = function() return native(base.int8_probe) end,
  dram = function() return base.read_probe(256 << 20) * 1e-9 end,
}
M.units = { f32 = "GFLOP/s", bf16 = "GFLOP/s", int8 = "GOP/s", dram = "GB/s" }

---Runs probe and step in turn until the time is over, after `warm` steps that do not count.
---@param seconds number
---@param probe "f32"|"bf16"|"dram"|nil
---@param step fun(): any
---@param warm? integer
---@return { median: number, best: number, n: integer, peak: number|nil, last: any, first: any }
function M.rounds(seconds, probe, step, warm)
  local first = nil
  for _ = 1, warm or 2 do
    local r = step()
    if first == nil then first = r end
  end
  local times, peaks, last = {}, {}, nil
  local stop = base.now() + seconds
  repeat
    peaks[#peaks + 1] = probe and M.probes[probe]()
    local t, r = M.time(step)
    times[#times + 1], last = t, r
  until base.now() > stop and #times >= 3
  local best = math.huge
  for _, t in ipairs(times) do best = math.min(best, t) end
  return { median = M.median(times), best = best, n = #times, first = first, last = last,
    peak = #peaks > 0 and M.median(peaks) or nil }
end

---Several steps in turn, each behind a probe, until the time is over, and three times at least:
---what they cost in units of the peak's work, free of the machine's moods.
---@param seconds number
---@param probe "f32"|"bf16"
---@param steps (fun(): any)[]
---@return number[] median of time times peak, by step
function M.turns(seconds, probe, steps)
  local costs, medians = {}, {}
  for i, step in ipairs(steps) do
    step()
    costs[i] = {}
  end
  local stop = base.now() + seconds
  repeat
    for i, step in ipairs(steps) do
      local peak = M.probes[probe]() or 1
      costs[i][#costs[i] + 1] = M.time(step) * peak
    end
  until base.now() > stop and #costs[1] >= 3
  for i, list in ipairs(costs) do medians[i] = M.median(list) end
  return medians
end

---The figures of a result: rate in `unit`, share of the peak, both from the median step.
---@param r table what rounds() gave
---@param given { amount: number, unit: string, work?: number, probe?: string }  a step's amount; its flop, or bytes for dram
function M.figures(r, given)
  local out = { rate = given.amount / r.median, best_rate = given.amount / r.best, unit = given.unit,
    ms = r.median * 1e3, best_ms = r.best * 1e3, rounds = r.n, first = r.first, last = r.last }
  if given.work then
    out.speed, out.speed_unit = given.work / r.median * 1e-9, M.units[given.probe]
    out.peak, out.probe = r.peak, given.probe
    out.share = r.peak and out.speed / r.peak
    out.work = given.work
  end
  return out
end

return M
