-- Win rates and statistics: published figures, brute force, and verdicts that add up.
local T = require "tests.lua.harness"
local pl = require "perilune"
local base = require("perilune.core").base
local coin = require "perilune.feedback.coin"
local progress = require "perilune.study.progress"
local stats = require "perilune.eval.stats"
local store = require "perilune.study.store"

progress.quiet(true)
store.set_home(T.tmpdir())

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

T.test("a judge's probabilities are the scores; whole verdicts are told beside them", function()
  local p = { x1 = 0.9, x2 = 0.8, x3 = 0.3, x4 = 0.6 }
  local w = pl.eval.winrate(answers { "x1", "x2", "x3", "x4", "same" }, {
    against = answers { "y", "y", "y", "y", "same" }, order = "given", judge = function(r) return p[r.a] end,
  })
  T.near(w.scores, { 0.9, 0.8, 0.3, 0.6, 0.5 }, 1e-12)
  T.near(w.win_rate, 100 * 3.1 / 5, 1e-12)
  local squares = 0
  for _, s in ipairs(w.scores) do squares = squares + (s - 0.62) ^ 2 end
  T.near(w.se, 100 * math.sqrt(squares / 4 / 5), 1e-12)
  T.near(w.discrete_win_rate, 100 * 3.5 / 5, 1e-12)
  T.eq({ w.win, w.tie, w.loss, w.invalid, w.asked }, { 3, 1, 1, 0, 5 })
  T.near(w.p_prefers_first, 3 / 4, 1e-12)
  T.near(w.rows[3].weight, 0.3, 1e-12)
  T.ok(tostring(w):find("counted whole: 70.0 %", 1, true), tostring(w))
  w = pl.eval.winrate(answers { "x1" }, { against = answers { "y" }, judge = function(r) return p[r.a] or 0.2 end })
  T.near(w.win_rate, 100 * (0.9 + 0.8) / 2, 1e-12)
  T.eq(w.discrete_win_rate, 100.0)
end)

T.test("invalid pairs and what is shown first are told", function()
  local w = pl.eval.winrate(answers { "x", "xx", "bad", "xxx" }, { against = answers { "y", "y", "y", "y" },
    judge = function(r) return r.a ~= "bad" and "a" or nil end })
  T.eq({ w.invalid, w.invalid_rate, w.p_prefers_first, w.discrete_win_rate }, { 1, 25.0, 1.0, nil })
  local texts, other = {}, {}
  for i = 1, 20 do texts[i], other[i] = "x" .. i, "y" end
  T.raises(function()
    pl.eval.winrate(answers(texts), { against = answers(other), judge = function() return "maybe" end })
  end, "40 of 40 answers of a Lua function are invalid")
  T.raises(function()
    pl.eval.winrate(answers { "x" }, { against = answers { "y" }, judge = "oracle:1", template = "pairwise" })
  end, "takes no judge prompt")
end)

