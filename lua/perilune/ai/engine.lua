--- Many calls to one service: a queue with a window of requests in flight, limits,
--- retries and a budget, over one event loop in one thread.
---
--- The order that no money is lost by: a request is noted in the ledger before it is
--- sent, and a reply is written there before anybody uses it. Each turn of the loop
--- makes one transaction of all replies that came and all requests about to go.
--- What a request looks like and what a reply means is the service's (remote.lua).
local base = require("perilune.core").base
local ledger = require "perilune.ai.ledger"
local net = require("perilune.core").net
local stage = require "perilune.study.stage"
local wire = require "perilune.ai.wire"

local engine = {}

---@class perilune.ai.Answer how a call ended
---@field outcome "answered"|"refused"|"invalid"|"failed"
---@field text string|nil
---@field finish string|nil "stop", "length", ...
---@field logprobs table[]|nil per token {token, logprob, top = {{token, logprob}, ...}}
---@field problem string|nil why there is no text

---@class perilune.ai.Source what is to be asked
---@field n integer
---@field make fun(i: integer): table the i-th call (made when its turn comes: a long queue is only a number)
---@field done fun(i: integer, answer: perilune.ai.Answer) in the order replies come
---@field on_progress? fun(done: integer, values: table)
---@field stage? string what the ledger files it under

-- Waits between tries: full jitter below 0.5 s, 1 s, 2 s, ... up to the cap.
local FIRST_WAIT, LONGEST_WAIT = 0.5, 60
-- A wait that a service asks for is believed up to this.
local LONGEST_ASKED = 300
-- So many tries where the service was never reached: a wrong address should be said soon.
local TRIES_UNREACHED = 3
-- So many refused calls, and none answered, are no accident of one text.
local HOPELESS = 5
-- Another process is asking the same: look again after so long.
local LOOK_AGAIN = 0.5

-- Failures before a whole reply, and whether trying again can help.
local TRANSIENT = { resolve = true, connect = true, reset = true, timeout = true, idle = true, short = true,
  protocol = true }

local http                     -- the process's client: its connections outlive a stage
local flying = {}              -- jobs in flight by id; not empty after a run only if that was cut off by Ctrl-C
local last_id = 0

---The most dollars that scripts and the shell may spend in this process; recipes have
---`budget=`. nil: no limit.
engine.budget = nil

-- Work left behind by a run that Ctrl-C ended: its requests may have been paid for.
local function abandon(book)
  if not next(flying) then return end
  book:transaction(function()
    for _, job in pairs(flying) do book:lost(job.attempt, "interrupted") end
  end)
  for id in pairs(flying) do http:cancel(id) end
  flying = {}
end

local Run = {}
Run.__index = Run

local function study_of(current)
  return current and current.study or "script"
end

local function new_run(service, source)
  local book = ledger.default()
  abandon(book)
  local current = stage.current()
  local run = setmetatable({
    service = service, source = source, book = book, study = study_of(current), gate = service.gate,
    budget = current and current.params and current.params.budget or not current and engine.budget or nil,
    next = 1, finished = 0, in_flight = 0, later = {}, by_key = {}, answered = 0, refused_calls = 0, failed = 0,
    reached = false, reserved = 0, asked = 0,
  }, Run)
  local spent = book:spent { study = run.study }
  run.spent = spent.paid + spent.possibly
  if run.budget and not service.price then
    error(("%s: budget=%g needs a price, and the price of %s is not known: give price_in= and price_out= (dollars "
      .. "per million tokens), or a table in PL_PRICES"):format(service.name, run.budget, service.model), 0)
  end
  return run
end

-- Nothing new is sent from here on; what is in flight is waited for and kept.
function Run:stop(message)
  self.stopping = self.stopping or message
end

function Run:finish(job, answer)
  for _, i in ipairs(job.indices) do
    self.finished = self.finished + 1
    self.source.done(i, answer)
  end
  self.by_key[job.key] = nil
end

