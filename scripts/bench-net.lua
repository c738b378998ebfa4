-- `make bench-net`: what the clients of AI services cost, against the mock services of the tests on
-- loopback (50 ms to a reply) and `perilune serve` under load. Each figure stands beside the one to
-- reach. CPU is this process's own, all threads; the mock's and the load client's are not in it.
--   perilune scripts/bench-net.lua            all
--   perilune scripts/bench-net.lua queue PORT the long queue alone (a process of its own, for its memory)
local pl = require "perilune"
local base = require("perilune.core").base
local mock = require "tests.lua.mock"
local progress = require "perilune.study.progress"
local store = require "perilune.study.store"

local PROGRAM = os.getenv "PL_BIN" or "./perilune"
local ROUNDS = 3

local function temporary()
  local dir = os.tmpname()
  os.remove(dir)
  assert(base.mkdirs(dir))
  return dir
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

local rows = {}
local function report(what, got, wanted, good)
  rows[#rows + 1] = { what, got, wanted, good and "reached" or "MISSED" }
end

local function candidates(n, mark)
  local list = {}
  for i = 1, n do
    list[i] = { prompt = ("%s: explain rule %d of chess in a few words."):format(mark, i), completions = {
      { text = ("Rule %d says how a piece moves, and that it may not leave the board."):format(i) },
      { text = ("It is rule %d."):format(i) } } }
  end
  return list
end

-- 2,000 pairs in both orders: 4,000 requests.
local function verdicts()
  local server = mock.start "--latency-ms 50"
  local spec = server:spec("openai", "concurrency=64&price_in=1&price_out=1")
  local seconds, cpus = {}, {}
  for round = 1, ROUNDS do
    local began, cpu = base.now(), os.clock()
    local counts = pl.feedback.compare(spec, candidates(2000, "round " .. round), { order = "both" }).counts
    seconds[round] = base.now() - began
    cpus[round] = 100 * (os.clock() - cpu) / seconds[round]
    assert(counts.asked == 2000 and counts.invalid == 0, "verdicts were lost")
  end
  assert(server:stats().requests == ROUNDS * 4000, "the server counts other requests")
  server:stop()
  local s, c = median(seconds), median(cpus)
  report("4,000 verdicts (2,000 pairs, both orders), 64 in flight, 50 ms", ("%.2f s"):format(s), "under 4 s", s < 4)
  report("  CPU of one core meanwhile", ("%.0f %%"):format(c), "under 40 %", c < 40)
end

-- 50,000 queued, 64 in flight; run in a process of its own.
local function queue(port)
  store.set_home(temporary())
  local prompts = {}
  for i = 1, 50000 do prompts[i] = ("Describe item %d of the long list."):format(i) end
  local counts = pl.feedback.demonstrate(("openai:mock@http://127.0.0.1:%s/v1?concurrency=64"):format(port), prompts,
    { max_tokens = 64 }).counts
  assert(counts.kept == 50000)
  print(("%.1f"):format(pl.memory().rss_peak / 1e6))
  assert(base.remove_tree(store.home()))
end

local function queued()
  local server = mock.start "--latency-ms 5"
  local began = base.now()
  local child = io.popen(("%s scripts/bench-net.lua queue %s 2>/dev/null"):format(PROGRAM, server.port), "r")
  local megabytes = tonumber(child:read "l" or "")
  child:close()
  server:stop()
  report(("50,000 calls queued, 64 in flight: peak memory (done in %.0f s)"):format(base.now() - began),
    megabytes and ("%.0f MB"):format(megabytes) or "failed", "under 200 MB", megabytes and megabytes < 200)
end

-- 32 parallel streams of `perilune serve` against model:generate with batch 32.
local function serve(shape, tokens, rounds, client, python)
  local child = io.popen(("%s scripts/bench-serve.lua %s 32 %d %d %s"):format(PROGRAM, shape, tokens, rounds, python or ""), "r")
  local text = child:read "a"
  child:close()
  local rate, share, cpu = text:match "medians: serve ([%d.]+) tokens/s, ([%d.]+) %% of generate; client ([%d.]+) %% of a core"
  if not share then error("bench-serve.lua: " .. text, 0) end
  report(("serve, %s shape, 32 streams, %s (%s %% of a core): %s tokens/s, share of generate"):format(shape, client, cpu,
    rate), share .. " %", "90 %", tonumber(share) >= 90)
end

if arg[1] == "queue" then
  progress.quiet(true)
  return queue(arg[2])
end

store.set_home(temporary())
progress.quiet(true)
verdicts()
queued()
serve("15m", 64, 5, "a light client")
local python = (os.getenv "PERILUNE_VENV" or "build/parity-venv") .. "/bin/python"
if base.exists(python) then
  serve("1b", 8, 3, "the official openai client", python)
else
  report("serve, 1b shape, 32 streams, the official openai client", "not run", "90 %", false)
  print "serve with the official client needs the environment of make parity (or PERILUNE_VENV)"
end
assert(base.remove_tree(store.home()))
print(require("perilune.cli.table").render({ "what", "here", "to reach", "" }, rows))
