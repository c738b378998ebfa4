--- The batch interfaces of services: the calls of a stage as one file, half the price, an
--- answer within a day. `openai:MODEL?batch=true`. A batch is noted in the ledger before
--- it is handed in, and found again after a kill: it is never paid for twice. How a
--- service's batches look is its provider's (`batch` in providers/).
local base = require("perilune.core").base
local ledger = require "perilune.ai.ledger"
local progress = require "perilune.study.progress"
local rest = require "perilune.ai.rest"
local stage = require "perilune.study.stage"
local wire = require "perilune.ai.wire"

local batch = {}

---@class perilune.ai.Batches a provider's batch interface
---@field most integer requests in a batch
---@field bytes integer of all requests
---@field create fun(api: perilune.ai.Rest, mark: string, items: table[]): string its name there; items {key, path, body}
---@field find fun(api: perilune.ai.Rest, mark: string, since: number, n: integer): string|nil one that was created with our mark
---@field status fun(api: perilune.ai.Rest, remote: string): boolean ended, string state, integer done
---@field results fun(api: perilune.ai.Rest, remote: string): table[] {key, status, body} in any order; a missing key was not answered

-- Seconds between looks: soon at first, for small batches end in a minute.
local FIRST_LOOK, LONGEST_LOOK = 2, 60

-- Rounds in which calls that a batch did not answer are handed in again.
local ROUNDS = 3

local Run = {}
Run.__index = Run

local function answer_of(service, entry, request)
  if entry.outcome == "failed" then
    return { outcome = "failed", problem = wire.message(service.name, entry.status, entry.reply) }
  end
  return (service:read(entry.reply, request))
end

