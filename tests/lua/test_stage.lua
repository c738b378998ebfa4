-- Stages remember: hits, keys, damage, values of each kind, locks, and what cannot be hashed.
local T = require "tests.lua.harness"
local pl = require "perilune"
local tiny = require "tests.lua.tiny"
local base = require("perilune.core").base
local bytecode = require "perilune.study.bytecode"
local hash = require "perilune.study.hash"
local progress = require "perilune.study.progress"
local stage = require "perilune.study.stage"
local store = require "perilune.study.store"

progress.quiet(true)
store.set_home(T.tmpdir() .. "/home")

-- Runs f as a recipe's body.
local function within(f)
  local result
  pl.recipe({ name = "test", run = function(_, run)
    result = f(run)
    return {}
  end }):run()
  return result
end

local computed = 0
local function number(options, inputs)
  return within(function()
    return stage.remember {
      name = "number", kind = "table", options = options, inputs = inputs,
      compute = function(ctx)
        computed = computed + 1
        ctx.calls = 3
        return { n = computed, third = 1 / 3 }
      end,
    }
  end)
end

T.test("a stage is computed once; other options, inputs or names compute again", function()
  local first = number { a = 1 }
  T.eq(number { a = 1 }, first)
  T.eq(number({ a = 1 }).third, 1 / 3)
  T.eq(computed, 1)
  number { a = 2 }
  number({ a = 1 }, { 1 })
  number({ a = 1 }, { 1.0 })
  T.eq(computed, 3, "1 and 1.0 are the same input")
end)

T.test("outside a run nothing is remembered, unless asked", function()
  local n = 0
  local function spec(cache)
    return { name = "plain", kind = "table", cache = cache, compute = function()
      n = n + 1
      return n
    end }
  end
  T.eq({ stage.remember(spec()), stage.remember(spec()) }, { 1, 2 })
  T.eq({ stage.remember(spec(true)), stage.remember(spec(true)) }, { 3, 3 })
end)

