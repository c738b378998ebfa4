-- The report page: hostile texts stay texts, nothing is fetched, charts are there; tables for people.
local T = require "tests.lua.harness"
local pl = require "perilune"
local base = require("perilune.core").base
local progress = require "perilune.study.progress"
local store = require "perilune.study.store"
local svg = require "perilune.study.svg"
local html = require "perilune.study.html"

progress.quiet(true)
store.set_home(T.tmpdir() .. "/home")

local HOSTILE = "<script>alert(1)</script>\"'><img src=http://evil.example/x onerror=alert(2)>\27[31m&amp;"

local result = {
  margin = 2,
  arms = {
    { name = HOSTILE, win_rate = 40.0, ci_low = 30.0, ci_high = 50.0, true_quality = 20.5, quality_low = 10.0,
      quality_high = 30.0, win_seeds = { 38.0, 42.0 }, n = 100 },
    { name = "sft", win_rate = 60.0, ci_low = 50.0, ci_high = 70.0, true_quality = 70.5, quality_low = 60.0,
      quality_high = 80.0, n = 100 },
  },
  claims = { { text = "it helps " .. HOSTILE, holds = "undecided", effect = 1.5, ci_low = -2.0, ci_high = 5.0 } },
  notes = { HOSTILE }, more = { { a = 1, b = HOSTILE } }, plain = HOSTILE,
}

local function page()
  local _, run = pl.recipe({ name = "report", doc = HOSTILE, params = { text = { HOSTILE } }, run = function(_, run)
    run:note(HOSTILE)
    run:log { note = HOSTILE, value = 0 / 0 }
    run:bars { title = HOSTILE, rows = { { label = HOSTILE, value = -3, ci_low = -5, ci_high = 1, points = { 0 / 0, 2 } } } }
    run:curves { title = "c", series = { { label = HOSTILE, x = { 1, 2, 3 }, y = { 1, 0 / 0, math.huge } } } }
    run:table { title = "t", columns = { HOSTILE, "n" }, rows = { { HOSTILE, 1.5 } } }
    run:samples { title = "s", rows = { { prompt = HOSTILE .. "\0\xff", answers = { { label = "x", text = HOSTILE .. "\0\xff", verdict = HOSTILE } } } } }
    return result
  end }):run()
  return assert(base.read_file(run.dir .. "/report.html"))
end

T.test("no text becomes markup, and the policy forbids everything but styles", function()
  local text = page()
  T.ok(text:find("default-src 'none'; style-src 'unsafe-inline'", 1, true))
  for _, bad in ipairs { "<script", "<img", "<link", "onerror=alert(2)>", "src=\"", "@import", "\0", "\27" } do
    T.ok(not text:find(bad, 1, true), bad)
  end
  T.ok(utf8.len(text), "the page is UTF-8")
  T.ok(text:find("&lt;script&gt;alert(1)", 1, true))
  T.ok(not text:lower():find "nan[,%s\"]", "no NaN in a chart")
  local _, charts = text:gsub("<svg", "")
  T.eq(charts, 5)
end)

-- Every tag that is opened is closed, in order.
T.test("the page is well formed", function()
  local open, void = {}, { meta = true, br = true }
  for close, name, rest in page():gsub("<!doctype html>", ""):gsub("<style>.-</style>", ""):gmatch "<(/?)(%a%w*)([^>]*)>" do
    if close == "/" then
      T.eq(table.remove(open), name)
    elseif not void[name] and rest:sub(-1) ~= "/" then
      open[#open + 1] = name
    end
  end
  T.eq(open, {})
end)

T.test("numbers and escapes", function()
  T.eq(html.number(0.5), "0.5")
  T.eq(html.number(123.456), "123.5")
  T.eq(html.number(1e-7), "1.00e-07")
  T.eq(html.number(3), "3")
  T.eq(html.text "a<b>&\"'", "a&lt;b&gt;&amp;&quot;&#39;")
end)

T.test("charts of nothing, of one point and of equal values are drawn", function()
  for _, series in ipairs { {}, { { x = {}, y = {} } }, { { x = { 1 }, y = { 2 } } }, { { x = { 1, 2 }, y = { 2, 2 } } } } do
    local text = svg.curves { series = series }
    T.ok(text:find "^<svg.*</svg>$" and not text:find "nan" and not text:find "inf")
  end
  T.ok(svg.bars { rows = {} }:find "</svg>")
  T.ok(not svg.bars { rows = { { label = "x", value = 0.0 } } }:find "nan")
end)

T.test("results as text: aligned tables, the same digits down a column", function()
  local text = require "perilune.cli.result" {
    arms = { { name = "a", win_rate = 60, n = 3 }, { name = "longer", win_rate = 5.25, n = 12 } }, notes = { "a note" }, x = 1.5,
  }
  T.eq(text, table.concat({
    "arms", "name    win rate   n", "------  --------  --", "a           60.0   3", "longer       5.2  12", "", "x: 1.5000", "",
    "a note",
  }, "\n"))
  T.eq(require "perilune.cli.result"(nil), "")
end)

T.done()
