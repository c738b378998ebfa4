-- Batches against the mock: half the price, found again after every kind of failure, and nothing
-- asked or paid for twice. Processes that are killed: tests/cli/batches.sh.
local T = require "tests.lua.harness"
local ai = require "perilune.ai"
local base = require("perilune.core").base
local budget = require "perilune.ai.budget"
local ledger = require "perilune.ai.ledger"
local mock = require "tests.lua.mock"
local pl = require "perilune"
local process = require "perilune.study.process"
local progress = require "perilune.study.progress"
local store = require "perilune.study.store"

progress.quiet(true)
store.set_home(T.tmpdir())
local server = mock.start "--latency-ms 2"
server:script { batch_polls = 1 }

local serial = 0
local function fresh(n)
  local list = {}
  for i = 1, n do
    serial = serial + 1
    list[i] = ("Tell story number %d."):format(serial)
  end
  return list
end

local PRICES = "price_in=1&price_out=2"
local BATCH = PRICES .. "&batch=true"

local function ask(spec, prompts) return pl.feedback.demonstrate(spec, prompts, { max_tokens = 64 }) end
local function stats() return server:stats() end
local function spent() return ledger.default():spent { study = "script" } end

-- Puts f in the place of a function of a provider's batches while g runs.
local function with(spec, name, f, g)
  local batches = ai.client(spec).provider.wire.batch
  local own = batches[name]
  batches[name] = function(...) return f(own, ...) end
  local ok, problem = pcall(g)
  batches[name] = own
  if not ok then error(problem, 0) end
end

T.test("half the price, out of order, the same answers", function()
  server:script { batch_polls = 2 }
  for _, provider in ipairs { "openai", "anthropic" } do
    local prompts, before = fresh(8), spent()
    T.eq(ask(server:spec(provider, BATCH), prompts).counts.kept, 8, provider)
    local cost, n = spent().paid - before.paid, stats().requests
    T.eq(ask(server:spec(provider, PRICES), prompts).counts.kept, 8)
    T.eq(stats().requests, n, "answered by the ledger")
    T.eq(ask(server:spec(provider, PRICES .. "&temperature=0.5"), prompts).counts.kept, 8)
    T.near(cost, (spent().paid - before.paid) / 3, 1e-12, provider)
    T.eq(spent().possibly, before.possibly)
  end
  server:script { batch_polls = 1 }
end)

T.test("a reply to the creation that is lost: the batch is found by its mark, or by its size and time", function()
  for _, provider in ipairs { "openai", "anthropic" } do
    local n, before = stats().batch_requests, spent()
    server:script { next = provider == "openai" and { "ok", "reset_body" } or { "reset_body" } }
    T.eq(ask(server:spec(provider, BATCH), fresh(5)).counts.kept, 5, provider)
    T.eq(stats().batch_requests - n, 5, provider)
    T.eq(spent().possibly, before.possibly)
  end
end)

T.test("a creation that is refused costs nothing; of one that may have been carried out the next run finds the truth", function()
  for fault, open in pairs { ["400"] = false, ["504"] = true } do
    local prompts, before, n = fresh(4), spent(), stats().batch_requests
    server:script { next = { "ok", fault } }
    T.raises(function() ask(server:spec("openai", BATCH), prompts) end, "status " .. fault)
    T.eq(spent().possibly > before.possibly, open, fault)
    T.eq(ask(server:spec("openai", BATCH), prompts).counts.kept, 4)
    T.near(spent().possibly, before.possibly, 1e-12)
    T.eq(stats().batch_requests - n, 4)
  end
end)