-- All calls of the source by key; what the ledger holds is handed over.
function Run:gather()
  local waiting, order = {}, {}
  for i = 1, self.source.n do
    local request = self.service:request(self.source.make(i))
    local job = waiting[request.key]
    if job then
      job.indices[#job.indices + 1] = i
    else
      local entry = self.book:find(request.key)
      if entry then
        self.source.done(i, answer_of(self.service, entry, request))
      else
        waiting[request.key] = { indices = { i }, request = request, key = request.key }
        order[#order + 1] = request.key
      end
    end
  end
  self.waiting, self.order = waiting, order
end

function Run:hand_over(job, answer)
  self.waiting[job.key] = nil
  for _, i in ipairs(job.indices) do self.source.done(i, answer) end
end

-- One reply of a batch into the ledger and to the stage.
function Run:take(row, attempts)
  local job, service = self.waiting[row.key], self.service
  local attempt = attempts[row.key]
  if not job or not attempt then return end
  attempts[row.key] = nil
  local answer, problem
  if row.status >= 200 and row.status < 300 then
    answer, problem = service:read(row.body, job.request)
  else
    problem = service:problem(row.status, row.body)
  end
  if answer then
    local usage = service:usage(answer, job.request)
    self.book:record(attempt, { status = row.status, reply = row.body, final = true, outcome = answer.outcome,
      prompt_tokens = usage.prompt_tokens, completion_tokens = usage.completion_tokens,
      cached_tokens = usage.cached_tokens, estimated = usage.estimated, price = service:cost(usage) })
    self:hand_over(job, answer)
    return
  end
  local again = wire.verdict(row.status, {}, problem) == "again"
  self.last_problem = wire.message(service.name, row.status, problem.message)
  self.book:record(attempt, { status = row.status, reply = row.body, final = not again, outcome = "failed", price = 0.0 })
  if not again then self:hand_over(job, { outcome = "failed", problem = self.last_problem }) end
end

-- Waits for a batch and books what came back. What did not come back was not carried
-- out: the service does not charge for it.
function Run:harvest(row)
  local api, wait, n = self.api, FIRST_LOOK, #row.attempts
  local bar = progress.start { label = self.source.stage or "batch", total = n, unit = "call" }
  while true do
    local ended, state, done = self.batches.status(api, row.remote)
    bar:update(done, { batch = row.remote, state = state })
    if ended then break end
    base.sleep(wait)
    wait = math.min(wait * 1.5, LONGEST_LOOK)
  end
  bar:done()
  local results, attempts = self.batches.results(api, row.remote), {}
  for _, attempt in ipairs(row.attempts) do attempts[attempt.key] = attempt.attempt end
  self.book:transaction(function()
    for _, result in ipairs(results) do self:take(result, attempts) end
    for _, attempt in pairs(attempts) do self.book:unsent(attempt, "the batch did not answer it") end
    self.book:batch_change(row.id, { state = "read", open = false })
  end)
end

-- Batches of an earlier run that still hold answers to what is asked now.
function Run:resume()
  for _, row in ipairs(self.book:batches()) do
    local wanted = false
    for _, attempt in ipairs(row.attempts) do wanted = wanted or self.waiting[attempt.key] ~= nil end
    if wanted and row.endpoint == self.service.base then
      row.remote = row.remote or self.batches.find(self.api, row.detail, row.started, #row.attempts)
      if row.remote then
        progress.say(("  %s: goes on with batch %s"):format(self.service.name, row.remote))
        self:harvest(row)
      else
        self.book:transaction(function()      -- it never reached the service
          for _, attempt in ipairs(row.attempts) do self.book:unsent(attempt.attempt, "the batch was not created") end
          self.book:batch_change(row.id, { state = "not created", open = false })
        end)
      end
    end
  end
end

-- As many waiting calls from position `at` on as one batch and the budget allow, and where
-- the next slice begins.
function Run:slice(at)
  local items, bytes, dollars = {}, 0, 0
  local spent = self.book:spent { study = self.study }
  while at <= #self.order do
    local job = self.waiting[self.order[at]]
    if job then
      local estimate = self.service:estimate(job.request)
      if #items >= self.batches.most or bytes + #job.request.body > self.batches.bytes then break end
      if self.budget and spent.paid + spent.possibly + dollars + estimate > self.budget then
        self.out_of_money = true
        break
      end
      bytes, dollars = bytes + #job.request.body, dollars + estimate
      job.estimate = self.service.price and estimate or nil
      items[#items + 1] = { key = job.key, path = job.request.path, body = job.request.body, job = job }
    end
    at = at + 1
  end
  return items, at
end

function Run:hand_in(items)
  local service, book = self.service, self.book
  -- a name of our own, by which the batch is found again if the reply to its creation is lost
  local mark = base.sha256(("%s %.6f %d"):format(items[1].key, base.walltime(), base.pid())):sub(1, 32)
  local row = { attempts = {} }
  book:transaction(function()
    row.id = book:batch { provider = service.provider, endpoint = service.base, detail = mark }
    for i, item in ipairs(items) do
      local attempt = book:note { key = item.key, provider = service.provider, model = service.model,
        endpoint = service.base .. item.path, study = self.study, stage = self.source.stage, estimate = item.job.estimate,
        prompt_tokens = item.job.request.prompt_tokens, sample = item.job.request.sample, batch = row.id }
      row.attempts[i] = { attempt = attempt, key = item.key }
    end
  end)
  row.remote = self.batches.create(self.api, mark, items)
  book:transaction(function() book:batch_change(row.id, { remote = row.remote, state = "running" }) end)
  self:harvest(row)
end

---As engine.run, through batches.
---@param service perilune.ai.Service
---@param source perilune.ai.Source
function batch.run(service, source)
  local batches = service.wire.batch
  if not batches then error(("%s: this service has no batch interface here"):format(service.name), 0) end
  local current = stage.current()
  local budget = current and current.params and current.params.budget or nil
  if budget and not service.price then
    error(("%s: budget=%g needs a price: give price_in= and price_out="):format(service.name, budget), 0)
  end
  local run = setmetatable({ service = service, source = source, book = ledger.default(), batches = batches,
    study = current and current.study or "script", budget = budget }, Run)
  run:gather()
  if not next(run.waiting) then return end
  local ok, message = service:unlock()
  if not ok then error(("%s: %s"):format(service.name, message), 0) end
  local api <close> = rest.new(service)
  run.api = api
  run:resume()
  for _ = 1, ROUNDS do
    local at, items = 1, nil
    while at <= #run.order and not run.out_of_money do
      items, at = run:slice(at)
      if #items > 0 then run:hand_in(items) end
    end
  end
  local left = 0
  for _ in pairs(run.waiting) do left = left + 1 end
  if left == 0 then return end
  if run.out_of_money then
    error(("%s: budget=%g is reached: %d of %d calls are not asked yet; a larger budget goes on from here"):format(
      service.name, budget, left, source.n), 0)
  end
  error(("%s: %d of %d calls were not answered: %s"):format(service.name, left, source.n, run.last_problem or "?"), 0)
end

return batch
