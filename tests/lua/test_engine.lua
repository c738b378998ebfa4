-- Calls to services against the mock: what is tried again, what is final, what it costs, and that
-- nothing is asked or paid for twice.
local T = require "tests.lua.harness"
local base = require("perilune.core").base
local ai = require "perilune.ai"
local budget = require "perilune.ai.budget"
local engine = require "perilune.ai.engine"
local ledger = require "perilune.ai.ledger"
local mock = require "tests.lua.mock"
local pl = require "perilune"
local progress = require "perilune.study.progress"
local store = require "perilune.study.store"

progress.quiet(true)
store.set_home(T.tmpdir())
local server = mock.start "--latency-ms 2"

-- The waits between tries are drawn up to their ceilings; here short ones are.
local random = math.random
math.random = function(...) return select("#", ...) > 0 and random(...) or 0.2 * random() end

local serial = 0
-- Prompts that no test has used.
local function fresh(n)
  local list = {}
  for i = 1, n or 1 do
    serial = serial + 1
    list[i] = ("Tell story number %d."):format(serial)
  end
  return list
end

local ONCE = "timeout=0.4&price_in=1&price_out=2&tries=1"
local FAST = "timeout=0.4&price_in=1&price_out=2&tries=4"

local function ask(spec, prompts, opts)
  opts = opts or {}
  opts.max_tokens = opts.max_tokens or 64
  return pl.feedback.demonstrate(spec, prompts, opts)
end

local function requests() return server:stats().requests end

-- How many attempts of the calls made since attempt number `since` ended how, a text a call.
local function ends_of(since)
  local db, out = ledger.default().db, {}
  local s <close> = db:prepare "SELECT key, state, final, outcome FROM attempts WHERE id > ? ORDER BY id"
  for row in s:rows(since) do
    local word = row.final == 1 and "final" or row.outcome or row.state
    out[row.key] = (out[row.key] and out[row.key] .. " " or "") .. word
  end
  return out
end

local function last_attempt() return ledger.default().db:prepare("SELECT coalesce(max(id), 0) FROM attempts"):value() end