local function stage_dirs()
  local out = {}
  for _, group in ipairs(base.list_dir(store.home() .. "/.stages")) do
    for _, name in ipairs(base.list_dir(store.home() .. "/.stages/" .. group)) do
      out[#out + 1] = ("%s/.stages/%s/%s"):format(store.home(), group, name)
    end
  end
  return out
end

T.test("what was killed while writing is not seen; only whole entries are there", function()
  for _, dir in ipairs(stage_dirs()) do
    T.ok(not dir:find(".tmp.", 1, true) and not dir:find("%.lock$") and not dir:find("%.work$"), dir)
    T.ok(base.exists(dir .. "/stage.json"), dir)
  end
end)

T.test("a damaged entry is computed again, with the same outcome", function()
  store.set_home(T.tmpdir() .. "/damage")
  local before = computed
  number { a = 7 }
  local function harm(name, bytes)
    for _, dir in ipairs(stage_dirs()) do
      if base.exists(dir .. "/" .. name) then assert(base.write_file(dir .. "/" .. name, bytes)) end
    end
  end
  for i, case in ipairs { { "value.json", '{"value":{"n":99}}' }, { "stage.json", '{"form' }, { "stage.json", "[]" } } do
    harm(case[1], case[2])
    number { a = 7 }
    T.eq(computed, before + 1 + i, case[1])
    number { a = 7 }
    T.eq(computed, before + 1 + i, "whole again")
  end
  store.set_home(T.tmpdir() .. "/home")
end)

T.test("a stage that fails leaves nothing behind and can be done again", function()
  local fail = true
  local function try()
    return within(function()
      return stage.remember { name = "fails", kind = "table", compute = function()
        if fail then error "no luck" end
        return 5
      end }
    end)
  end
  T.raises(try, "no luck")
  T.eq(stage.current(), nil)
  fail = false
  T.eq(try(), 5)
end)

T.test("a lock left by a dead process is taken over", function()
  local key = base.sha256 "some key"
  local dir = ("%s/.stages/%s/%s.lock"):format(store.home(), key:sub(1, 2), key:sub(3, 40))
  assert(base.mkdirs(dir))
  assert(base.write_file(dir .. "/owner", "1 12345"))     -- that process started at another time
  local waited = false
  do
    local lock <close> = store.lock(key, function() waited = true end)
    T.ok(base.exists(dir .. "/owner"))
  end
  T.eq(waited, false)
  T.eq(base.exists(dir), false)
end)

T.test("a lock that Ctrl-C left behind in this process is taken over; finally runs on every way out", function()
  local key, ways = base.sha256 "another key", {}
  local lost = store.lock(key, function() error "waits" end)
  T.ok(lost)
  do
    local lock <close> = store.lock(key, function() error "waits for itself" end)
  end
  local function leave(how)
    local guard <close> = base.finally(function(problem, interrupted)
      ways[#ways + 1] = { problem and problem.text or "none", interrupted }
    end)
    if how == "error" then error { text = "thrown" } end
    if how == "return" then return 1 end
  end
  T.eq({ leave "return", (leave "end"), (pcall(leave, "error")) }, { 1, nil, false })
  T.eq(ways, { { "none", false }, { "none", false }, { "thrown", false } })
  T.raises(function() local guard <close> = base.finally(function() error "from the end" end) end, "from the end")
  T.raises(function() base.finally(1) end, "function expected")
end)

T.test("datasets come back row by row, with their counts and hash, read only when needed", function()
  local function get()
    return within(function()
      return stage.remember { name = "rows", kind = "dataset", compute = function()
        local ds = pl.data.from { { prompt = "é\n", completion = { text = " x", ids = { 0, 5 }, finish = "stop" } } }
        rawset(ds, "counts", { asked = 3 })
        return ds
      end }
    end)
  end
  local first, second = get(), get()
  T.eq(rawget(second, "list"), nil, "not read yet")
  T.eq(second:hash(), first:hash())
  T.eq(second.counts.asked, 3)
  T.eq(rawget(second, "list"), nil, "still not read")
  T.eq(second[1], first[1])
  T.eq(pl.data.from(second:rows()):hash(), first:hash())
end)

T.test("models come back to the bit, with their history, read only when needed", function()
  local demos = pl.feedback.demonstrate("oracle:1", { "Q: sort: fox cat\nA:", "Q: length of: cat\nA:" })
  local steps, replayed = 0, {}
  local function get(on_step)
    return within(function()
      return pl.train.sft(tiny(3), demos, { lr = 1e-2, epochs = 2, batch_size = 2, on_step = on_step })
    end)
  end
  local first = get(function() steps = steps + 1 end)
  local second = get(function(row) replayed[#replayed + 1] = row.loss end)
  T.eq(rawget(second, "decoder"), nil, "not read yet")
  T.eq(second:hash(), first:hash())
  T.eq({ steps, #replayed, replayed[2] }, { 2, 2, first.history[2].loss })
  T.eq(second.history[1].loss, first.history[1].loss)
  T.eq({ first.history.summary.steps, #second.history }, { 2, 2 })
  T.eq(second.history.summary, first.history.summary, "the totals of the training")
  T.eq(rawget(second, "decoder"), nil, "still not read")
  local rows = { { prompt = "Q: sort: fox cat\nA:", completion = " cat fox" } }
  T.eq(second:score(rows):tolist(), first:score(rows):tolist())
  T.ok(rawget(second, "decoder"))
  T.eq(second:hash(), first:hash(), "the weights read are those noted")
  T.eq(second.history.summary, first.history.summary)
end)

T.test("in_place: the argument becomes what is remembered; frozen weights count and stay frozen", function()
  local rows = { { prompt = "Q: sort: fox cat\nA:", completion = " cat fox" } }
  local o = { lr = 1e-2, max_steps = 2, in_place = true }
  local hashes = {}
  for i = 1, 2 do
    local m = tiny(4)
    local out = within(function() return pl.train.sft(m, rows, o) end)
    T.ok(rawequal(out, m))
    hashes[i] = m:hash()
  end
  T.eq(hashes[1], hashes[2])
  T.ok(hashes[1] ~= tiny(4):hash())
  local untouched = tiny(4)
  pl.recipe({ name = "test", run = function() pl.train.sft(untouched, rows, o) return {} end }):plan()
  T.eq(untouched:hash(), tiny(4):hash(), "a plan trains nothing")
  -- a stage has a directory that a killed run left checkpoints in: resume needs no save_dir here
  local afresh = within(function() return pl.train.sft(tiny(4), rows, { lr = 1e-2, max_steps = 2, resume = "never" }) end)
  T.eq(#afresh.history, 2)
  local name = tiny(4):parameters()[1].name
  local function frozen() return within(function() return pl.train.sft(tiny(4):freeze { name }, rows, { lr = 1e-2, max_steps = 2 }) end) end
  local first, second = frozen(), frozen()
  T.ok(first:hash() ~= hashes[1])
  T.eq(second:hash(), first:hash())
  T.eq({ first:frozen(), second:frozen() }, { { name }, { name } })
  T.eq(rawget(second, "decoder"), nil, "not read yet")
  T.eq(second:parameters()[1].requires_grad, false)
end)

T.test("a function is keyed by its code and what it captured", function()
  local count = 0
  local function judge(word, extra)
    local critic = function(r) return r.a:find(word) and extra.side or "b" end
    return within(function()
      return stage.remember { name = "keyed", kind = "table", inputs = { critic }, compute = function()
        count = count + 1
        return count
      end }
    end)
  end
  T.eq(judge("x", { side = "a" }), 1)
  T.eq(judge("x", { side = "a" }), 1)
  T.eq(judge("y", { side = "a" }), 2)
  T.eq(judge("x", { side = "tie" }), 3)
end)

T.test("a training on rows that JSON cannot write is computed, and found again", function()
  for _, extra in ipairs { function() end, pl.tensor { 1, 2 }, { 1, 2, a = 3 } } do
    local rows = { { prompt = "Q: sort: fox cat\nA:", completion = " cat fox", extra = extra } }
    local states, hashes = {}, {}
    for i = 1, 2 do
      within(function(run)
        hashes[i] = pl.train.sft(tiny(4), rows, { lr = 1e-2, max_steps = 1 }):hash()
        states[i] = run.stages[1].state
      end)
    end
    T.eq(states, { "computed", "kept" })
    T.eq(hashes[2], hashes[1])
  end
end)

-- What hash.of(f) is as the globals and library fields in `values` are; they are as before afterwards.
local function with_globals(values, f, where)
  where = where or _G
  local before = {}
  for name, value in pairs(values) do before[name], where[name] = where[name], value end
  local hex, why = hash.of(f)
  for name in pairs(values) do where[name] = before[name] end
  return hex, why
end

local function loaded(source, chunk) return T.ok(load(source, chunk or "=test"))() end

T.test("a function is keyed by the globals that it names", function()
  local critic = loaded [[return function(r) return (function() return pick(r) end)() end]]
  local function pick(source) return { pick = loaded("return function(r) return " .. source .. " end") } end
  local none = hash.of(critic)
  local a, b = with_globals(pick '"a"', critic), with_globals(pick '"b"', critic)
  T.ok(none and a and b and a ~= b and a ~= none and b ~= none)
  T.eq(with_globals(pick '"a"', critic), a)
  T.eq(hash.of(critic), none)
  T.ok(with_globals({ pick = 1 }, critic) ~= with_globals({ pick = 2 }, critic))
  T.eq(with_globals({ other = 1, pick_not = 2 }, critic), none, "what it does not name does not count")
  T.eq(with_globals({ deep = 1, pick = pick 'deep'.pick }, critic) ~=
    with_globals({ deep = 2, pick = pick 'deep'.pick }, critic), true, "what those name counts, too")
  T.ok(hash.of(loaded "function fact(n) return n < 2 and 1 or n * fact(n - 1) end local f = fact fact = nil return f"))
  local ones, twos = pick '1'.pick, pick '2'.pick
  T.ok(with_globals({ pick = ones }, ones) ~= with_globals({ pick = twos }, twos), "a global is no name for itself")
  T.eq(with_globals({ pick = ones }, ones), hash.of(ones))
  local value, why = with_globals({ pick = io.stdout }, critic)
  T.ok(value == nil and why:find("pick", 1, true), why)
  local long = ("long_"):rep(40)
  local names_it = loaded("return function() return " .. long .. " end")
  T.ok(with_globals({ [long] = 1 }, names_it) ~= with_globals({ [long] = 2 }, names_it))
end)

T.test("a name that is no global of the code does not count", function()
  local busy = { log = io.stdout, text = io.stdout, min = coroutine.create(print), total = io.stdout }
  local critic = loaded [[return function(r) return math.log(#r.text) > 1 and r:min "total" end]]
  T.eq(with_globals(busy, critic), hash.of(critic))
  local own = pl.train.schedule.new { name = "cosine", total = 10 }
  T.eq(with_globals(busy, own), hash.of(own), "nor do any for perilune's own")
  for _, open in ipairs { "return _G[r.x] or 'log'", "local env = _ENV return env.log", "return load('return ' .. r)() or 'log'" } do
    local f = loaded("return function(r) " .. open .. " end")
    T.ok(with_globals({ log = 1 }, f) ~= with_globals({ log = 2 }, f), open)
  end
end)

T.test("the globals that code names are read off its bytecode", function()
  local function of(source, env)
    local names = bytecode.globals(string.dump(T.ok(load(source)), true), env or { [0] = true })
    if not names then return "any" end
    local list = {}
    for name in pairs(names) do list[#list + 1] = name end
    table.sort(list)
    return table.concat(list, " ")
  end
  local many = {}
  for i = 1, 400 do many[i] = "g" .. i end
  for _, case in ipairs {
    { "return math.log(x.y, 'z')", "math x" },
    { "local a = b; return function() c = 1; return function(d) return d.e, f, a, _ENV.q end end", "b c f q" },
    { "local _ENV = { x = 1 } return x", "" },
    { "return 1, 1.5, true, false, nil, 'a' .. 1, -7, 1e300, 99999999999", "" },
    { "return _G.x", "any" }, { "local env = _ENV return env.x", "any" }, { "return load 'x'", "any" },
    { "return " .. ("long"):rep(20), "any" }, { "return {" .. table.concat(many, ",") .. "}", "any" },
    { "return function() return function() return _ENV end end", "any" },
  } do T.eq(of(case[1]), case[2], case[1]) end
  T.eq(of("return x", {}), "", "not through an upvalue that holds the globals")
  local code = string.dump(T.ok(load "return math.log(function() return x, 'text', 1.5 end)"), true)
  T.ok(bytecode.globals(code, { [0] = true }))
  for i = 0, #code - 1 do T.eq(bytecode.globals(code:sub(1, i), { [0] = true }), nil, "cut off") end
  T.eq(bytecode.globals(code .. "x", { [0] = true }), nil)
  T.eq(bytecode.globals(string.dump(T.ok(load "local a = x"), false), { [0] = true }), nil, "not stripped")
end)

T.test("a function is keyed by what was put into Lua's own tables, and not by what is Lua's", function()
  local plain = loaded [[return function(s) return print(("x"):rep(3) .. tostring(math.pi)) end]]
  T.eq(with_globals({ text = 1, s = 2 }, plain), hash.of(plain))
  local splits = loaded [[return function(s) return s:halves() end]]
  local function halves(n) return { halves = loaded("return function(s) return s:sub(" .. n .. ") end") } end
  T.ok(with_globals(halves(1), splits, string) ~= with_globals(halves(2), splits, string))
  local mine = { tostring = loaded "return function() return 'mine' end" }
  T.ok(with_globals(mine, plain) ~= hash.of(plain), "Lua's function replaced")
end)

T.test("the key of a function is the same in every process", function()
  local script = T.tmpdir() .. "/key.lua"
  assert(base.write_file(script, [[
    for i = 1, tonumber(arg[1]) do _G["noise" .. i] = i end
    table_of = { b = { 1, 2 }, a = "x" }
    function pick(r) return table_of.a .. helper(r) end
    function helper(r) return r and pick(nil) or limit end
    limit = 3
    print((require "perilune.study.hash".of(function(r) return pick(r) end)))]]))
  local seen = {}
  for i, n in ipairs { 0, 7, 300 } do
    local pipe = T.ok(io.popen(("'%s' '%s' %d"):format(base.exe_dir() .. "/perilune", script, n)))
    seen[i] = pipe:read "l"
    pipe:close()
  end
  T.ok(#seen[1] == 64, seen[1])
  T.eq(seen, { seen[1], seen[1], seen[1] })
end)

T.test("what cannot be hashed is computed each time", function()
  local count = 0
  local thread = coroutine.create(print)
  for _ = 1, 2 do
    within(function()
      return stage.remember { name = "unhashable", kind = "table", inputs = { thread }, compute = function()
        count = count + 1
        return 1
      end }
    end)
  end
  T.eq(count, 2)
end)

T.test("hashes: order of keys and place in memory do not count, content does", function()
  local a, b = {}, {}
  for i = 1, 50 do a["k" .. i] = i end
  for i = 50, 1, -1 do b["k" .. i] = i end
  T.eq(hash.of(a), hash.of(b))
  b.k7 = 7.5
  T.ok(hash.of(a) ~= hash.of(b))
  T.ok(hash.of { 1, 2 } ~= hash.of { { 1 }, 2 })
  T.ok(hash.of { "ab", "c" } ~= hash.of { "a", "bc" })
  local loop = {}
  loop.self = loop
  T.ok(hash.of(loop))
  T.ok(hash.of { pl.softplus }, "perilune's own functions are known by name")
  local value, why = hash.of { deep = { io.stdout } }
  T.eq(value, nil)
  T.ok(why:find("deep.1", 1, true), why)
  T.eq(hash.of(pl.tensor { 1, 2 }), hash.of(pl.tensor { 1, 2 }))
  T.ok(hash.of(pl.tensor { 1, 2 }) ~= hash.of(pl.tensor { 1, 3 }))
  T.ok(hash.of(pl.tensor { 1, 2 }) ~= hash.of(pl.tensor({ 1, 2 }, { dtype = "f64" })))
end)

T.done()
