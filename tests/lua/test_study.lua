-- Recipes: declaration, parameters, run directories, plans on stand-ins.
local T = require "tests.lua.harness"
local pl = require "perilune"
local base = require("perilune.core").base
local progress = require "perilune.study.progress"
local store = require "perilune.study.store"

progress.quiet(true)
store.set_home(T.tmpdir() .. "/home")

local function nothing() return {} end

T.test("a declaration that is wrong says what", function()
  for _, case in ipairs {
    { { run = nothing }, "name must be a word" }, { { name = "a b", run = nothing }, "name must be a word" },
    { { name = "x" }, "run must be a function" }, { { name = "x", run = nothing, parms = {} }, 'did you mean "params"' },
    { { name = "x", run = nothing, params = { n = 3 } }, "parameter n must be a table" },
    { { name = "x", run = nothing, params = { n = { 3, chioces = {} } } }, 'did you mean "choices"' },
    { { name = "x", run = nothing, params = { ["a.b"] = { 3 } } }, "letters, digits" },
  } do
    T.raises(function() pl.recipe(case[1]) end, case[2])
  end
end)

local seen
local recipe = pl.recipe {
  name = "params", doc = "reads parameters",
  params = {
    beta = { 0.5, min = 0, doc = "a number" }, n = { 3, min = 1 }, fast = { false }, name = { "x", choices = { "x", "y" } },
    list = { { 1, 2 }, type = "table" }, teacher = { weak = { "w" }, deep = { er = { 1 } } }, free = { type = "number" },
    group = { only = { type = "string" } },
  },
  run = function(p)
    seen = p
    return { ok = true }
  end,
}

local function run(...) return recipe:run(recipe:parse { ... }) end

T.test("key=value words become typed parameters", function()
  run("beta=0.25", "n=7", "fast=yes", "name=y", "list=1,b", "teacher.weak=local:DIR?temperature=1.5", "teacher.deep.er=4", "free=1e-3")
  T.eq(seen, {
    beta = 0.25, n = 7, fast = true, name = "y", list = { 1, "b" }, free = 1e-3, group = {},
    teacher = { weak = "local:DIR?temperature=1.5", deep = { er = 4 } },
  })
  run()
  T.eq({ seen.beta, seen.teacher.weak, seen.free }, { 0.5, "w", nil })
end)

T.test("wrong words are named, near names are suggested", function()
  for _, case in ipairs {
    { "bta=1", 'did you mean "beta"' }, { "weak=1", 'did you mean "teacher.weak"' }, { "beta", "write key=value" },
    { "beta=x", "must be a number" }, { "fast=maybe", "true or false" }, { "n=2.5", "integer" }, { "beta=-1", "at least 0" },
    { "name=z", "name" }, { "n=0", "at least 1" }, { "beta=nan", "number" },
  } do
    T.raises(function() run(case[1]) end, case[2])
  end
  T.raises(function() run("n=1", "n=2") end, "given twice")
end)

local function read(dir, name) return assert(base.read_file(dir .. "/" .. name)) end

