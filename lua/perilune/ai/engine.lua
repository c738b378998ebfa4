--- Many calls to one service: a queue with a window of requests in flight, limits,
--- retries and a budget, over one event loop in one thread.
---
--- The order that no money is lost by: a request is noted in the ledger before it is
--- sent, and a reply is written there before anybody uses it. Each turn of the loop
--- makes one transaction of all replies that came and all requests about to go.
--- What a request looks like and what a reply means is the service's (remote.lua).
local base = require("perilune.core").base
local budget = require "perilune.ai.budget"
local ledger = require "perilune.ai.ledger"
local net = require("perilune.core").net
local progress = require "perilune.study.progress"
local rand = require "perilune.rand"
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
-- So many calls in a row that are refused or fail are no accident of one text; once a call was
-- answered, as many more as may have been in flight when the trouble began.
local HOPELESS = 5
-- Another process is asking the same: look again after so long.
local LOOK_AGAIN = 0.5
-- After an error of ours or Ctrl-C, replies to what was paid for are waited for so long.
local LAST_WAIT = 5
-- Jobs that wait for their next try; beyond that no new ones are begun.
local MOST_WAITING = 1024
-- Calls that the ledger answers, before replies and the progress line get their turn.
local MOST_RECALLED = 256

-- Failures before a whole reply, and whether trying again can help.
local TRANSIENT = { resolve = true, connect = true, reset = true, timeout = true, idle = true, short = true,
  protocol = true }

local http                     -- the process's client: its connections outlive a stage

local Run = {}
Run.__index = Run

local function new_run(service, source)
  local book = ledger.default()
  return setmetatable({
    service = service, source = source, book = book, gate = service.gate, budget = budget.open(book),
    next = 1, finished = 0, in_flight = 0, later = {}, by_key = {}, reserved = 0,
    open = {},                 -- jobs that are noted and have no end in the ledger, by attempt
    arrived = {},              -- replies that are not written yet
    doubtful = {},             -- attempts that were refused since the last answer: perhaps not the calls' fault
    answered = 0, failed = 0, failed_in_row = 0, reached = false, proven = false,
  }, Run)
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
    self.proven = self.proven or entry.outcome ~= "failed"
    self:finish({ indices = { i }, key = request.key }, self.service:recall(entry, request))
    return nil
  end
  local job = { indices = { i }, key = request.key, request = request, tries = 0 }
  self.by_key[request.key] = job
  return job
end

-- The key of a paid service is read when the first request has to go, not before: a
-- finished study is replayed without one. So is its price, where there is a budget.
function Run:unlock(job)
  if self.unlocked then return end
  self.budget:check(self.service)
  self.service:must_unlock(job.request)
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
  if self.next <= self.source.n and #self.later < MOST_WAITING then return self:take(), 0 end
  return nil, due and due.at - now or math.huge
end

-- Whether money is left for the job; false: not while others are in flight.
function Run:affordable(job)
  job.estimate = self.service:estimate(job.request)
  if self.budget:affords(self.reserved + job.estimate) then return true end
  if self.in_flight == 0 then
    self:stop(self.budget:message(self.service, job.estimate, self.finished, self.source.n))
  end
  return false
end