T.test("AlpacaEval's annotations: the published figures, and preferences in all their forms", function()
  local rows = {}
  local function add(n, preference)
    for _ = 1, n do rows[#rows + 1] = { instruction = "i", output_1 = "r", output_2 = "mm", preference = preference } end
  end
  add(602, 2)
  add(1, 1.5)
  add(197, 1)
  local found = pl.eval.from_annotations(rows)
  T.near({ found.win_rate, found.standard_error }, { 75.3125, 1.5242 }, 5e-5)
  T.eq({ found.n_wins, found.n_draws, found.n_wins_base, found.n_total, found.invalid }, { 602, 1, 197, 800, 0 })
  T.eq({ found.discrete_win_rate, found.avg_length }, { 75.3125, 2.0 })
  local path = T.tmpdir() .. "/annotations.json"
  local function read(text)
    local file = assert(io.open(path, "w"))
    file:write(text)
    file:close()
    return pl.eval.from_annotations(path)
  end
  found = read '[{"preference":2},{"preference":1.75},{"preference":0},{"preference":0.0},{"preference":null},{"preference":1.0}]'
  T.eq({ found.n_wins, found.n_draws, found.n_wins_base, found.n_total, found.invalid }, { 2, 2, 1, 5, 1 })
  T.near({ found.win_rate, found.discrete_win_rate }, { 100 * 2.75 / 5, 60 }, 1e-12)
  T.eq(read("[]").win_rate, nil)
  T.eq(read('[{"preference":2}]').standard_error, 0.0)
  T.raises(function() read '[{"preference":3}]' end, "annotations.json: row 1: preference must be null or from 1 to 2, got 3")
  T.raises(function() read '{"preference":1}' end, "wanted a list")
  T.raises(function() read '[1' end, "annotations.json")
  T.raises(function() pl.eval.from_annotations(path .. "x") end, "annotations.jsonx")
end)

T.test("a judged win rate as annotations, and back", function()
  local w = pl.eval.winrate(answers { "x", "x", "x", "x", "x", "same" }, {
    against = answers { "y", "y", "y", "y", "y", "same" }, judge = "replay:tests/golden/replay/verdicts.jsonl",
  })
  local rows = pl.eval.annotations(w, { generator_1 = "base", generator_2 = "mine", annotator = "replay" })
  T.eq(rows[1], {
    instruction = "p1", output_1 = "y", generator_1 = "base", dataset = "perilune", output_2 = "x", generator_2 = "mine",
    annotator = "replay", preference = 2, price_per_example = pl.json.null, time_per_example = pl.json.null,
  })
  T.eq(rows[5].preference, pl.json.null)
  local path = T.tmpdir() .. "/mine.json"
  assert(base.write_file(path, pl.json.encode(rows)))
  local found = pl.eval.from_annotations(path)
  T.eq({ found.name, found.n_wins, found.n_draws, found.n_wins_base, found.invalid }, { "mine", w.win, w.tie, w.loss, w.invalid })
  T.near({ found.win_rate, found.standard_error }, { w.win_rate, w.se }, 1e-9)
  T.raises(function() pl.eval.annotations {} end, "what eval.winrate returned")
end)

T.test("rows are matched by prompt as often as it occurs, without prompts as they come", function()
  local function longer(r) return #r.a > #r.b and "a" or "b" end
  local a, b, bare = {}, {}, { { completion = "aaa" }, { completion = "b" } }
  for i = 1, 4 do
    for k = 1, 3 do a[#a + 1] = { prompt = "p" .. i, completion = ("x"):rep(k + 3) } end
    b[5 - i] = { prompt = "p" .. i, completion = "yy" }
  end
  local w = pl.eval.winrate(a, { against = b, judge = longer })
  T.eq({ w.win, w.invalid, w.asked, w.unanswered }, { 12, 0, 12, 0 })
  w = pl.eval.winrate(b, { against = a, judge = longer })
  T.eq({ w.loss, w.invalid, w.asked, w.unanswered }, { 12, 0, 12, 0 })
  w = pl.eval.winrate(bare, { against = { { completion = "cc" }, { completion = "dd" } }, judge = longer })
  T.eq({ w.win, w.loss }, { 1, 1 })
  T.raises(function() pl.eval.winrate(bare, { against = b, judge = longer }) end, "2 and 4 rows")
  T.raises(function() pl.eval.winrate(bare, { against = { b[1], b[2] }, judge = longer }) end, "row 1")
  -- in a plan prompts may not be known yet: such rows are taken as they come
  local recipe = pl.recipe { name = "unknown-prompts", run = function()
    local said = pl.feedback.demonstrate(function() return "abc" end, { "p1", "p2" }, {})
    local moved = said:map(function(row) return { prompt = row.text, completion = row.completion } end)
    pl.eval.winrate(moved, { against = moved, judge = longer })
  end }
  recipe:plan()
end)

T.test("a prompt that one side did not answer is an invalid comparison, on its place", function()
  local prompts = { "p1", "p2", "p3", "p4", "p2" }
  local function demos(refused, name)
    return pl.feedback.demonstrate(function(r)
      return refused[r.prompt] and "" or name .. " " .. r.prompt
    end, prompts)
  end
  local asked = 0
  local function judge(r)
    asked = asked + 1
    return r.a:sub(1, 1) == "a" and "a" or "b"
  end
  local function rate(mine, other) return pl.eval.winrate(mine, { against = other, judge = judge, order = "given" }) end
  for _, case in ipairs { { {}, { p3 = true } }, { { p3 = true }, {} } } do
    local w = rate(demos(case[1], "a"), demos(case[2], "b"))
    T.eq({ w.win, w.tie, w.loss, w.invalid, w.asked, w.unanswered }, { 4, 0, 0, 1, 5, 1 })
    T.eq(w.scores, { 1, 1, false, 1, 1 })
    T.eq(w.invalid_rate, 20.0)
    local row = w.rows[3]
    T.eq({ row.prompt, row.a or row.b, row.a == nil or row.b == nil, row.verdict },
      { "p3", case[1].p3 and "b p3" or "a p3", true, "invalid" })
    T.ok(tostring(w):find("1 answered on one side only", 1, true), tostring(w))
    T.eq(#pl.eval.annotations(w), 5)
  end
  T.eq(asked, 8, "nothing is asked about a missing answer")
  local w = rate(demos({ p1 = true }, "a"), demos({ p4 = true }, "b"))
  T.eq({ w.win, w.invalid, w.asked, w.unanswered }, { 3, 2, 5, 2 })
  T.eq(w.scores, { false, 1, 1, false, 1 })
  T.raises(function() rate(demos({}, "a"), demos({ p1 = 1, p2 = 1, p3 = 1, p4 = 1 }, "b")) end, "5 and 0 rows")
end)

T.test("what was remembered of a win rate with missing answers counts the same", function()
  local prompts = { "p1", "p2", "p3" }
  local function run()
    local mine = pl.data.from { { prompt = "p1", completion = "x" }, { prompt = "p2", completion = "x" },
      { prompt = "p3", completion = "x" } }
    local other = pl.data.from { { prompt = "p1", completion = "y" }, { prompt = "p3", completion = "y" } }
    return pl.eval.winrate(mine, { against = other, prompts = prompts, judge = "replay:tests/golden/replay/verdicts.jsonl",
      order = "given", cache = true })
  end
  local first, second = run(), run()
  T.eq(first.unanswered, 1)
  T.eq({ second.win, second.tie, second.loss, second.invalid, second.asked, second.unanswered },
    { first.win, first.tie, first.loss, first.invalid, first.asked, first.unanswered })
  T.eq(second.scores, first.scores)
  T.eq(second.scores[2], false)
  T.eq(second.rows[2].b, nil)
end)

-- ---- agreement ----------------------------------------------------------------------------------

local function labels(...)
  local a, b = {}, {}
  for _, cell in ipairs { ... } do
    for _ = 1, cell[3] do a[#a + 1], b[#b + 1] = cell[1], cell[2] end
  end
  return a, b
end

T.test("Cohen's kappa of the textbook's table: 20, 5, 10, 15", function()
  local a, b = labels({ "yes", "yes", 20 }, { "yes", "no", 5 }, { "no", "yes", 10 }, { "no", "no", 15 })
  T.near(pl.eval.agreement.kappa(a, b), 0.4, 1e-12)
  T.near(pl.eval.agreement.raw(a, b), 0.7, 1e-12)
  a[1], b[2] = false, false
  local _, n = pl.eval.agreement.kappa(a, b)
  T.eq(n, 48)
  T.eq(pl.eval.agreement.kappa({ "a", "b" }, { "a", "b" }), 1.0)
  T.eq(pl.eval.agreement.kappa({ "a", "b" }, { "b", "a" }), -1.0)
  T.eq(pl.eval.agreement.kappa({ "a", "a" }, { "a", "a" }), nil, "chance alone agrees")
  T.eq({ pl.eval.agreement.raw({ false }, { "a" }) }, { nil, 0 })
  T.raises(function() pl.eval.agreement.raw({ "a" }, {}) end, "lists of 1 and 0")
end)

T.test("Fleiss' kappa: 14 judges, 10 items, 5 labels give 0.210; two judges by hand", function()
  local lists = {}
  for k = 1, 14 do lists[k] = {} end
  for i, row in ipairs {
    { 0, 0, 0, 0, 14 }, { 0, 2, 6, 4, 2 }, { 0, 0, 3, 5, 6 }, { 0, 3, 9, 2, 0 }, { 2, 2, 8, 1, 1 }, { 7, 7, 0, 0, 0 },
    { 3, 2, 6, 3, 0 }, { 2, 5, 3, 2, 2 }, { 6, 5, 2, 1, 0 }, { 0, 2, 2, 3, 7 },
  } do
    local k = 0
    for label, times in ipairs(row) do
      for _ = 1, times do
        k = k + 1
        lists[k][i] = label
      end
    end
  end
  T.near(pl.eval.agreement.fleiss(lists), 0.210, 5e-4)
  -- agreement 2/3; labels 3 of 6 each, so chance 1/2: (2/3 - 1/2) / (1/2)
  T.near(pl.eval.agreement.fleiss { { "a", "b", "a" }, { "a", "b", "b" } }, 1 / 3, 1e-12)
  local _, n = pl.eval.agreement.fleiss { { "a", "b", false }, { "a", "b", "b" } }
  T.eq(n, 2)
end)

T.test("majority and leaning", function()
  local majority = pl.eval.agreement.majority
  T.eq(majority { "win", "win", "loss" }, "win")
  T.eq(majority { "win", "loss", "tie" }, "tie")
  T.eq(majority { "win", "loss" }, "tie")
  T.eq(majority { false, "loss", false }, "loss")
  T.eq(majority { false, false }, false)
  local verdicts, gaps = { "win", "loss", "win", "tie", false, "win" }, { 40, -50, -60, 99, 99, 10 }
  T.eq({ pl.eval.agreement.leaning(verdicts, gaps, 30) }, { 2 / 3, 3 })
  T.eq({ pl.eval.agreement.leaning(verdicts, gaps) }, { 3 / 4, 4 })
  T.eq({ pl.eval.agreement.leaning({ "tie" }, { 1 }) }, { nil, 0 })
end)

T.test("misuse is named", function()
  T.raises(function() pl.eval.winrate(answers { "x" }, { against = answers { "y" } }) end, "judge")
  T.raises(function()
    pl.eval.winrate(answers { "x" }, { against = { { prompt = "q", completion = "y" } }, judge = "oracle:1" })
  end, "answer different prompts")
  T.raises(function()
    pl.eval.winrate(answers { "x" }, { agianst = answers { "y" }, judge = "oracle:1" })
  end, 'did you mean "against"')
end)

T.done()