T.test("a run leaves its trail", function()
  local prompts = { "Q: sort: fox cat\nA:", "Q: length of: cat\nA:", "Q: add: 1+1 2+2\nA:" }
  local result, r = pl.recipe({ name = "trail", params = { n = { 2 }, file = { "lua/perilune/init.lua" } }, run = function(p, run)
    run:at { arm = "weak", seed = 4 }
    local weak = pl.feedback.demonstrate("oracle:0.2", prompts)
    local w = pl.eval.winrate(weak, { against = pl.feedback.demonstrate("oracle:1", prompts), judge = "oracle:1" })
    run:log { win_rate = w.win_rate }
    run:metric("own", { step = 1, loss = 2.5 })
    run:samples { title = "some", rows = { { prompt = "p", answers = { { label = "a", text = "<b>" } } } } }
    run:at {}
    return { win_rate = w.win_rate, n = p.n, none = 0 / 0 }
  end }):run()
  T.eq(result.n, 2)
  local manifest = base.json_decode(read(r.dir, "manifest.json"))
  T.eq({ manifest.recipe, manifest.parameters.n, #manifest.stage_keys, manifest.seeds }, { "trail", 2, 3, { "4" } })
  T.ok(manifest.processor and manifest.kernels and manifest.threads and manifest.code_version)
  T.eq(manifest.data, { file = base.sha256(assert(base.read_file "lua/perilune/init.lua")) })
  T.eq(base.json_decode(read(r.dir, "config.resolved.json")), { n = 2, file = "lua/perilune/init.lua" })
  T.ok(read(r.dir, "recipe.lua"):find("a run leaves its trail", 1, true))
  local first = base.json_decode(read(r.dir, "judgements.jsonl"):match "[^\n]+")
  T.eq({ first.arm, first.seed, first.prompt, first.b }, { "weak", 4, prompts[1], " cat fox" })
  T.ok(read(r.dir, "metrics.jsonl"):find('"loss":2.5', 1, true))
  local _, stages = read(r.dir, "stages.jsonl"):gsub("\n", "")
  T.eq(stages, 3)
  T.ok(read(r.dir, "report.html"):find("&lt;b&gt;", 1, true))
  T.ok(not r.dir:find "[^%w/_.-]")
end)

T.test("two runs in one second have directories of their own", function()
  local _, a = run()
  local _, b = run()
  T.ok(a.dir ~= b.dir)
  -- as where another process makes the directory after this one has looked
  local exists, before = base.exists, #base.list_dir(store.home())
  base.exists = function(path) return not path:find "/params%-[^/]*$" and exists(path) end
  local ok = pcall(run)
  base.exists = exists
  T.eq({ ok, #base.list_dir(store.home()) }, { true, before + 1 })
end)

T.test("an error of the recipe keeps its file and line, and what was done before", function()
  local done = 0
  local broken = pl.recipe { name = "broken", run = function(_, run)
    run:remember { name = "first", kind = "table", compute = function()
      done = done + 1
      return done
    end }
    local t = nil
    return t.field
  end }
  T.raises(function() broken:run() end, "test_study.lua:%d+:")
  T.raises(function() broken:run() end, "attempt to index a nil value")
  T.eq(done, 1)
end)

local planned = pl.recipe {
  name = "planned", params = { decide = { false } },
  run = function(p, run)
    local prompts = {}
    for i = 1, 10 do prompts[i] = { prompt = ("Q: length of: %s\nA:"):format(("cat "):rep(i)) } end
    run:at { arm = "one" }
    local demos = pl.feedback.demonstrate("oracle:0.5", prompts, { n = 2, max_tokens = 8 })
    local short = demos:filter(function(row) return #row.prompt < 40 end)
    local better = pl.feedback.demonstrate("oracle:0.9", prompts, { n = 2, max_tokens = 8 })
    local prefs = pl.feedback.compare("oracle:1", pl.feedback.join(short, better))
    local w = pl.eval.winrate(demos, { against = better, judge = "oracle:1" })
    if p.decide and w.win_rate > 50 then error "never here" end
    return { rate = w.win_rate / 2, n = #prefs }
  end,
}

T.test("a plan counts stages, calls and tokens without a call", function()
  local before = base.list_dir(store.home() .. "/.stages")
  local run_, ended = planned:plan()
  T.eq(ended, nil)
  local calls = {}
  for i, s in ipairs(run_.plan) do calls[i] = { s.name, s.calls } end
  T.eq({ calls[1], calls[2], calls[4] }, { { "demonstrate", 20 }, { "demonstrate", 20 }, { "judge", 40 } })
  T.eq(calls[3][1], "compare")
  T.ok(calls[3][2] > 0 and calls[3][2] < 40)
  T.ok(run_.plan[1].tokens > 160)
  T.eq(base.list_dir(store.home() .. "/.stages"), before)
end)

T.test("a plan ends where the recipe asks a stand-in, with the line", function()
  local _, ended = planned:plan { decide = true }
  T.ok(ended:match "test_study.lua:%d+: from here it depends on results", ended)
  local text = pl.recipe { name = "text", run = function()
    local demos = pl.feedback.demonstrate("oracle:0.5", { "p" })
    return string.upper(demos[1].completion)
  end }
  _, ended = text:plan()
  T.ok(ended and ended:find("test_study.lua", 1, true), tostring(ended))
end)

T.test("a plan knows what is done already, and a mistake is still a mistake", function()
  planned:run()
  local run_, ended = planned:plan()
  T.eq({ #run_.plan, ended }, { 4, nil })
  for _, s in ipairs(run_.plan) do T.ok(s.cached, s.name) end
  T.raises(function() pl.recipe({ name = "x", run = function() error "broken" end }):plan() end, "broken")
end)

T.test("run:at takes arm and seed only; sections name what they miss", function()
  pl.recipe({ name = "sections", run = function(_, r)
    T.raises(function() r:at { amr = "x" } end, 'did you mean "arm"')
    T.raises(function() r:bars { title = "x" } end, "needs rows")
    return {}
  end }):run()
end)

T.done()