-- Jobs that go now, and how long until another may.
function Run:fill(now)
  local sends, wait, recalled = {}, math.huge, 0
  while recalled < MOST_RECALLED do
    local job, pause = self:ready(now)
    wait = pause
    if job then
      self.held = job
      wait = self.gate:wait(job.request.tokens, self.in_flight, now)
      if wait > 0 then break end
      self:unlock(job)
      if not self:affordable(job) then return sends, math.huge end
      self.held = nil
      self.gate:sent(job.request.tokens)
      self.in_flight, self.reserved = self.in_flight + 1, self.reserved + job.estimate
      sends[#sends + 1] = job
    elseif pause > 0 then
      break
    else
      recalled = recalled + 1
    end
  end
  return sends, wait
end

-- Notes a job that is about to go, unless another process has its answer, is asking for it, or
-- has spent the money. Within the transaction nobody can come between the look and the note.
function Run:note(job)
  local service = self.service
  job.attempt, job.entry, job.busy = nil, self.book:find(job.key), self.book:busy(job.key)
  if job.entry or job.busy or not self.budget:affords(self.noted + job.estimate) then return end
  job.attempt = self.book:note {
    key = job.key, provider = service.provider, model = service.model, endpoint = job.request.url,
    study = self.budget.study, stage = self.source.stage, estimate = service.price and job.estimate or nil,
    prompt_tokens = job.request.prompt_tokens, sample = job.request.sample,
  }
  job.sent, self.noted = false, self.noted + job.estimate
  self.open[job.attempt] = job
end

-- A job that was not noted.
function Run:yield(job, now)
  self.in_flight, self.reserved = self.in_flight - 1, self.reserved - job.estimate
  if job.entry then
    self:finish(job, self.service:recall(job.entry, job.request))
    return
  end
  if job.busy and not self.told then
    self.told = true
    progress.say(("  %s: another process is asking the same; its answers are waited for"):format(self.service.name))
  end
  self:schedule(job, now + LOOK_AGAIN)
end

function Run:send(job)
  local request, service = job.request, self.service
  job.tries, job.sent = job.tries + 1, true
  http:send {
    id = job.attempt, method = "POST", url = request.url, headers = service:headers(("%s-%d"):format(job.key:sub(1, 24),
      job.attempt)), body = request.body, stream = request.stream, secret_header = service.secret_header,
    secret_env = service.unlocked_env, insecure = service.insecure, connect_s = service.connect_s,
    total_s = request.stream and 86400 or service.timeout, idle_s = request.stream and service.idle or service.timeout,
    max_body = service.max_body,
  }
end

-- ------------------------------------------------------------------- replies

-- What a transfer that ended means: {record = fields for the ledger, or lost = reason, or unsent = reason; answer;
-- problem, and stop = true where others will fare no better, else it is tried again after `wait`}.
function Run:judge(job, r)
  local service = self.service
  if r.failure then
    local text = ("%s: %s"):format(service.name, r.message or r.failure)
    if r.sent and r.failure == "too_large" then
      return { record = { status = r.status, outcome = "invalid", final = true }, reply = "",
        answer = { outcome = "invalid", problem = text } }
    end
    return { [r.sent and "lost" or "unsent"] = r.failure, problem = text, stop = not TRANSIENT[r.failure] }
  end
  local id = service:request_id(r.headers)
  local answer, problem, verdict = service:understand(r.status, r.headers, r.body, job.request)
  if answer then
    return { record = { status = r.status, outcome = answer.outcome, final = true, request_id = id }, answer = answer }
  end
  local text = wire.message(service.name, r.status, problem.message, id)
  -- a refusal costs nothing; a stream that broke off was written for as long as it lasted
  local fate = { record = { status = r.status, outcome = "failed", final = false, request_id = id },
    free = not problem.cut, problem = text }
  if verdict == "stop" then
    fate.stop = true
  elseif verdict == "again" then
    fate.wait = wire.retry_after(r.headers, LONGEST_ASKED)
    fate.slow = r.status == 429 or r.status == 503 or r.status == 529
  else
    -- This call is refused for what it says: an answer of its own, if others go well.
    fate.refused, fate.answer = true, { outcome = "failed", problem = text }
  end
  return fate
end

-- Completes the ledger's fields and the running sums.
function Run:price(job, fate, r)
  local record, service = fate.record, self.service
  self.reserved = self.reserved - job.estimate
  if fate.unsent then return end
  if not record then
    self.budget.spent = self.budget.spent + job.estimate
    return
  end
  record.reply = fate.reply or r.body
  record.seconds = r.seconds
  if fate.free then
    record.price = 0.0
  else
    local usage = service:usage(fate.answer, job.request)
    record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    record.cached_tokens, record.estimated = usage.cached_tokens, usage.estimated
    record.price = service:cost(usage)
  end
  self.budget.spent = self.budget.spent + (record.price or 0)
end

function Run:collect(now)
  while true do
    local r = http:next()
    if not r then return end
    local job = not r.data and self.open[r.id]          -- pieces of a stream come again with its end
    if job then
      r.body = r.body and net.redact(r.body)
      local fate = self:judge(job, r)
      fate.job = job
      self.arrived[#self.arrived + 1] = fate
      self.in_flight = self.in_flight - 1
      self:price(job, fate, r)
      if r.headers then self.gate:learn(self.service:limits(r.headers), self.in_flight, now) end
    end
  end
end

function Run:write(fate)
  local book, attempt = self.book, fate.job.attempt
  if fate.record then
    local entry = fate.record.final and book:find(fate.job.key)
    if entry then       -- two machines share the ledger and cannot see each other: the first answer stands
      fate.record.final, fate.answer = false, self.service:recall(entry, fate.job.request)
    end
    book:record(attempt, fate.record)
  elseif fate.unsent then
    book:unsent(attempt, fate.unsent)
  else
    book:lost(attempt, fate.lost)
  end
  if fate.refused then
    self.doubtful[#self.doubtful + 1] = attempt
  elseif fate.answer then
    self:believe()
  end
end

-- Others go well, so what was refused before was refused for itself: it is final.
function Run:believe()
  for _, attempt in ipairs(self.doubtful) do self.book:accept(attempt) end
  self.doubtful = {}
end

-- All that came into the ledger, and a note of all that goes, in one transaction.
function Run:keep(sends)
  self.book:transaction(function()
    for _, fate in ipairs(self.arrived) do self:write(fate) end
    self.noted = self.reserved
    for _, job in ipairs(sends) do self.noted = self.noted - job.estimate end
    self.budget:refresh(self.noted)
    for _, job in ipairs(sends) do self:note(job) end
  end)
  for _, fate in ipairs(self.arrived) do self.open[fate.job.attempt] = nil end
  self.arrived = {}
end

-- More than so many in a row: the service is down, or refuses all.
function Run:patience()
  return HOPELESS + ((self.answered > 0 or self.proven) and self.gate.most or 0)
end

-- After it is written: hand the answer over, or line up the next try.
function Run:settle(fate, now)
  local job = fate.job
  if fate.record then self.reached = true end
  if fate.answer then
    if not fate.refused then
      self.answered, self.failed_in_row = self.answered + 1, 0
      self.gate:well()
    elseif #self.doubtful >= self:patience() then
      self:stop(fate.problem)
    end
    self.last_problem = fate.problem or self.last_problem
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
    self.failed, self.failed_in_row = self.failed + 1, self.failed_in_row + 1
    self:finish(job, { outcome = "failed", problem = fate.problem })
    if self.failed_in_row >= self:patience() then self:stop(fate.problem) end     -- what it still owes can wait
    return
  end
  local ceiling = math.min(LONGEST_WAIT, FIRST_WAIT * 2 ^ (job.tries - 1))
  self:schedule(job, now + (fate.wait or 0) + rand.of(base.pid(), job.key .. job.tries) * ceiling)
end

function Run:progress(wait)
  if not self.source.on_progress then return end
  local values = { flying = self.in_flight }
  if self.service.price then values.dollars = self.budget.spent end
  if self.in_flight == 0 and wait > 1 and wait < math.huge then values["waits, s"] = math.ceil(wait) end
  self.source.on_progress(self.finished, values)
end

function Run:turn()
  local now = base.now()
  self:collect(now)
  local sends, wait = self:fill(now)
  local arrived = self.arrived
  if #arrived > 0 or #sends > 0 then self:keep(sends) end
  for _, job in ipairs(sends) do
    if job.attempt then self:send(job) else self:yield(job, now) end
  end
  for _, fate in ipairs(arrived) do self:settle(fate, now) end
  self:progress(wait)
  local idle = self.in_flight == 0 and #sends == 0 and #arrived == 0
  if idle and self.stopping then error(self.stopping, 0) end
  if self.finished < self.source.n or self.in_flight > 0 then
    http:poll(#arrived > 0 and 0 or math.max(0, math.min(wait, 1)))
  end
end

-- After an error or Ctrl-C: replies that come soon are worth their money.
function Run:last_replies(interrupted)
  local n = http:active()
  if interrupted and n > 0 then
    progress.say(("  %s: %d replies are under way and waited for, up to %d s; Ctrl-C again gives them up"):format(
      self.service.name, n, LAST_WAIT))
  end
  local ends = base.now() + LAST_WAIT
  while http:active() > 0 and base.now() < ends do
    http:poll(0.1)
    self:collect(base.now())
  end
  self:collect(base.now())
end

-- Writes an end of all that is open, whatever happened: an attempt without one is waited for by others as long as
-- this process lives. What is in flight now is given up, and may have been paid for.
function Run:close()
  if #self.arrived == 0 and not next(self.open) then return end
  self.book:transaction(function()
    for _, fate in ipairs(self.arrived) do pcall(self.write, self, fate) end
    for attempt, job in pairs(self.open) do
      http:cancel(attempt)
      -- a note that was rolled back is none, and its number may be another's by now
      if self.book:ours(attempt, job.key) then
        local over = job.sent and self.book.lost or self.book.unsent
        over(self.book, attempt, "interrupted")
      end
    end
  end)
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
  do
    -- two, for a second Ctrl-C ends the wait and not the writing
    local closing <close> = base.finally(function() pcall(run.close, run) end)
    local last <close> = base.finally(function(_, interrupted) pcall(run.last_replies, run, interrupted) end)
    while run.finished < source.n or run.in_flight > 0 do run:turn() end
    if #run.doubtful > 0 and (run.answered > 0 or run.proven) then run.book:transaction(run.believe, run) end
  end
  if run.failed > 0 then
    error(("%s\n%d of %d calls failed, also when tried again. The other answers are kept in %s; the same command "
      .. "asks only what is missing"):format(run.last_problem, run.failed, source.n, ledger.path()), 0)
  end
  if #run.doubtful > 0 then error(run.last_problem, 0) end        -- all were refused
end

return engine