T.test("a fault that passes is tried again, and the answer comes once", function()
  local faults = { "429", "500", "503", "529", "408", "409", "reset", "reset_body", "stall", "short", "error200",
    "html502" }
  -- one call a fault, all waiting for their second tries at a time
  local before, prompts, since = requests(), fresh(#faults), last_attempt()
  server:script { next = faults }
  T.eq(ask(server:spec("openai", FAST), prompts).counts.kept, #faults)
  T.eq(requests() - before, 2 * #faults)
  local n = 0
  for _, ends in pairs(ends_of(since)) do
    n = n + 1
    T.ok(ends == "failed final" or ends == "lost final", ends)
  end
  T.eq(n, #faults)
  ask(server:spec("openai", FAST), prompts)
  T.eq(requests() - before, 2 * #faults, "again")
end)

T.test("a reply that is no answer is paid for, recorded, and not asked again", function()
  for _, fault in ipairs { "malformed", "empty" } do
    local before, prompts = requests(), fresh()
    server:script { next = { fault } }
    for _ = 1, 2 do
      T.eq(ask(server:spec("openai", FAST), prompts).counts.invalid, 1, fault)
      T.eq(requests() - before, 1, fault)
    end
  end
end)

T.test("an empty account, a wrong model and a moved address stop the stage and say why", function()
  for fault, words in pairs { quota = "quota", ["401"] = "key", ["404"] = "name", ["302"] = "redirects" } do
    server:script { next = { fault } }
    T.raises(function() ask(server:spec("openai", FAST), fresh()) end, words)
  end
end)

T.test("a call refused for what it says is an invalid answer among good ones, and final", function()
  local before, prompts = requests(), fresh(4)
  server:script { next = { "ok", "ok", "400", "ok" } }
  for _ = 1, 2 do
    local counts = ask(server:spec("openai", FAST .. "&concurrency=1"), prompts).counts
    T.eq({ counts.asked, counts.kept, counts.invalid }, { 4, 3, 1 })
    T.eq(requests() - before, 4)
  end
  server:script { next = { "400", "400", "400", "400", "400", "400", "400" } }
  T.raises(function() ask(server:spec("openai", FAST .. "&concurrency=1"), fresh(7)) end, "status 400")
  server:script { clear = true }
end)

T.test("a service that stays down is an error; what came is kept and the rest asked later", function()
  local prompts = fresh(6)
  server:script { next = { "ok", "ok", "500", "500", "500", "ok", "ok", "ok" } }
  local message = T.raises(function() ask(server:spec("openai", ONCE .. "&concurrency=1"), prompts) end, "failed")
  T.ok(message:find("3 of 6", 1, true), message)
  local before = requests()
  T.eq(ask(server:spec("openai", FAST), prompts).counts.kept, 6)
  T.eq(requests() - before, 3)
end)

T.test("nobody there: said soon, with the address; nothing is noted as paid", function()
  local began, spent = base.now(), ledger.default():spent { study = "script" }
  local message = T.raises(function() ask("openai:m@http://127.0.0.1:1/v1?price_in=1&price_out=1", fresh()) end, "127.0.0.1")
  T.ok(base.now() - began < 4, message)
  local after = ledger.default():spent { study = "script" }
  T.eq({ after.possibly, after.attempts }, { spent.possibly, spent.attempts + 3 })
end)

T.test("several samples are different calls; the same call twice in a stage is one", function()
  local before, prompts = requests(), fresh(3)
  local demos = ask(server:spec("openai", FAST), { prompts[1], prompts[2], prompts[1], prompts[3] }, { n = 2 })
  T.eq(demos.counts.kept, 8)
  T.eq(requests() - before, 6)
  T.eq(demos[1].completion, demos[5].completion)
end)

T.test("the window is kept to, and used", function()
  server:script { latency_ms = 20 }
  local began = base.now()
  ask(server:spec("openai", FAST .. "&concurrency=16"), fresh(64))
  local seconds = base.now() - began
  server:script { latency_ms = 2 }
  T.ok(server:stats().max_in_flight <= 16)
  T.ok(seconds < 1, seconds)
  T.ok(server:stats().connections < 200)
end)

T.test("retry-after is waited for", function()
  for _, case in ipairs { { "0.3", 0.3 }, { "-1", 0 }, { "nonsense", 0 } } do
    server:script { next = { "429", "ok" }, retry_after = case[1] }
    local began = base.now()
    ask(server:spec("openai", FAST), fresh())
    T.ok(base.now() - began >= case[2], case[1])
    T.ok(base.now() - began < 3, case[1])
  end
end)

T.test("a stream gives the same text; one that is cut is asked again", function()
  local prompts = fresh()
  for _, provider in ipairs { "openai", "anthropic", "gemini" } do
    local plain = ask(server:spec(provider, FAST), prompts)[1].completion
    T.eq(ask(server:spec(provider, FAST .. "&stream=true"), prompts)[1].completion, plain, provider)
  end
  for _, cut in ipairs { 1, 60, 200 } do
    local before = requests()
    server:script { sse_cut = cut }
    T.eq(ask(server:spec("openai", FAST .. "&stream=true"), fresh()).counts.kept, 1, cut)
    T.eq(requests() - before, 2, cut)
  end
end)

T.test("every provider: answers, costs and tokens are in the ledger", function()
  for _, provider in ipairs { "openai", "anthropic", "gemini" } do
    local before = ledger.default():spent { study = "script" }
    local demos = ask(server:spec(provider, FAST), fresh(3))
    T.eq(demos.counts.kept, 3, provider)
    local after = ledger.default():spent { study = "script" }
    T.eq(after.answered - before.answered, 3, provider)
    T.ok(after.paid > before.paid, provider)
  end
end)

T.test("a judge of ours and a published one, in both orders", function()
  local candidates = {}
  for i, prompt in ipairs(fresh(6)) do
    candidates[i] = { prompt = prompt, completions = { { text = "A good and much longer answer " .. i }, { text = "Bad" } } }
  end
  local prefs = pl.feedback.compare(server:spec("openai", FAST), candidates, { order = "both" })
  T.eq(prefs.counts.asked, 6)
  T.eq(prefs.counts.invalid, 0)
  for _, template in ipairs { "alpaca_gpt4", "alpaca_eval_2", "mt_bench_pair" } do
    local counts = pl.feedback.compare(server:spec("openai", FAST), candidates, { order = "both", template = template }).counts
    T.eq(counts.invalid, 0, template)
    T.eq(counts.win + counts.tie + counts.loss, 6, template)
  end
end)

T.test("a plan knows what the ledger holds and how long replies took, and sends nothing", function()
  local prompts = fresh(5)
  local client = ai.client(server:spec("openai", FAST))
  ask(client, { prompts[1], prompts[2] })
  local requests_now, list = requests(), {}
  for i, prompt in ipairs(prompts) do list[i] = { task = "demonstrate", prompt = prompt, index = 1 } end
  local plan = client:plan("demonstrate", list, { max_tokens = 64, seed = 0 })
  T.eq({ plan.calls, plan.kept, plan.guessed }, { 3, 2, false })
  T.ok(plan.dollars.low < plan.dollars.expected and plan.dollars.expected < plan.dollars.max)
  T.eq(plan.completion_tokens.max, 3 * 64)
  local pair = { task = "compare", prompt = prompts[1], a = "long answer", b = "x" }
  local spec = server:spec("openai", FAST)
  ai.client(spec):compare({ pair }, { seed = 0 })
  T.eq(ai.client(spec):plan("compare", { pair }, { seed = 0 }).kept, 1)
  T.eq(requests(), requests_now + 1)
end)

T.test("structured replies of our own judge prompts", function()
  local candidates = { { prompt = fresh()[1], completions = { { text = "A good and much longer answer" }, { text = "Bad" } } } }
  local counts = pl.feedback.compare(server:spec("openai", FAST .. "&schema=true"), candidates, { order = "both" }).counts
  T.eq(counts.asked - counts.invalid, 1)
  local rated = pl.feedback.rate(server:spec("openai", FAST .. "&schema=true"), { { prompt = "p", completion = "An answer." } })
  T.eq(rated.counts.rated, 1)
end)

T.test("a reply in broken UTF-8 is an answer with U+FFFD in it", function()
  server:script { next = { "invalid_utf8" } }
  local demos = ask(server:spec("openai", FAST), fresh())
  T.eq(demos.counts.kept, 1)
  T.ok(utf8.len(demos[1].completion) and demos[1].completion:find "\u{FFFD}")
end)

T.test("the budget is kept to, what came is kept, and more money goes on", function()
  local prompts = fresh(30)
  local spec = server:spec("openai", "price_in=1000&price_out=1000&concurrency=4")
  local spent = ledger.default():spent { study = "script" }
  local before = spent.paid + spent.possibly
  ai.budget(before + 0.5)
  local message = T.raises(function() ask(spec, prompts) end, "budget")
  local now = ledger.default():spent { study = "script" }
  T.ok(now.paid + now.possibly <= budget.script, message)
  local first = requests()
  ai.budget(before + 1e6)
  T.eq(ask(spec, prompts).counts.kept, 30)
  T.ok(requests() - first < 30)
  T.raises(function() ask(server:spec "openai", fresh()) end, "price")
  ai.budget(nil)
  T.raises(function() ai.budget(-1) end, "0 or more")
end)

T.test("what was refused before others went well is final too: a replay finds it", function()
  local before, prompts = requests(), fresh(3)
  server:script { next = { "400", "ok", "ok" } }
  for _ = 1, 2 do
    T.eq(ask(server:spec("openai", FAST .. "&concurrency=1"), prompts).counts.invalid, 1)
    T.eq(requests() - before, 3)
  end
  -- a run that was killed between its last refusal and the next answer
  local late = fresh(2)
  ask(server:spec("openai", FAST), { late[1] })
  server:script { next = { "400" } }
  T.eq(ask(server:spec("openai", FAST), late).counts.invalid, 1)
  T.eq(ask(server:spec("openai", FAST), late).counts.invalid, 1)
  T.eq(requests() - before, 5)
end)

T.test("a service that begins to refuse all, or breaks down, stops the stage: nothing of that is final", function()
  for fault, words in pairs { ["400"] = "status 400", ["500"] = "status 500" } do
    local many, prompts, before = { "ok", "ok" }, fresh(40), requests()
    for i = 3, 40 do many[i] = fault end
    server:script { next = many }
    T.raises(function() ask(server:spec("openai", "tries=1&concurrency=2"), prompts) end, words)
    T.ok(requests() - before < 16, requests() - before)
    server:script { next = base.json_array {} }
    T.eq(ask(server:spec("openai", FAST), prompts).counts.kept, 40, fault)
  end
end)

T.test("a reply that is too large is an invalid answer, also from the ledger and of a stream", function()
  server:script { reply = ("long "):rep(2000) }
  for _, stream in ipairs { "", "&stream=true" } do
    local before, prompts = requests(), fresh()
    for _ = 1, 2 do
      T.eq(ask(server:spec("openai", FAST .. "&max_body=1024" .. stream), prompts, { max_tokens = 5000 }).counts.invalid, 1)
      T.eq(requests() - before, 1)
    end
  end
  server:script { reply = base.null }
end)

T.test("an error in the midst of a run keeps all that came and leaves nothing open", function()
  local service, prompts, since = ai.client(server:spec("openai", FAST .. "&concurrency=4")).provider, fresh(40), last_attempt()
  local before, answered = requests(), 0
  local function source(broken)
    return { n = 40, stage = "broken", done = function() answered = answered + 1 end, make = function(i)
      if broken and i == 30 then error("no such call", 0) end
      return service:demonstration({ prompt = prompts[i] }, { max_tokens = 9 })
    end }
  end
  T.raises(function() engine.run(service, source(true)) end, "no such call")
  local sent, finals, lost = requests() - before, 0, 0
  for _, word in pairs(ends_of(since)) do
    T.ok(word == "final" or word == "lost", word)
    if word == "final" then finals = finals + 1 else lost = lost + 1 end
  end
  T.eq({ finals, lost }, { sent, 0 })
  engine.run(service, source(false))
  T.eq(requests() - before, 40)
end)

T.test("the budget counts what another process spends meanwhile", function()
  local spec, prompts = server:spec("openai", "price_in=1&price_out=1&concurrency=1"), fresh(6)
  local other = ledger.open(ledger.path())
  local spent = ledger.default():spent { study = "script" }
  budget.script = spent.paid + spent.possibly + 1
  local service, before = ai.client(spec).provider, requests()
  T.raises(function()
    engine.run(service, { n = 6, make = function(i) return service:demonstration({ prompt = prompts[i] }, { max_tokens = 9 }) end,
      done = function(i)
        if i == 2 then
          other:note { key = "theirs", provider = "p", model = "m", endpoint = "e", study = "script", estimate = 2 }
        end
      end })
  end, "budget=")
  T.eq(requests() - before, 3)        -- the third went while the second was handed over
  budget.script = nil
  other:close()
end)

T.test("a plan counts what will be sent, and knows how long the model takes", function()
  local prompts = fresh(3)
  local service = ai.client(server:spec("openai", FAST)).provider
  local function requests_of(list)
    local out = {}
    for i, prompt in ipairs(list) do out[i] = { task = "compare", prompt = prompt, a = "One", b = "Two" } end
    return out
  end
  local list = { prompts[1], prompts[2], prompts[1], prompts[3] }
  T.eq(service:plan("compare", requests_of(list), {}).calls, 3)
  local before = requests()
  service:compare(requests_of(list), {})
  T.eq(requests() - before, 3)
  local plan = service:plan("compare", requests_of(list), {})
  T.eq({ plan.calls, plan.kept }, { 0, 4 })
  T.ok(service:plan("compare", requests_of(fresh(32)), {}).seconds < 1, "measured, not assumed")
  T.raises(function() service:plan("compare", { { prompt = "p", a = "x" } }, {}) end)
  T.eq(service.planned, nil)
end)

T.test("a client is the same object whatever stands behind it", function()
  local client = ai.client(server:spec("openai", FAST))
  T.eq(client:demonstrate({ { task = "demonstrate", prompt = fresh()[1] } }, { max_tokens = 64 })[1].finish, "stop")
  T.ok(type(client:key()) == "string")
end)

T.done()