T.test("cut off while it waits: the next run goes on with it, also one that asks for less", function()
  for _, provider in ipairs { "openai", "anthropic" } do
    local spec, prompts, n, before = server:spec(provider, BATCH), fresh(6), stats().batch_requests, spent()
    with(spec, "status", function() error("cut off", 0) end, function()
      T.raises(function() ask(spec, prompts) end, "cut off")
    end)
    -- whoever asks the same goes on with it, though this process lives
    local theirs = ledger.open(ledger.path())
    theirs.owner = "another"
    local row = theirs:batches()[1]
    T.eq({ #theirs:batches(), row.state }, { 1, "left" })
    T.eq(theirs:busy(row.attempts[1].key), nil)
    theirs:own_batch(row.id)
    theirs:close()
    with(spec, "status", function(own, ...)
      local first = row.attempts[1]
      T.ok(ledger.default():ours(first.attempt, first.key), "its calls are ours now")
      return own(...)
    end, function() T.eq(ask(spec, { prompts[2], prompts[5] }).counts.kept, 2) end)
    local after = spent()
    T.eq({ after.answered - before.answered, after.possibly_n }, { 6, before.possibly_n }, "all were paid for")
    T.eq(ask(spec, prompts).counts.kept, 6)
    T.eq(stats().batch_requests - n, 6, provider)
  end
end)

T.test("results are booked once, whoever else booked them while we waited", function()
  local spec, prompts, n = server:spec("openai", BATCH), fresh(3), stats().batch_requests
  with(spec, "results", function(own, api, remote)
    local results = own(api, remote)
    local book = ledger.default()          -- as another process that shares the ledger would
    local row = book:batches()[1]
    book:record(row.attempts[1].attempt, { status = 200, final = true, outcome = "answered", price = 0,
      reply = results[1].body })
    return results
  end, function() T.eq(ask(spec, prompts).counts.kept, 3) end)
  T.eq(stats().batch_requests - n, 3)
end)

T.test("what another process is asking is waited for, and handed in when that one is gone", function()
  local prompts, n = fresh(4), stats().batch_requests
  local pipe <close> = io.popen("echo $$; exec sleep 1", "r")
  local theirs = ledger.open(ledger.path())
  theirs.owner = process.mark(pipe:read "n")
  local service = ai.client(server:spec("openai", BATCH)).provider
  local function request(i) return service:request(service:demonstration({ prompt = prompts[i] }, { max_tokens = 64 })) end
  for i = 1, 2 do theirs:note { key = request(i).key, provider = "openai", model = "m", endpoint = "e", estimate = 0 } end
  local began = base.now()
  T.eq(ask(server:spec("openai", BATCH), prompts).counts.kept, 4)
  T.ok(base.now() - began > 0.7)
  T.eq(stats().batch_requests - n, 4)
  theirs:close()
end)

-- Faults for the lines of batches alone; nil: no more.
local function lines_fail(rates)
  local fine = {}
  for i = 1, rates and 60 or 0 do fine[i] = "ok" end
  server:script { faults = rates or base.null, next = base.json_array {} }
  server:script { next = base.json_array(fine) }
end

T.test("some lines refused: final; all refused, or the key: nothing is; expired ones are handed in again", function()
  local spec, prompts, n = server:spec("openai", BATCH), fresh(30), stats().batch_requests
  lines_fail { ["400"] = 0.3 }
  local invalid = ask(spec, prompts).counts.invalid
  T.ok(invalid > 0 and invalid < 30, invalid)
  T.eq(ask(spec, prompts).counts.invalid, invalid)
  T.eq(stats().batch_requests - n, 30)
  for fault, words in pairs { ["400"] = "status 400", ["401"] = "status 401" } do
    local some = fresh(8)
    lines_fail { [fault] = 1 }
    n = stats().batch_requests
    T.raises(function() ask(spec, some) end, words)
    T.eq(stats().batch_requests - n, 8, fault)
    lines_fail(nil)
    T.eq(ask(spec, some).counts.kept, 8, fault)
  end
  local some = fresh(20)
  lines_fail { stall = 1 }
  n = stats().batch_requests
  T.raises(function() ask(spec, some) end, "20 of 20 calls were not answered")
  T.eq(stats().batch_requests - n, 3 * 20)
  lines_fail(nil)
  T.eq(ask(spec, some).counts.kept, 20)
end)

T.test("a batch that the service gives up says why, once", function()
  local spec, prompts, creations = server:spec("openai", BATCH), fresh(2), 0
  with(spec, "status", function() return true, "failed", 0, "Enqueued token limit reached." end, function()
    with(spec, "results", function() return {} end, function()
      with(spec, "create", function(own, ...)
        creations = creations + 1
        return own(...)
      end, function() T.raises(function() ask(spec, prompts) end, "Enqueued token limit") end)
    end)
  end)
  T.eq(creations, 1)
  T.eq(ask(spec, prompts).counts.kept, 2)
end)

T.test("a batch, or its results, that the service knows no more: open until it is given up, never paid twice before", function()
  local sleep = base.sleep
  base.sleep = function() end
  -- requests before the first that fails: for openai a file, the batch, its status twice
  for provider, before in pairs { openai = { status = 2, results = 4 }, anthropic = { status = 1, results = 2 } } do
    for what, status in pairs { status = "404", results = "410" } do
      local spec, prompts, was, creations = server:spec(provider, BATCH), fresh(3), spent(), 0
      local script = {}
      for i = 1, before[what] + 8 do script[i] = i > before[what] and status or "ok" end
      with(spec, "create", function(own, ...)
        creations = creations + 1
        return own(...)
      end, function()
        server:script { next = script }
        local told
        for _ = 1, 2 do                -- a second run says the same, and hands nothing in
          local ok, message = pcall(ask, spec, prompts)
          T.ok(not ok and message:find "does not know batch .* 3 calls may have been paid", message)
          T.ok(not message:find "model's name", message)
          told = message:match "ledger give%-up ([%w_]+)"
          T.ok(message:find(('"perilune ledger give-up %s --home=%s"'):format(told, store.home()), 1, true), message)
        end
        server:script { next = base.json_array {} }
        T.eq({ creations, #ledger.default():batches() }, { 1, 1 })
        T.eq({ ledger.default():give_up(told), ledger.default():give_up(told) }, { 3 })
        T.eq(ask(spec, prompts).counts.kept, 3, provider .. " " .. what)
      end)
      T.eq({ creations, #ledger.default():batches() }, { 2, 0 })
      T.eq({ spent().possibly_n - was.possibly_n, spent().answered - was.answered }, { 3, 3 })
      T.ok(spent().possibly > was.possibly)
    end
  end
  base.sleep = sleep
end)

T.test("the budget: scripts have one too, and what is left over after a batch is used", function()
  local prompts, spec = fresh(12), server:spec("openai", "price_in=1000&price_out=1000&batch=true")
  local before = spent()
  budget.script = before.paid + before.possibly
  T.raises(function() ask(spec, prompts) end, "budget=")
  T.eq(spent().attempts, before.attempts, "nothing was handed in")
  local cost = ai.client(spec).provider
  cost = cost:estimate(cost:request(cost:demonstration({ prompt = prompts[1] }, { max_tokens = 64 })))
  budget.script = before.paid + before.possibly + 7 * cost       -- in one go they would not fit
  local ok, message = pcall(ask, spec, prompts)
  T.ok(ok or message:find "budget=", message)
  T.ok(spent().answered - before.answered > 7, "the rest of the money was used")
  T.ok(spent().paid + spent().possibly <= budget.script)
  T.raises(function() ask(server:spec("openai", "batch=true"), fresh(1)) end, "price")
  budget.script = nil
end)

T.done()
