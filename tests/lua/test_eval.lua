-- Win rates and statistics: published figures, brute force, and verdicts that add up.
local T = require "tests.lua.harness"
local pl = require "perilune"
local base = require("perilune.core").base
local coin = require "perilune.feedback.coin"
local stats = require "perilune.eval.stats"

local function singles(wins, ties, losses)
  local out = {}
  for _ = 1, wins do out[#out + 1] = { 1 } end
  for _ = 1, ties do out[#out + 1] = { 0.5 } end
  for _ = 1, losses do out[#out + 1] = { 0 } end
  return out
end

T.test("the published rate: 602 wins, 1 tie, 197 losses", function()
  local rate, se = stats.rate(singles(602, 1, 197))
  T.near(rate, 75.3125, 1e-12)
  T.near(se, 1.5242, 5e-5)
end)

T.test("all wins: 100 with error 0; nothing valid: no rate", function()
  local rate, se = stats.rate(singles(5, 0, 0))
  T.eq(rate, 100.0)
  T.eq(se, 0.0)
  T.eq(stats.rate { {}, {} }, nil)
end)

T.test("the error of clustered verdicts, by brute force", function()
  -- Two verdicts a prompt that always agree carry the information of one.
  local _, once = stats.rate(singles(6, 1, 5))
  local doubled = {}
  for i, c in ipairs(singles(6, 1, 5)) do doubled[i] = { c[1], c[1] } end
  local _, twice = stats.rate(doubled)
  T.near(twice, once, 1e-12)
end)

T.test("AlpacaEval's order coin equals Python's", function()
  local rows = {
    { "", 0.14709790944563927, false }, { "a", 0.7190584986555104, true }, { "Hello", 0.40432994219397655, false },
    { "Give three tips for staying healthy.", 0.7010946185096358, true }, { "2+2?", 0.593415743158021, true },
    { "é", 0.4593815992547009, false }, { "Write a poem.", 0.02461800284574589, false },
  }
  for _, row in ipairs(rows) do
    T.near(coin.uniform("is_switched_outputs" .. row[1] .. "0"), row[2], 1e-16, row[1])
    T.eq(coin.switched(row[1]), row[3], row[1])
  end
end)

T.test("SHA-512 of the standard's example", function()
  local hex = coin.sha512("abc"):gsub(".", function(c) return ("%02x"):format(c:byte()) end)
  T.eq(hex:sub(1, 32), "ddaf35a193617abacc417349ae204131")
  T.eq(#coin.sha512(("x"):rep(111)), 64)
end)

local function noise(n, stream)
  local out = {}
  for i = 1, n do out[i] = 10 * base.normal(7, stream, i) end
  return out
end

T.test("one seed: the bootstrap's error is that of the mean", function()
  local values = noise(400, 1)
  local mean = stats.mean(values)
  local squares = 0
  for _, v in ipairs(values) do squares = squares + (v - mean) ^ 2 end
  local se = math.sqrt(squares / 399 / 400)
  local interval = stats.interval { values }
  T.near(interval.mean, mean, 1e-12)
  T.near(interval.se / se, 1, 0.08)
  T.near(interval.ci_low, mean - 1.96 * se, 0.25 * se)
  T.near(interval.ci_high, mean + 1.96 * se, 0.25 * se)
end)

T.test("seeds that differ widen the interval", function()
  local same, apart = {}, {}
  for s = 1, 3 do
    same[s], apart[s] = noise(200, s), noise(200, s)
    for i = 1, 200 do apart[s][i] = apart[s][i] + 20 * s end
  end
  local a, b = stats.interval(same), stats.interval(apart)
  T.ok(b.se > 4 * a.se, "between-seed variance is missing")
  T.eq(stats.interval(same), a, "the interval is a function of its seed")
end)

T.test("shared prompts are resampled together", function()
  -- The same prompt effect in all seeds does not average out over them.
  local own, shared = {}, noise(200, 9)
  for s = 1, 4 do own[s] = shared end
  T.ok(stats.interval(own, { prompts = "shared" }).se > 1.5 * stats.interval(own, { prompts = "own" }).se)
end)

T.test("contrasts pair the arms; what is missing on one side is missing", function()
  local cells = { a = { { 1, 2, false } }, b = { { 0, 5, 1 } } }
  T.eq(stats.contrast(cells, { a = 1, b = -1 }), { { 1, -3, false } })
  T.raises(function() stats.contrast(cells, { a = 1, bb = -1 }) end, 'unknown arm "bb" (known: a, b)')
end)

T.test("whether a claim holds, from the interval and the margin", function()
  local function v(low, high, kind) return stats.verdict({ ci_low = low, ci_high = high }, 2, kind) end
  T.eq(v(2.1, 5, "above"), "yes")
  T.eq(v(-1, 2, "above"), "no")
  T.eq(v(1, 5, "above"), "undecided")
  T.eq(v(-1.9, 9, "not below"), "yes")
  T.eq(v(-9, -2.1, "not below"), "no")
  T.eq(v(-3, 1, "not below"), "undecided")
  T.eq(v(-9, -3, "below"), "yes")
  T.raises(function() v(1, 2, "over") end, "above")
end)

T.test("length control: equal answers give 50; a known law is found again", function()
  local scores, lengths = {}, {}
  for i = 1, 40 do scores[i], lengths[i] = 0.5, i % 7 - 3 end
  T.near(stats.length_controlled(scores, lengths).rate, 50, 1e-6)
  for i = 1, 300 do lengths[i] = 20 + 15 * base.normal(3, 1, i) end
  local mean, squares = stats.mean(lengths), 0
  for i = 1, 300 do squares = squares + (lengths[i] - mean) ^ 2 end
  local sd = math.sqrt(squares / 299)
  for i = 1, 300 do
    local e = math.exp(2 * lengths[i] / sd)
    scores[i] = 1 / (1 + math.exp(-(0.4 + 2 * (e - 1) / (e + 1))))
  end
  local fit = stats.length_controlled(scores, lengths)
  T.near(fit.rate, 100 / (1 + math.exp(-0.4)), 0.1)
  T.near(fit.slope, 2, 0.01)
  T.ok(100 * stats.mean(scores) > fit.rate + 15, "the raw rate is far from it")
end)

local function answers(texts, other)
  local rows = {}
  for i, text in ipairs(texts) do
    rows[i] = { prompt = "p" .. i, completions = { { text = text }, other and { text = other[i] } } }
  end
  return pl.data.from(rows)
end

T.test("a recorded judge: win, tie by disagreement, tie, loss, invalid; they add up", function()
  local w = pl.eval.winrate(answers { "x", "x", "x", "x", "x", "same" }, {
    against = answers { "y", "y", "y", "y", "y", "same" }, judge = "replay:tests/golden/replay/verdicts.jsonl",
  })
  T.eq({ w.win, w.tie, w.loss, w.invalid, w.asked }, { 1, 3, 1, 1, 6 })
  T.near(w.win_rate, 100 * (1 + 1.5) / 5, 1e-12)
  T.eq(w.scores, { 1, 0.5, 0.5, 0, false, 0.5 })
  T.near(w.order_disagreement, 25, 1e-12)
  T.eq(w.rows[4].verdict, "loss")
  T.eq(w.rows[6].verdict, "tie")
  T.ok(tostring(w):find("of 6 asked", 1, true))
end)

T.test("a judge that always takes the first answer: ties only, and its bias is reported", function()
  local calls = 0
  local w = pl.eval.winrate(answers { "x", "xx", "xxx" }, {
    against = answers { "y", "y", "y" }, judge = function()
      calls = calls + 1
      return "a"
    end,
  })
  T.eq({ w.win, w.tie, w.loss, w.invalid }, { 0, 3, 0, 0 })
  T.eq(w.order_disagreement, 100.0)
  T.eq(calls, 6)
  T.near(w.length, 2, 1e-12)
end)

T.test("several answers a prompt; all invalid gives no rate", function()
  local longer = function(r) return #r.a > #r.b and "a" or "b" end
  local w = pl.eval.winrate(answers({ "xxx", "x" }, { "x", "x" }), { against = answers { "yy", "yy" }, judge = longer })
  T.eq({ w.win, w.loss, w.asked }, { 1, 3, 4 })
  T.eq(w.scores, { 0.5, 0 })
  w = pl.eval.winrate(answers { "x" }, { against = answers { "y" }, judge = function() return "maybe" end })
  T.eq({ w.invalid, w.asked, w.win_rate }, { 1, 1, nil })
  T.ok(tostring(w):find("win rate -", 1, true))
end)

T.test("a judge of length alone: the rate at equal lengths is told beside the raw one", function()
  local mine, other = {}, {}
  for i = 1, 40 do
    mine[i], other[i] = ("x"):rep(5 + i % 7), ("y"):rep(4 + i % 5)
  end
  local w = pl.eval.winrate(answers(mine), { against = answers(other), judge = function(r)
    return #r.a > #r.b and "a" or #r.b > #r.a and "b" or "tie"
  end })
  T.ok(w.win_rate > 70 and w.lc_slope > 2 and w.lc_win_rate < w.win_rate - 10, tostring(w))
  T.ok(tostring(w):find("at equal lengths", 1, true))
end)

T.test("misuse is named", function()
  T.raises(function() pl.eval.winrate(answers { "x" }, { against = answers { "y" } }) end, "judge")
  T.raises(function()
    pl.eval.winrate(answers { "x" }, { against = answers { "y", "z" }, judge = "oracle:1" })
  end, "1 prompts were answered on one side and 2")
  T.raises(function()
    pl.eval.winrate(answers { "x" }, { agianst = answers { "y" }, judge = "oracle:1" })
  end, 'did you mean "against"')
end)

T.done()
