-- perilune tests/net/account.lua PORT CALLS KILLS WINDOW: holds the ledger (PL_LEDGER) against the
-- mock server's own list of requests. Prints ok / not ok lines.
local base = require("perilune.core").base
local net = require("perilune.core").net
local ledger = require "perilune.ai.ledger"

local port, calls, kills, window = arg[1], tonumber(arg[2]), tonumber(arg[3]), tonumber(arg[4])

local function get(path)
  local http <close> = net.client {}
  http:send { id = 1, method = "GET", url = ("http://127.0.0.1:%s%s"):format(port, path), connect_s = 5, total_s = 30, idle_s = 30 }
  while true do
    http:poll(1)
    local r = http:next()
    if r then
      assert(r.status == 200, path)
      return r.body
    end
  end
end

local bad = false
local function check(name, ok, detail)
  print((ok and "ok " or "not ok ") .. name .. (ok and "" or "   " .. tostring(detail)))
  bad = bad or not ok
end

-- the server's side: how each request ended
local server, repeats, served = {}, 0, 0
for line in get("/ids"):gmatch "[^\n]+" do
  local id, how = line:match "^(%S+) (%S+)"
  if server[id] then repeats = repeats + 1 end
  server[id], served = how, served + 1
end

-- ours
local attempts, final, after_final, sent = {}, {}, 0, { answered = 0, possibly = 0, unsent = 0 }
local unknown_to_server, answered_unseen, swallowed = 0, 0, 0
local db = assert(require("perilune.core").store.open(ledger.path()))
for row in db:prepare("SELECT id, key, state, final FROM attempts ORDER BY id"):rows() do
  local id = ("%s-%d"):format(row.key:sub(1, 24), row.id)
  attempts[id] = row
  if final[row.key] then after_final = after_final + 1 end
  if row.final == 1 then final[row.key] = (final[row.key] or 0) + 1 end
  if row.state == "answered" then
    sent.answered = sent.answered + 1
    if not server[id] then answered_unseen = answered_unseen + 1 end
    if server[id] and not server[id]:match "^%d+$" and server[id] ~= "malformed" then swallowed = swallowed + 1 end
  elseif row.state == "unsent" then
    sent.unsent = sent.unsent + 1
    if server[id] then swallowed = swallowed + 1 end
  else
    sent.possibly = sent.possibly + 1
    if not server[id] then unknown_to_server = unknown_to_server + 1 end
  end
end
local finals, twice, strangers = 0, 0, 0
for _, n in pairs(final) do
  finals = finals + 1
  if n > 1 then twice = twice + 1 end
end
for id in pairs(server) do
  if not attempts[id] then strangers = strangers + 1 end
end

check("every_call_has_one_recorded_answer", finals == calls and twice == 0, ("%d of %d, %d twice"):format(finals, calls, twice))
check("nothing_is_sent_after_its_answer", after_final == 0, after_final)
check("no_request_is_sent_twice_under_one_name", repeats == 0, repeats)
check("the_server_saw_nothing_that_the_ledger_does_not_hold", strangers == 0, strangers)
check("recorded_answers_are_the_servers", answered_unseen == 0 and swallowed == 0, answered_unseen .. " " .. swallowed)
check("possibly_paid_unknown_to_the_server_at_most_those_in_flight_at_a_kill", unknown_to_server <= kills * window,
  unknown_to_server)
check("answered_and_possibly_paid_are_the_servers_count", sent.answered + sent.possibly - unknown_to_server == served,
  ("%d answered + %d possibly paid - %d never arrived, the server counts %d"):format(sent.answered, sent.possibly,
    unknown_to_server, served))
io.stderr:write(("%d calls: %d requests at the server; %d answered, %d possibly paid (%d of them never reached it), %d unsent\n")
  :format(calls, served, sent.answered, sent.possibly, unknown_to_server, sent.unsent))
os.exit(bad and 1 or 0, true)
