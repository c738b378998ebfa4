-- A panel of judges: majority, agreement, and what each leans to, on judges whose leanings are known.
local T = require "tests.lua.harness"
local pl = require "perilune"

local function longer(r) return #r.a > #r.b and "a" or #r.b > #r.a and "b" or "tie" end
local function shorter(r) return #r.a < #r.b and "a" or #r.b < #r.a and "b" or "tie" end
local function first() return "a" end
local function lister(r)
  local a, b = r.a:find "^%- " ~= nil, r.b:find "^%- " ~= nil
  return a == b and "tie" or a and "a" or "b"
end

-- Long and short answers on either side; every third of the short ones is a list.
local function candidates()
  local rows = {}
  for i = 1, 24 do
    local short = i % 3 == 0 and "- one\n- two" or "one two"
    local long = "a long answer of many words that goes on " .. ("and on "):rep(i)
    rows[i] = { prompt = "p" .. i, a = i % 2 == 0 and long or short, b = i % 2 == 0 and short or long }
  end
  return rows
end

local function row(p, name)
  for _, r in ipairs(p.judges) do
    if r.judge == name then return r end
  end
  error("no judge " .. name)
end

T.test("three judges: their leanings, agreement and majority", function()
  local p = pl.feedback.panel({ longer, shorter, first }, candidates())
  local a, b, c = p.judges[1], p.judges[2], p.judges[3]
  T.eq({ a.judge, b.judge, c.judge, p.judges[4].judge }, { "a Lua function", "a Lua function (2)", "a Lua function (3)",
    "length alone" })
  T.eq({ a.prefers_longer, a.prefers_first, a.orders_disagree, a.win, a.loss }, { 1.0, 0.5, 0.0, 12, 12 })
  T.eq({ b.prefers_longer, b.prefers_lists }, { 0.0, 1.0 })
  T.eq({ c.prefers_longer, c.prefers_first, c.orders_disagree, c.tie }, { nil, 1.0, 1.0, 24 })
  T.eq({ #p.agreement, p.agreement[1].agreement, p.agreement[1].kappa, p.agreement[1].n }, { 3, 0.0, -1.0, 24 })
  T.eq(p.majority, { asked = 24, win = 0, tie = 24, loss = 0, invalid = 0 })
  T.eq(#p:preferences(), 0)
  T.ok(p.fleiss < 0)
end)

T.test("a majority decides; the length-only judge stands beside it", function()
  local p = pl.feedback.panel({ longer, longer, lister }, candidates())
  T.eq({ p.majority.win, p.majority.loss, p.majority.tie }, { 12, 12, 0 })
  T.eq(row(p, "length alone").with_others, 1.0)
  T.eq({ p.judges[1].with_others, p.judges[3].with_others }, { 0.0, 0.0 })
  T.eq({ p.judges[3].prefers_lists, p.judges[3].tie }, { 1.0, 16 })
  local prefs = p:preferences()
  T.eq(#prefs, 24)
  T.ok(#prefs[1].chosen > #prefs[1].rejected)
  T.eq(p.verdicts[2], { majority = "win", ["a Lua function"] = "win", ["a Lua function (2)"] = "win", ["a Lua function (3)"] = "tie" })
  local shown = tostring(p)
  for _, text in ipairs { "with others", "kappa", "length alone", "of 24 asked", "Fleiss" } do
    T.ok(shown:find(text, 1, true), text)
  end
end)

T.test("invalid verdicts are nobody's vote", function()
  local silent = function() return nil end
  local p = pl.feedback.panel({ longer, silent }, candidates(), { max_invalid = 1 })
  T.eq({ p.majority.win, p.majority.loss, p.judges[2].invalid, p.judges[2].win_rate }, { 12, 12, 24, nil })
  T.eq({ p.agreement[1].n, p.agreement[1].kappa, p.fleiss }, { 0, nil, nil })
  p = pl.feedback.panel({ silent, silent }, candidates(), { max_invalid = 1 })
  T.eq(p.majority.invalid, 24)
end)

T.test("misuse is named", function()
  T.raises(function() pl.feedback.panel({ longer }, candidates()) end, "two judges or more")
  T.raises(function() pl.feedback.panel(pl.ai(longer), candidates()) end, "two judges or more")
  T.raises(function() pl.feedback.panel({ longer, first }, { { prompt = "p", completion = "x" } }) end, "fewer than two")
  T.raises(function() pl.feedback.panel({ longer, first }, candidates(), { ordr = "both" }) end, 'did you mean "order"')
end)

T.test("the same service twice is one judge", function()
  T.raises(function()
    pl.feedback.panel({ "openai:m@http://127.0.0.1:1/v1", "openai:m@http://127.0.0.1:1/v1?concurrency=3" },
      { { prompt = "p", completions = { { text = "a" }, { text = "b" } } } })
  end, "the same judge")
end)

T.done()