-- A recorded answer, as it was understood when it came.
function Run:recall(entry, request)
  if entry.outcome == "failed" then
    return { outcome = "failed", problem = wire.message(self.service.name, entry.status, entry.reply) }
  end
  return (self.service:read(entry.reply, request))
end

-- Makes the next call of the source into a job, or deals with it at once where the
-- ledger has its answer or the same call is already under way.
function Run:take()
  local i = self.next
  self.next = i + 1
  local request = self.service:request(self.source.make(i))
  local twin = self.by_key[request.key]
  if twin then
    twin.indices[#twin.indices + 1] = i
    return nil
  end
  local entry = self.book:find(request.key)
  if entry then
    self:finish({ indices = { i }, key = request.key }, self:recall(entry, request))
    return nil
  end
  local job = { indices = { i }, key = request.key, request = request, tries = 0 }
  self.by_key[request.key] = job
  return job
end

-- The key of a paid service is read when the first request has to go, not before: a
-- finished study is replayed without one.
function Run:unlock(job)
  if self.unlocked then return end
  local ok, message = self.service:unlock()
  if not ok then
    error(("%s: %s, and the ledger %s does not hold this call: %s"):format(self.service.name, message,
      ledger.path(), job.request.about), 0)
  end
  self.unlocked = true
end

function Run:schedule(job, at)
  job.at = at
  local list = self.later
  local k = #list + 1
  while k > 1 and list[k - 1].at > at do
    list[k] = list[k - 1]
    k = k - 1
  end
  list[k] = job
end

-- The next job to send now; nil and how long to wait if there is none.
function Run:ready(now)
  if self.stopping then return nil, math.huge end
  if self.held then return self.held, 0 end
  local due = self.later[1]
  if due and due.at <= now then
    table.remove(self.later, 1)
    return due, 0
  end
  if self.next <= self.source.n then return self:take(), 0 end
  return nil, due and due.at - now or math.huge
end

-- Whether money is left for the job; false: not while others are in flight.
function Run:affordable(job)
  local estimate = self.service:estimate(job.request)
  job.estimate = estimate
  if not self.budget or self.spent + self.reserved + estimate <= self.budget then return true end
  if self.in_flight == 0 then
    self:stop(("%s: budget=%g is reached: %.4f dollars are spent or possibly spent, and the next call may cost %.4f. "
      .. "%d of %d answers are kept; a larger budget goes on from here"):format(self.service.name, self.budget,
      self.spent, estimate, self.finished, self.source.n))
  end
  return false
end

-- Jobs that go now, and how long until another may.
function Run:fill(now)
  local sends, wait = {}, math.huge
  while true do
    local job, pause = self:ready(now)
    if not job then
      wait = pause
      if pause > 0 then break end
    else
      self.held = job
      wait = self.gate:wait(job.request.tokens, self.in_flight, now)
      if wait > 0 then break end
      if self:affordable(job) then
        self.held = nil
        self:unlock(job)
        self.gate:sent(job.request.tokens)
        self.in_flight, self.reserved = self.in_flight + 1, self.reserved + (job.estimate or 0)
        sends[#sends + 1] = job
      else
        wait = math.huge
        break
      end
    end
  end
  return sends, wait
end

-- Notes a job that is about to go; false where another process has its answer or is asking
-- for it. Within the transaction nobody can come between the look and the note.
function Run:note(job)
  local service = self.service
  job.entry = self.book:find(job.key)
  if job.entry or self.book:busy(job.key) then return false end
  job.attempt = self.book:note {
    key = job.key, provider = service.provider, model = service.model, endpoint = job.request.url, study = self.study,
    stage = self.source.stage, estimate = service.price and job.estimate or nil, prompt_tokens = job.request.prompt_tokens,
    sample = job.request.sample,
  }
  return true
end

-- A job that another process took first.
function Run:yield(job, now)
  self.in_flight, self.reserved = self.in_flight - 1, self.reserved - job.estimate
  if job.entry then
    self:finish(job, self:recall(job.entry, job.request))
  else
    self:schedule(job, now + LOOK_AGAIN)
  end
end

function Run:send(job)
  last_id = last_id + 1
  flying[last_id] = job
  job.tries, self.asked = job.tries + 1, self.asked + 1
  local request, service = job.request, self.service
  http:send {
    id = last_id, method = "POST", url = request.url, headers = service:headers(("%s-%d"):format(job.key:sub(1, 24),
      job.attempt)), body = request.body, stream = request.stream, secret_header = service.secret_header,
    secret_env = service.unlocked_env, insecure = service.insecure, connect_s = service.connect_s,
    total_s = request.stream and 86400 or service.timeout, idle_s = request.stream and service.idle or service.timeout,
    max_body = service.max_body,
  }
end

-- ------------------------------------------------------------------- replies

-- What a transfer that ended means: {record = fields for the ledger, or lost = reason, or
-- unsent = reason; answer, again, wait, stop}.
function Run:judge(job, r)
  local service = self.service
  if r.failure then
    local text = ("%s: %s"):format(service.name, r.message or r.failure)
    if not r.sent then
      return { unsent = r.failure, again = TRANSIENT[r.failure], problem = text, stop = not TRANSIENT[r.failure] }
    end
    if r.failure == "too_large" then
      return { record = { status = r.status, outcome = "invalid", final = true }, reply = "",
        answer = { outcome = "invalid", problem = text } }
    end
    return { lost = r.failure, again = TRANSIENT[r.failure], problem = text, stop = not TRANSIENT[r.failure] }
  end
  local id = service:request_id(r.headers)
  if r.status >= 200 and r.status < 300 then
    local answer, problem = service:read(r.body, job.request)
    if answer then
      return { record = { status = r.status, outcome = answer.outcome, final = true, request_id = id }, answer = answer }
    end
    -- a 200 whose body is an error
    local verdict = wire.verdict(problem.status or 500, r.headers, problem)
    return self:refusal(r, verdict, problem, id)
  end
  local problem = service:problem(r.status, r.body)
  return self:refusal(r, wire.verdict(r.status, r.headers, problem), problem, id)
end

function Run:refusal(r, verdict, problem, id)
  local text = wire.message(self.service.name, r.status, problem.message, id)
  -- a refusal costs nothing; a stream that broke off was written for as long as it lasted
  local record = { status = r.status, outcome = "failed", final = false, request_id = id, free = not problem.cut }
  if verdict == "stop" then return { record = record, problem = text, stop = true } end
  if verdict == "again" then
    local slow = r.status == 429 or r.status == 503 or r.status == 529
    return { record = record, again = true, problem = text, slow = slow,
      wait = wire.retry_after(r.headers, LONGEST_ASKED) }
  end
  -- This call is refused for what it says. It is an answer of its own where others go well.
  record.final = self.answered > 0
  return { record = record, answer = { outcome = "failed", problem = text }, refused = true }
end

-- Completes the ledger's fields and the running sums.
function Run:price(job, fate, r)
  local record, service = fate.record, self.service
  self.reserved = self.reserved - (job.estimate or 0)
  if fate.unsent then return end
  if not record then
    self.spent = self.spent + (job.estimate or 0)
    return
  end
  record.reply = fate.reply or r.body
  record.seconds = r.seconds
  local free = record.free
  record.free = nil
  if free then
    record.price = 0.0
  else
    local usage = service:usage(fate.answer, job.request)
    record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    record.cached_tokens, record.estimated = usage.cached_tokens, usage.estimated
    record.price = service:cost(usage)
  end
  self.spent = self.spent + (record.price or 0)
end

function Run:collect(now)
  local arrived = {}
  while true do
    local r = http:next()
    if not r then return arrived end
    local job = not r.event and not r.data and flying[r.id]
    if job then
      flying[r.id] = nil
      self.in_flight = self.in_flight - 1
      if r.body then r.body = net.redact(r.body) end
      local fate = self:judge(job, r)
      fate.job = job
      self:price(job, fate, r)
      if r.headers then self.gate:learn(self.service:limits(r.headers), self.in_flight, now) end
      arrived[#arrived + 1] = fate
    end
  end
end

function Run:write(fate)
  local book, attempt = self.book, fate.job.attempt
  if fate.record then
    local entry = fate.record.final and book:find(fate.job.key)
    if entry then       -- two machines share the ledger and cannot see each other: the first answer stands
      fate.record.final, fate.answer = false, self:recall(entry, fate.job.request)
    end
    book:record(attempt, fate.record)
  elseif fate.unsent then
    book:unsent(attempt, fate.unsent)
  else
    book:lost(attempt, fate.lost)
  end
end

-- After it is written: hand the answer over, or line up the next try.
function Run:settle(fate, now)
  local job = fate.job
  if fate.record then self.reached = true end
  if fate.answer then
    if fate.refused then
      self.refused_calls, self.last_problem = self.refused_calls + 1, fate.answer.problem
      if self.refused_calls >= HOPELESS and self.answered == 0 then self:stop(fate.answer.problem) end
    else
      self.answered = self.answered + 1
      self.gate:well()
    end
    self:finish(job, fate.answer)
    return
  end
  self.last_problem = fate.problem
  if fate.stop then
    self:stop(fate.problem)
    return
  end
  if fate.slow then self.gate:refused(fate.wait, now) end
  local most = self.reached and self.service.tries or math.min(TRIES_UNREACHED, self.service.tries)
  if job.tries >= most then
    self.failed = self.failed + 1
    self:finish(job, { outcome = "failed", problem = fate.problem })
    -- a service that fails so many calls in a row is down: what it still owes can wait
    if self.failed >= HOPELESS and self.answered == 0 then self:stop(fate.problem) end
    return
  end
  local ceiling = math.min(LONGEST_WAIT, FIRST_WAIT * 2 ^ (job.tries - 1))
  self:schedule(job, now + (fate.wait or 0) + math.random() * ceiling)
end

function Run:progress()
  if not self.source.on_progress then return end
  local values = { flying = self.in_flight }
  if self.service.price then values["dollars"] = self.spent end
  self.source.on_progress(self.finished, values)
end

function Run:turn()
  local now = base.now()
  local arrived = self:collect(now)
  local sends, wait = self:fill(now)
  local taken = {}
  if #arrived > 0 or #sends > 0 then
    self.book:transaction(function()
      for _, fate in ipairs(arrived) do self:write(fate) end
      for _, job in ipairs(sends) do
        if not self:note(job) then taken[job] = true end
      end
    end)
  end
  for _, job in ipairs(sends) do
    if taken[job] then self:yield(job, now) else self:send(job) end
  end
  for _, fate in ipairs(arrived) do self:settle(fate, now) end
  self:progress()
  local idle = self.in_flight == 0 and #sends == 0 and #arrived == 0
  if idle and self.stopping then error(self.stopping, 0) end
  if self.finished < self.source.n or self.in_flight > 0 then
    http:poll(#arrived > 0 and 0 or math.max(0, math.min(wait, 1)))
  end
end

-- After a failure in the loop nothing of this run may stay in flight.
local function clear(book)
  pcall(abandon, book)
  flying = {}
end

---Asks all calls of the source; returns when each has ended. Raises when the stage
---cannot go on (no key, a budget reached, a service that refuses everything) and when
---calls failed for reasons that may pass: all answers that came are in the ledger, and
---the same stage asks only the rest.
---@param service perilune.ai.Service
---@param source perilune.ai.Source
function engine.run(service, source)
  http = http or net.client { connections = 256, user_agent = "perilune/" .. require("perilune").version }
  local run = new_run(service, source)
  local ok, problem = pcall(function()
    while run.finished < source.n or run.in_flight > 0 do run:turn() end
  end)
  if not ok then
    clear(run.book)
    error(problem, 0)
  end
  if run.failed > 0 then
    error(("%s\n%d of %d calls failed, also when tried again. The other answers are kept in %s; the same command "
      .. "asks only what is missing"):format(run.last_problem, run.failed, source.n, ledger.path()), 0)
  end
  if run.answered == 0 and run.refused_calls > 0 and run.refused_calls == run.asked then
    error(run.last_problem, 0)
  end
end

return engine
