--- Statistics of verdicts and scores: rates with standard errors, intervals that
--- resample prompts and seeds, paired between arms, and the length-controlled rate.
--- Plain Lua on plain numbers.
local base = require("perilune.core").base

local stats = {}

local Z95 = 1.959963984540054

---@param list (number|false)[] false entries are left out
---@return number|nil
function stats.mean(list)
  local sum, n = 0, 0
  for i = 1, #list do
    local v = list[i]
    if v then sum, n = sum + v, n + 1 end
  end
  return n > 0 and sum / n or nil
end

---The win rate of clustered scores and its standard error, in percent.
---@param clusters number[][] scores from 0 to 1 of each prompt's valid verdicts
---@return number|nil rate nil if there is no score at all
---@return number|nil se sample standard deviation over root n; over clusters where a prompt has several
function stats.rate(clusters)
  local sum, n, groups = 0, 0, 0
  for _, scores in ipairs(clusters) do
    for _, s in ipairs(scores) do sum, n = sum + s, n + 1 end
    if #scores > 0 then groups = groups + 1 end
  end
  if n == 0 then return nil, nil end
  local mean, squares = sum / n, 0
  for _, scores in ipairs(clusters) do
    local off = 0
    for _, s in ipairs(scores) do off = off + s - mean end
    squares = squares + off * off
  end
  -- One score a prompt: std(n-1)/sqrt(n). Several: the cluster form of the same.
  local se = groups > 1 and math.sqrt(squares * groups / (groups - 1)) / n or 0
  return 100 * mean, 100 * se
end

---The 95 % interval of a rate from its standard error, inside 0..100.
---@param rate number
---@param se number
---@return number low
---@return number high
function stats.normal_interval(rate, se)
  return math.max(0, rate - Z95 * se), math.min(100, rate + Z95 * se)
end

local INTERVAL = {
  resamples = { 2000, min = 100, doc = "how often to resample" },
  level = { 0.95, min = 0.5, max = 0.999, doc = "of the interval" },
  seed = { 0, doc = "of the resampling" },
  prompts = { "own", choices = { "shared", "own" },
    doc = "shared: prompt i is the same in every seed and is resampled with all of them" },
}

-- A stream of the generator that nothing else uses.
local SEED_STREAM = 0x626f6f74

