-- core.store and the ledger: values, misuse, transactions, states and sums, export and
-- import, a second process, files that are no ledger.
local T = require "tests.lua.harness"
local base = require("perilune.core").base
local ledger = require "perilune.ai.ledger"
local store = require("perilune.core").store

local bin = os.getenv "PL_BIN" or "./perilune"
local made = 0
local function fresh(name)
  made = made + 1
  return ("%s/%s-%d.db"):format(T.tmpdir(), name or "ledger", made)
end

local function call(key, more)
  local c = { key = key, provider = "openai", model = "m-1", endpoint = "https://service.test/v1", study = "s",
    stage = "judge", estimate = 0.5, prompt_tokens = 10 }
  for k, v in pairs(more or {}) do c[k] = v end
  return c
end

local function answer(more)
  local r = { status = 200, reply = "body", final = true, outcome = "answered", price = 0.25, prompt_tokens = 12,
    completion_tokens = 3, seconds = 0.5, request_id = "req-1" }
  for k, v in pairs(more or {}) do r[k] = v end
  return r
end

-- Runs code in another perilune and gives its standard output.
local function elsewhere(code)
  return io.popen(("GOMP_SPINCOUNT=2000 exec '%s' -e '%s'"):format(bin, code), "r")
end

T.test("values of all kinds go in and come back", function()
  local db <close> = assert(store.open(fresh "values"))
  db:exec "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)"
  local put, get = db:prepare "INSERT INTO t (a, b) VALUES (?, ?)", db:prepare "SELECT a, b FROM t WHERE id = ?"
  local bytes = "\0\xff\xfe'\";\n\0"
  local cases = { { 1, 2.5 }, { math.mininteger, math.huge }, { bytes, "" }, { true, false }, { nil, nil } }
  for i, case in ipairs(cases) do
    local changed, id = put:run(case[1], case[2])
    T.eq({ changed, id }, { 1, i })
  end
  cases[4] = { 1, 0 }
  for i, case in ipairs(cases) do T.eq(get:row(i), { a = case[1], b = case[2] }) end
  T.eq(get:row(99), nil)
  T.eq(get:value(3), bytes)
  T.eq(get:value(99), nil)
  T.eq(math.type(get:row(1).a), "integer")
  T.eq(math.type(get:row(2).b), "float")
  local seen = {}
  for row in db:prepare "SELECT id FROM t WHERE id > ? ORDER BY id":rows(2) do seen[#seen + 1] = row.id end
  T.eq(seen, { 3, 4, 5 })
  T.eq(tostring(db):match "^database ", "database ")
end)

T.test("a loop left halfway leaves its statement usable", function()
  local db <close> = assert(store.open(fresh "loop"))
  db:exec "CREATE TABLE t (x); INSERT INTO t VALUES (1), (2), (3)"
  local s = db:prepare "SELECT x FROM t ORDER BY x"
  for _ = 1, 3 do
    for row in s:rows() do
      if row.x == 2 then break end
    end
  end
  T.eq(s:value(), 1)
  local next_row, loop = s:rows()
  next_row(loop)
  s:value()
  T.raises(function() next_row(loop) end, "used again inside its loop")
  next_row, loop = s:rows()
  for _ = 1, 3 do next_row(loop) end
  T.eq({ next_row(loop), next_row(loop) }, {})
end)

T.test("misuse raises and says what was wanted", function()
  local db = assert(store.open(fresh "misuse"))
  db:exec "CREATE TABLE t (x UNIQUE)"
  local put = db:prepare "INSERT INTO t VALUES (?)"
  T.raises(function() put:run() end, "1 parameters, got 0")
  T.raises(function() put:run(1, 2) end, "1 parameters, got 2")
  T.raises(function() put:run {} end, "nil, number, string or boolean expected, got table")
  T.raises(function() put:run(0 / 0) end, "NaN")
  T.raises(function() db:exec "SELECT 1\0; DROP TABLE t" end, "NUL")
  T.raises(function() db:exec "DROP nothing" end, "syntax error")
  T.raises(function() store.open(fresh(), { busy_ms = -1 }) end, "busy_ms")
  put:run(1)
  T.raises(function() put:run(1) end, "UNIQUE constraint failed: t.x")
  put:run(2)
  T.eq(db:prepare "SELECT count(*) FROM t":value(), 2)
  put:close()
  put:close()
  T.raises(function() put:run(3) end, "statement was closed")
  local s = db:prepare "SELECT 1"
  db:close()
  db:close()
  T.raises(function() s:value() end, "database of this statement was closed")
  T.raises(function() db:exec "SELECT 1" end, "database was closed")
  T.eq(tostring(db) .. tostring(s) .. tostring(put), "database (closed)statement (closed)statement (closed)")
  local none, message = store.open(T.tmpdir() .. "/no/such/place.db")
  T.eq(none, nil)
  T.ok(message:find("no/such/place.db", 1, true))
end)

T.test("a transaction is kept whole or not at all", function()
  local db <close> = assert(store.open(fresh "transaction"))
  db:exec "CREATE TABLE t (x)"
  local put, count = db:prepare "INSERT INTO t VALUES (?)", db:prepare "SELECT count(*) FROM t"
  T.eq({ db:transaction(function(a, b) put:run(a) return b, nil, 7 end, 1, 2) }, { 2, nil, 7 })
  local object = {}
  local ok, problem = pcall(db.transaction, db, function() put:run(2) error(object) end)
  T.ok(not ok and problem == object)
  T.eq(count:value(), 1)
  T.raises(function()
    db:transaction(function() db:transaction(function() end) end)
  end, "open already")
  T.raises(function()
    db:transaction(function() put:run(3) db:exec "ROLLBACK" end)
  end, "nothing of it was kept")
  T.raises(function()
    local gone = assert(store.open(fresh()))
    gone:transaction(function() gone:close() end)
  end, "closed inside")
  T.eq(count:value(), 1)
  T.ok(not db:in_transaction())
end)

T.test("a statement keeps its database, and the collector frees both", function()
  local path = fresh "collected"
  local s = assert(store.open(path)):prepare "SELECT 5"
  collectgarbage()
  T.eq(s:value(), 5)
  local before = base.memory().live
  s = nil
  collectgarbage()
  collectgarbage()
  T.ok(base.memory().live < before, "nothing was freed")
end)

T.test("a call is noted, answered once, and found from then on", function()
  local path = fresh()
  local l = ledger.open(path)
  T.eq(l:find "k", nil)
  local id = l:note(call "k")
  T.eq(l:find "k", nil)
  T.eq(l:spent(), { paid = 0, possibly = 0.5, unknown = 0, answered = 0, possibly_n = 1, attempts = 1 })
  local reply = '{"text": "caf\xc3\xa9 \0 \xff"}'
  l:record(id, answer { reply = reply })
  local want = { attempt = id, outcome = "answered", status = 200, reply = reply, model = "m-1", prompt_tokens = 12,
    completion_tokens = 3, price = 0.25, seconds = 0.5, request_id = "req-1" }
  T.eq(l:find "k", want)
  T.eq(l:spent { study = "s" }, { paid = 0.25, possibly = 0, unknown = 0, answered = 1, possibly_n = 0, attempts = 1 })
  T.eq(l:spent { study = "other" }.attempts, 0)
  l:close()
  local again = ledger.open(path)
  T.eq(again:find "k", want)
  again:close()
end)

T.test("a second final answer of a call is refused loudly", function()
  local l = ledger.open(fresh())
  local one, two = l:note(call "k"), l:note(call "k")
  l:record(one, answer())
  T.raises(function() l:record(two, answer { reply = "other" }) end, "attempt 2: this call has its answer already, from attempt 1")
  T.raises(function() l:record(one, answer()) end, "has its end already: answered")
  T.raises(function() l:record(one, answer { final = false }) end, "has its end already: answered")
  T.raises(function() l:record(99, answer()) end, "is not in this ledger")
  T.eq(l:find("k").reply, "body")
  l:record(two, answer { final = false })                 -- paid, but not the answer
  T.eq(l:spent().paid, 0.5)
  T.eq(l:summary()[1].calls, 1)
  -- the database itself holds the rule, whoever writes
  T.raises(function() l.db:exec "UPDATE attempts SET final = 1" end, "UNIQUE constraint failed: attempts.key")
  l:close()
end)

T.test("unsent costs nothing, lost stays possibly paid, a late reply settles it", function()
  local l = ledger.open(fresh())
  local a, b, c = l:note(call "a"), l:note(call "b"), l:note(call "c")
  l.db:exec "UPDATE attempts SET estimate = NULL WHERE key = 'c'"
  l:unsent(a, "connection refused")
  l:lost(b, "reset")
  T.eq(l:spent(), { paid = 0, possibly = 0.5, unknown = 1, answered = 0, possibly_n = 2, attempts = 3 })
  T.raises(function() l:unsent(b, "no") end, "has its end already: lost")
  T.raises(function() l:lost(a, "no") end, "has its end already: unsent")
  T.raises(function() l:record(a, answer()) end, "has its end already: unsent")
  l:record(b, answer())
  l:record(c, { status = 500, reply = "oops", final = false, price = 0 })
  T.eq(l:spent(), { paid = 0.25, possibly = 0, unknown = 0, answered = 2, possibly_n = 0, attempts = 3 })
  T.eq(l:find "c", nil)
  l:close()
end)

T.test("what note and record are given is checked", function()
  local l = ledger.open(fresh())
  T.raises(function() l:note(call("k", { provdier = "x" })) end, 'did you mean "provider"')
  T.raises(function() l:note(call("k", { estimate = -1 })) end, "at least 0")
  T.raises(function() l:note(call("k", { estimate = 0 / 0 })) end, "NaN")
  T.raises(function() l:note(call("k", { estimate = math.huge })) end, "at most")
  T.raises(function() l:note(call "") end, "key is missing")
  T.raises(function() l:note { key = "k", provider = "p", model = "m" } end, "endpoint is missing")
  local id = l:note(call "k")
  T.raises(function() l:record(id, answer { outcome = "anwsered" }) end, 'did you mean "answered"')
  T.raises(function() l:record(id, answer { price = -0.1 }) end, "at least 0")
  T.raises(function() l:record(id, { status = 200, final = true }) end, "needs an outcome")
  T.raises(function() l:summary { by = "mode" } end, 'did you mean "model"')
  T.eq(l:spent().attempts, 1)
  l:close()
end)

T.test("a turn of the loop is one transaction", function()
  local l = ledger.open(fresh())
  local one = l:note(call "one")
  local id = l:transaction(function()
    l:record(one, answer())
    return l:transaction(function() return l:note(call "two") end)
  end)
  T.eq(id, 2)
  T.raises(function()
    l:transaction(function()
      l:record(id, answer())
      l:note(call "three")
      error "interrupted turn"
    end)
  end, "interrupted turn")
  T.eq(l:find "two", nil)
  T.eq(l:spent().attempts, 2)
  l:close()
end)

T.test("sums by stage, model, day and study", function()
  local l = ledger.open(fresh())
  for i = 1, 6 do
    local id = l:note(call("k" .. i, { stage = i <= 2 and "demos" or "judge", model = "m-" .. i % 2,
      study = i < 6 and "s" or nil }))
    if i <= 4 then l:record(id, answer { price = i / 4 }) end
    if i == 5 then l:record(id, { status = 200, final = true, outcome = "invalid" }) end
  end
  l.db:exec "UPDATE attempts SET started = 86400.5 * id, study = CASE id WHEN 6 THEN NULL ELSE study END"
  local function sums(row)
    return { row.calls, row.attempts, row.possibly_paid, row.prompt_tokens, row.completion_tokens, row.usd,
      row.usd_possibly, row.unknown_price, row.seconds }
  end
  local stages = l:summary { by = "stage" }
  T.eq({ stages[1].stage, sums(stages[1]) }, { "demos", { 2, 2, 0, 24, 6, 0.75, 0.0, 0, 1.0 } })
  T.eq({ stages[2].stage, sums(stages[2]) }, { "judge", { 3, 4, 1, 24, 6, 1.75, 0.5, 1, 1.0 } })
  T.eq(#stages, 2)
  local models = l:summary { by = "model" }
  T.eq({ models[1].model, models[2].model, models[1].attempts, models[2].calls }, { "openai:m-0", "openai:m-1", 3, 3 })
  local days = l:summary { by = "day" }
  T.eq({ #days, days[1].day, days[6].day }, { 6, "1970-01-02", "1970-01-07" })
  local studies = l:summary { by = "study" }
  T.eq({ studies[1].study, studies[1].possibly_paid, studies[2].study, studies[2].calls }, { "-", 1, "s", 5 })
  l:close()
end)

local function exported(l)
  local lines = {}
  l:export(function(line) lines[#lines + 1] = line end)
  return lines
end

local function import(l, lines)
  local i = 0
  return l:import(function()
    i = i + 1
    return lines[i]
  end)
end

-- A ledger with an attempt in every state and a reply of any bytes.
local function filled()
  local l = ledger.open(fresh())
  local every = {}
  for i = 0, 255 do every[#every + 1] = string.char(i) end
  for i = 1, 8 do
    local id = l:note(call("k" .. i, { sample = i }))
    if i == 1 then l:record(id, answer { reply = table.concat(every) }) end
    if i == 2 then l:unsent(id, "refused") end
    if i == 3 then l:lost(id, "reset after \xff") end
    if i == 4 then l:record(id, { status = 429, reply = "", price = 0 }) end
    if i > 5 then l:record(id, answer { price = i / 7, estimated = true, reply = "caf\u{e9} \u{1F600}" }) end
  end
  return l, table.concat(every)
end

T.test("export and import give the same ledger again", function()
  local l, every = filled()
  local lines = exported(l)
  T.eq(#lines, 9)
  for _, line in ipairs(lines) do
    T.ok(utf8.len(line) and line:sub(-1) == "\n" and not line:sub(1, -2):find "%c")
    T.ok(base.json_decode(line))
  end
  T.eq(base.json_decode(lines[1]), { ledger = 1, secret = l:secret(), attempts = 8 })
  local m = ledger.open(fresh())
  T.eq(import(m, lines), { new = 8, updated = 0, known = 0, double = 0, secret = "adopted" })
  for _, by in ipairs { "stage", "model", "day", "study" } do T.eq(m:summary { by = by }, l:summary { by = by }) end
  T.eq(m:find "k1", l:find "k1")
  T.eq(m:find("k1").reply, every)
  T.eq(exported(m), lines)
  T.eq(import(m, lines), { new = 0, updated = 0, known = 8, double = 0, secret = "same" })
  T.eq(m:summary(), l:summary())
  -- what was open has its end in a later export
  l:record(5, answer())
  T.eq(import(m, exported(l)), { new = 0, updated = 1, known = 7, double = 0, secret = "same" })
  T.eq(m:summary(), l:summary())
  T.eq(exported(m), exported(l))
  l:close()
  m:close()
end)

T.test("an answer that is here wins over an imported one", function()
  local l, m = filled(), ledger.open(fresh())
  local own = m:secret()
  m:record(m:note(call "k1"), answer { reply = "mine" })
  T.eq(import(m, exported(l)), { new = 8, updated = 0, known = 0, double = 1, secret = "kept" })
  T.eq(m:find("k1").reply, "mine")
  T.eq(m:secret(), own)
  T.eq(m:spent().paid, l:spent().paid + 0.25)
  l:close()
  m:close()
end)

T.test("a damaged export imports nothing and names the line", function()
  local l, m = filled(), ledger.open(fresh())
  local lines, secret = exported(l), m:secret()
  local function refused(change, pattern)
    local copy = table.move(lines, 1, #lines, 1, {})
    change(copy)
    T.raises(function() import(m, copy) end, pattern)
    T.eq(m:spent().attempts, 0)
    T.eq(m:secret(), secret)
  end
  refused(function(c) c[5] = c[5]:sub(1, 50) end, "line 5: column")
  refused(function(c) c[9] = nil end, "line 8: the export is not whole: 7 attempts of 8")
  refused(function(c) c[1] = c[2] end, "line 1: is no exported ledger")
  refused(function(c) c[1] = c[1]:gsub('"ledger":1', '"ledger":2') end, "newer perilune %(format 2")
  refused(function(c) c[1] = c[1]:gsub('"secret":"..', '"secret":"') end, "is no exported ledger")
  refused(function(c) c[3] = c[3]:gsub("unsent", "unset") end, "line 3: no attempt: its state is unset")
  refused(function(c) c[3] = "[]" end, "line 3: no attempt")
  refused(function(c) c[3] = "17" end, "line 3: no attempt")
  refused(function(c) c[7] = c[7]:gsub('"price":[%d.]+', '"price":"much"') end, "line 7.*price")
  refused(function(c) c[7] = c[7]:gsub('"price":', '"price":-') end, "line 7.*CHECK")
  refused(function(c) c[7] = c[7]:gsub('"key":"k6",', "") end, "line 7.*NOT NULL.*key")
  refused(function(c) c[2] = c[2]:gsub('"hex":"00', '"hex":"0') end, "line 2.*hexadecimal")
  refused(function(c) table.move({}, 1, #c, 1, c) end, "line 0: is empty")
  T.eq(import(m, lines).new, 8)
  l:close()
  m:close()
end)

T.test("the secret is made once, and differs from ledger to ledger", function()
  local path = fresh()
  local l, m = ledger.open(path), ledger.open(fresh())
  local secret = l:secret()
  T.ok(#secret == 64 and not secret:find "%X")
  T.ok(secret ~= m:secret())
  l:close()
  m:close()
  local again = ledger.open(path)
  T.eq(again:secret(), secret)
  again:close()
end)

T.test("busy: another living process asks; what a killed one left is not", function()
  local path = fresh()
  local l = ledger.open(path)
  l:note(call "mine")
  T.eq(l:busy "mine", nil)
  local pipe = elsewhere(([[
    local l = require("perilune.ai.ledger").open "%s"
    l:note { key = "theirs", provider = "p", model = "m", endpoint = "e" }
    print(require("perilune.core").base.pid()) io.stdout:flush()
    require("perilune.core").base.sleep(60)]]):format(path))
  local pid = math.tointeger(tonumber(pipe:read "l"))
  local row = T.ok(l:busy "theirs", "not seen as busy")
  T.eq(row.owner:match "^%d+", tostring(pid))
  T.eq(l:busy "mine", nil)
  T.eq(l:busy "none", nil)
  os.execute(("kill -9 %d"):format(pid))
  pipe:close()
  T.eq(l:busy "theirs", nil)
  T.eq(l:spent().possibly_n, 2)                            -- still possibly paid
  l:close()
end)

T.test("two processes write at once and lose nothing", function()
  local path = fresh()
  local l = ledger.open(path)
  local n = 150
  local pipe = elsewhere(([[
    local l = require("perilune.ai.ledger").open "%s"
    for i = 1, %d do
      local id = l:note { key = "theirs" .. i, provider = "p", model = "m", endpoint = "e" }
      l:record(id, { status = 200, reply = "r", final = true, outcome = "answered", price = 1 })
    end
    print "done"]]):format(path, n))
  for i = 1, n do l:record(l:note(call("mine" .. i)), answer { price = 1 }) end
  T.eq(pipe:read "a", "done\n")
  pipe:close()
  T.eq(l:spent(), { paid = 2.0 * n, possibly = 0, unknown = 0, answered = 2 * n, possibly_n = 0, attempts = 2 * n })
  l:close()
end)

T.test("processes may make a ledger at once", function()
  for _ = 1, 3 do
    local path, pipes = fresh(), {}
    for i = 1, 4 do
      pipes[i] = elsewhere(([[
        local l = require("perilune.ai.ledger").open "%s"
        l:note { key = "k", provider = "p", model = "m", endpoint = "e" }
        print(l:secret())]]):format(path))
    end
    local l = ledger.open(path)
    for i = 1, 4 do
      T.eq(pipes[i]:read "a", l:secret() .. "\n")
      pipes[i]:close()
    end
    T.eq(l:spent().attempts, 4)
    l:close()
  end
end)

T.test("a batch is remembered with its attempts until it is read", function()
  local path = fresh()
  local l = ledger.open(path)
  local id = l:batch { provider = "openai", endpoint = "https://service.test/v1/batches" }
  l:transaction(function()
    for i = 1, 3 do l:note(call("b" .. i, { batch = id })) end
  end)
  l:batch_change(id, { remote = "batch_7", state = "in_progress" })
  l:record(2, answer())
  l:close()
  l = ledger.open(path)
  local list = l:batches()
  T.eq({ #list, list[1].remote, list[1].state }, { 1, "batch_7", "in_progress" })
  local a, b = table.unpack(list[1].attempts)
  T.eq({ #list[1].attempts, a.attempt, a.key, b.attempt, b.key }, { 2, 1, "b1", 3, "b3" })
  l:batch_change(id, { state = "completed", open = false })
  T.eq(l:batches(), {})
  T.raises(function() l:batch_change(9, { open = false }) end, "batch 9 is not in this ledger")
  T.raises(function() l:note(call("b4", { batch = 9 })) end, "FOREIGN KEY")
  l:close()
end)

T.test("what is no ledger, or a newer one, is refused and left as it is", function()
  local path = fresh "other"
  local db = assert(store.open(path))
  db:exec "CREATE TABLE letters (x); INSERT INTO letters VALUES ('dear'); PRAGMA journal_mode = DELETE"
  db:close()
  local bytes = base.read_file(path)
  T.raises(function() ledger.open(path) end, "but no ledger")
  T.ok(base.read_file(path) == bytes, "the file was changed")
  db = assert(store.open(path))
  db:exec "CREATE TABLE attempts (x); CREATE TABLE meta (name, value)"
  db:close()
  T.raises(function() ledger.open(path) end, "but no ledger")
  local l = ledger.open(fresh())
  l.db:exec "UPDATE meta SET value = '2' WHERE name = 'format'"
  l:close()
  T.raises(function() ledger.open(l.path) end, "format 2, made by a newer perilune")
  local junk = fresh "junk"
  assert(base.write_file(junk, ("not a database\n"):rep(1000)))
  T.raises(function() ledger.open(junk) end, "is no SQLite database")
  T.eq(base.read_file(junk), ("not a database\n"):rep(1000))
  T.raises(function() ledger.open(T.tmpdir()) end, "is a directory")
end)

T.test("the default ledger: one for a path, made with its directory", function()
  local home = require "perilune.study.store"
  home.set_home(T.tmpdir() .. "/a/home")
  if not os.getenv "PL_LEDGER" then
    T.eq(ledger.path(), T.tmpdir() .. "/a/home/ledger.db")
    local l = ledger.default()
    T.ok(l == ledger.default())
    T.eq(tostring(l), "ledger " .. ledger.path())
    l:close()
  end
  home.set_home(nil)
end)

T.test("the cost of a note and a record", function()
  local n = T.quick() and 200 or 2000
  local l = ledger.open(fresh())
  local calls, ids = {}, {}
  for i = 1, n do calls[i] = call(base.sha256(tostring(i))) end
  local reply = answer { reply = ("x"):rep(1000) }
  local times = {}
  l:transaction(function()
    local t = os.clock()
    for i = 1, n do ids[i] = l:note(calls[i]) end
    times[1] = (os.clock() - t) / n * 1e6
    t = os.clock()
    for i = 1, n do l:record(ids[i], reply) end
    times[2] = (os.clock() - t) / n * 1e6
  end)
  print(("    %.0f us a note, %.0f us a record"):format(times[1], times[2]))
  if not T.quick() then T.ok(times[1] < 200 and times[2] < 200, "far slower than 40 us") end
  l:close()
end)

T.done()