local function quantile(sorted, q)
  local at = q * (#sorted - 1) + 1
  local low = math.floor(at)
  local high = math.min(low + 1, #sorted)
  return sorted[low] + (at - low) * (sorted[high] - sorted[low])
end

-- How often each of n prompts came up in each resample, f64 [resamples, n]. A study asks
-- for many intervals over the same prompts: the last few draws are kept.
local drawn, KEPT = {}, 8

local function draw_counts(seed, round, resamples, n)
  local name = ("%d %d %d %d"):format(seed, round, resamples, n)
  for _, entry in ipairs(drawn) do
    if entry.name == name then return entry.counts end
  end
  local pl = require "perilune"
  local picks = pl.randint(1, n + 1, resamples, n, {
    seed = (seed * 1000003 + round * 8191 + n) & 0x7fffffff,
  }):tolist()
  for r, row in ipairs(picks) do
    local counts = {}
    for i = 1, n do counts[i] = 0 end
    for i = 1, n do counts[row[i]] = counts[row[i]] + 1 end
    picks[r] = counts
  end
  table.insert(drawn, 1, { name = name, counts = pl.tensor(picks, { dtype = "f64" }) })
  drawn[KEPT + 1] = nil
  return drawn[1].counts
end

-- Sum and number of a seed's values in each resample: lists of [resamples].
local function resampled(row, n, counts)
  local pl = require "perilune"
  local columns = {}
  for i = 1, n do columns[i] = row[i] and { row[i], 1 } or { 0, 0 } end
  local both = pl.no_grad(function()
    return counts:matmul(pl.tensor(columns, { dtype = "f64" }))
  end):tolist()
  return both
end

---Mean and percentile-bootstrap interval. Seeds are resampled, and prompts within
---them; with one seed prompts alone. Give paired differences (stats.contrast) to
---compare arms.
---@param values (number|false)[][] values[seed][prompt]; false is missing
---@param opts? table see INTERVAL
---@return {mean: number, se: number, ci_low: number, ci_high: number, n: integer}
function stats.interval(values, opts)
  local o = require("perilune.options").resolve("eval.interval", INTERVAL, opts)
  if type(values) ~= "table" or type(values[1]) ~= "table" then
    error("eval.interval: values must be a list of lists, values[seed][prompt]", 2)
  end
  local seeds, sum, n, widest = #values, 0, 0, 0
  for _, row in ipairs(values) do
    widest = math.max(widest, #row)
    for i = 1, #row do
      if row[i] then sum, n = sum + row[i], n + 1 end
    end
  end
  if n == 0 then error("eval.interval: there are no values", 2) end
  -- sums[k][s]: seed s as the k-th pick; with shared prompts every pick sees the same draw.
  local sums = {}
  for k = 1, o.prompts == "shared" and 1 or seeds do
    sums[k] = {}
    for s, row in ipairs(values) do
      local size = o.prompts == "shared" and widest or #row
      sums[k][s] = resampled(row, size, draw_counts(o.seed, k, o.resamples, size))
    end
  end
  local means = {}
  for r = 1, o.resamples do
    local total, weight = 0, 0
    for k = 1, seeds do
      local pick = math.floor(base.uniform(o.seed, SEED_STREAM, (r - 1) * seeds + k - 1) * seeds) + 1
      local got = (sums[k] or sums[1])[pick][r]
      total, weight = total + got[1], weight + got[2]
    end
    if weight > 0 then means[#means + 1] = total / weight end
  end
  table.sort(means)
  local centre, squares = stats.mean(means), 0
  for _, m in ipairs(means) do squares = squares + (m - centre) ^ 2 end
  local tail = (1 - o.level) / 2
  return {
    mean = sum / n, se = math.sqrt(squares / math.max(1, #means - 1)), n = n,
    ci_low = quantile(means, tail), ci_high = quantile(means, 1 - tail),
  }
end

---A weighted sum of arms, seed by seed and prompt by prompt: a paired difference.
---@param cells table<string, (number|false)[][]> cells[arm][seed][prompt]
---@param weights table<string, number> such as { a = 1, b = -1 }
---@return (number|false)[][] values[seed][prompt]; missing where an arm misses
function stats.contrast(cells, weights)
  local names = {}
  for name in pairs(weights) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    if not cells[name] then
      local known = {}
      for arm in pairs(cells) do known[#known + 1] = arm end
      error("eval.contrast: " .. require("perilune.options").unknown("arm", name, known), 2)
    end
  end
  local out, first = {}, cells[names[1]]
  for s = 1, #first do
    out[s] = {}
    for i = 1, #first[s] do
      local sum = 0
      for _, name in ipairs(names) do
        local row = cells[name][s]
        if not row or #row ~= #first[s] then
          error(("eval.contrast: arms %s and %s differ in size in seed %d"):format(names[1], name, s), 2)
        end
        sum = sum and row[i] and sum + weights[name] * row[i]
      end
      out[s][i] = sum or false
    end
  end
  return out
end

---Whether a claim about a difference holds, from its interval and a margin.
---@param interval {ci_low: number, ci_high: number}
---@param margin number at least 0; differences below it do not count
---@param kind "above"|"not below"|"below"
---@return "yes"|"no"|"undecided"
function stats.verdict(interval, margin, kind)
  local low, high = interval.ci_low, interval.ci_high
  local yes, no
  if kind == "above" then
    yes, no = low > margin, high <= margin
  elseif kind == "not below" then
    yes, no = low >= -margin, high < -margin
  elseif kind == "below" then
    yes, no = high < -margin, low >= -margin
  else
    error(("eval.verdict: kind must be above, not below or below, got %s"):format(tostring(kind)), 2)
  end
  return yes and "yes" or no and "no" or "undecided"
end

-- A tiny pull towards 0 keeps separable data finite.
local RIDGE = 1e-3

---Length-controlled win rate for any prompt set: logit P(win) = a + b tanh(d/sd), d the
---difference in length, fitted by iteratively reweighted least squares; the rate is the
---fit at equal lengths. (AlpacaEval's form without the difficulties of its own prompts.)
---@param scores number[] from 0 to 1: how the first answer fared
---@param lengths number[] length of the first answer minus that of the second
---@return {rate: number, slope: number} percent; slope b: above 0 the longer answer wins
function stats.length_controlled(scores, lengths)
  local n = #scores
  if n < 2 or #lengths ~= n then error("eval.length_controlled: needs as many scores as lengths, two or more", 2) end
  local centre, spread = stats.mean(lengths), 0
  for _, d in ipairs(lengths) do spread = spread + (d - centre) ^ 2 end
  local sd = math.sqrt(spread / (n - 1))
  local a, b = 0, 0
  for _ = 1, 100 do
    local haa, hab, hbb, ga, gb = RIDGE, 0, RIDGE, -RIDGE * a, -RIDGE * b
    for i = 1, n do
      local x = sd > 0 and 2 / (1 + math.exp(-2 * lengths[i] / sd)) - 1 or 0
      local p = 1 / (1 + math.exp(-(a + b * x)))
      local w = p * (1 - p)
      haa, hab, hbb = haa + w, hab + w * x, hbb + w * x * x
      ga, gb = ga + scores[i] - p, gb + (scores[i] - p) * x
    end
    local det = haa * hbb - hab * hab
    local da, db = (hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det
    -- Steps are bounded, for far from the optimum Newton's can overshoot.
    local size = math.max(1, math.abs(da), math.abs(db))
    a, b = a + da / size, b + db / size
    if math.abs(da) + math.abs(db) < 1e-10 then break end
  end
  return { rate = 100 / (1 + math.exp(-a)), slope = b }
end

return stats
