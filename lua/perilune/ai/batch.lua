--- The batch interfaces of services: the calls of a stage as one file, half the price, an
--- answer within a day. `openai:MODEL?batch=true`. A batch is noted in the ledger before
--- it is handed in, and found again after a kill: it is never paid for twice. How a
--- service's batches look is its provider's (`batch` in providers/).
local base = require("perilune.core").base
local budget = require "perilune.ai.budget"
local ledger = require "perilune.ai.ledger"
local progress = require "perilune.study.progress"
local rest = require "perilune.ai.rest"
local wire = require "perilune.ai.wire"

local batch = {}

---@class perilune.ai.Batches a provider's batch interface
---@field most integer requests in a batch
---@field bytes integer of all requests
---@field overhead integer bytes around each
--- Its name there; or nil, why, and whether it may have been made all the same. Items are {key, path, body}.
---@field create fun(api: perilune.ai.Rest, mark: string, items: table[]): string|nil, string|nil, boolean|nil
---@field find fun(api: perilune.ai.Rest, mark: string, since: number, n: integer): string|nil one that was created with our mark
--- Of a batch, or results, that the service does not know any more, both give nil and its words.
---@field status fun(api: perilune.ai.Rest, remote: string): boolean|nil, string, integer, string|nil ended, state, done, problem
---@field results fun(api: perilune.ai.Rest, remote: string): table[]|nil, string|nil {key, status, body} in any order; a missing key was not answered

-- Seconds between looks: soon at first, for small batches end in a minute.
local FIRST_LOOK, LONGEST_LOOK = 0.5, 60

-- So often a call that its batch did not answer is handed in.
local ROUNDS = 3

-- Looks for a batch before it is taken for gone, and not for merely unknown yet to one of the service's machines.
local LOOKS = 4

local Run = {}
Run.__index = Run

function Run:answer(indices, answer)
  self.finished = self.finished + #indices
  for _, i in ipairs(indices) do self.source.done(i, answer) end
end

-- Hands over what the ledger holds for a call; false: nothing.
function Run:recall(request, indices)
  local entry = self.book:find(request.key)
  if not entry then return false end
  self.proven = self.proven or entry.outcome ~= "failed"
  self:answer(indices, self.service:recall(entry, request))
  return true
end

-- All calls of the source by key; what the ledger holds is handed over.
function Run:gather()
  for i = 1, self.source.n do
    local request = self.service:request(self.source.make(i))
    local job = self.waiting[request.key]
    if job then
      job.indices[#job.indices + 1] = i
    elseif not self:recall(request, { i }) then
      self.waiting[request.key] = { indices = { i }, request = request, key = request.key, rounds = 0 }
      self.order[#self.order + 1] = request.key
    end
  end
end

-- Hands over what came into the ledger for these attempts.
function Run:hand_over(attempts)
  for _, attempt in ipairs(attempts) do
    local job = self.waiting[attempt.key]
    if job and self:recall(job.request, job.indices) then self.waiting[job.key] = nil end
  end
  if self.source.on_progress then self.source.on_progress(self.finished, { dollars = self.budget.spent }) end
end

-- One reply of a batch into the ledger; the attempt, if it was refused for what it says. The batch
-- may be of a stage that asked more than this one does: its answers were paid for all the same.
function Run:take(result, attempt)
  local service, job = self.service, self.waiting[attempt.key]
  local request = job and job.request or { prompt_tokens = attempt.prompt_tokens or 0, max_tokens = 0 }
  local answer, problem, verdict = service:understand(result.status, {}, result.body, request)
  local record = { status = result.status, reply = result.body, outcome = "failed", price = 0.0 }
  if answer then
    local usage = service:usage(answer, request)
    record.outcome, record.final, record.price = answer.outcome, not self.book:find(attempt.key), service:cost(usage)
    record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    record.cached_tokens, record.estimated = usage.cached_tokens, usage.estimated
    self.proven = true
  else
    self.last_problem = wire.message(service.name, result.status, problem.message)
    if verdict == "stop" then self.hopeless = self.last_problem end
  end
  self.book:record(attempt.attempt, record)
  return verdict == "failed" and attempt.attempt or nil
end

-- Books the results of a batch that has ended. What did not come back was not carried out:
-- the service does not charge for it.
function Run:book_results(row, results)
  local by_key, refused = {}, {}
  for _, result in ipairs(results) do by_key[result.key] = result end
  -- as they are now: while we waited, another process may have booked them
  for _, attempt in ipairs(self.book:batch_attempts(row.id)) do
    if by_key[attempt.key] then
      refused[#refused + 1] = self:take(by_key[attempt.key], attempt)
    else
      self.book:unsent(attempt.attempt, "the batch did not answer it")
    end
  end
  -- Where others go well, what was refused is final; where none does, the fault may be the batch's.
  if self.proven then
    for _, attempt in ipairs(refused) do self.book:accept(attempt) end
  elseif #refused > 0 then
    self.hopeless = self.last_problem
  end
  self.book:batch_change(row.id, { state = "read", open = false })
end

-- What the service tells of a batch: of its status, or its results. Where it does not know the batch any more only
-- the user can tell whether its calls are to be paid for once more.
function Run:look(what, row)
  local told
  for i = 1, LOOKS do
    told = table.pack(self.batches[what](self.api, row.remote))
    if told[1] ~= nil then return table.unpack(told, 1, told.n) end
    if i < LOOKS then base.sleep(FIRST_LOOK * 2 ^ i) end
  end
  error(("%s: the service does not know batch %s (%s): the key is of another project, or the batch or its results were "
    .. "deleted. It stays open in %s, for its %d calls may have been paid for; \"%s\" gives it up, and the next "
    .. "run asks and pays for them again"):format(self.service.name, row.remote, told[2], self.book.path, #row.attempts,
    ledger.command("give-up", row.remote)), 0)
end

-- Waits for a batch and books what came back.
function Run:harvest(row)
  local wait, n = FIRST_LOOK, #row.attempts
  local bar = progress.start { label = self.source.stage or "batch", total = n, unit = "call" }
  local ended, state, done, problem
  while true do
    ended, state, done, problem = self:look("status", row)
    bar:update(done, { batch = row.remote, state = state })
    if ended then break end
    base.sleep(wait)
    wait = math.min(wait * 1.5, LONGEST_LOOK)
  end
  bar:done()
  local results = self:look("results", row)
  self.book:transaction(self.book_results, self, row, results)
  self.at = nil
  if #results == 0 and problem then
    self.hopeless = ("%s: batch %s %s: %s"):format(self.service.name, row.remote, state, problem)
  end
  self:hand_over(row.attempts)
end

-- The batch never came to be: its calls cost nothing.
function Run:not_created(row)
  self.book:transaction(function()
    for _, attempt in ipairs(row.attempts) do self.book:unsent(attempt.attempt, "the batch was not created") end
    self.book:batch_change(row.id, { state = "not created", open = false })
  end)
  self.at = nil
end

function Run:wants(row)
  if row.endpoint ~= self.service.base then return false end
  for _, attempt in ipairs(row.attempts) do
    if self.waiting[attempt.key] then return true end
  end
  return false
end

-- Calls that another process is asking: waits until it has its answers, or is gone.
function Run:await(calls)
  local wait, told = FIRST_LOOK, false
  local function busy()
    for _, call in ipairs(calls) do
      if self.book:busy(call.key) then return true end
    end
    return false
  end
  while busy() do
    if not told then
      progress.say(("  %s: another process is asking the same; its answers are waited for"):format(self.service.name))
      told = true
    end
    base.sleep(wait)
    wait = math.min(wait * 1.5, LONGEST_LOOK)
  end
  self:hand_over(calls)
end

-- Batches of an earlier run, or of another process that is gone, that still hold answers to what is asked now.
function Run:resume()
  for _, row in ipairs(self.book:batches()) do
    if self:wants(row) then
      self:await(row.attempts)
      row.attempts = self.book:batch_attempts(row.id)
    end
    if self:wants(row) then
      row.remote = row.remote or self.batches.find(self.api, row.detail, row.started, #row.attempts)
      if row.remote then
        self.at = row.id
        self.book:own_batch(row.id)
        self.book:batch_change(row.id, { remote = row.remote, state = "running" })
        progress.say(("  %s: goes on with batch %s"):format(self.service.name, row.remote))
        self:harvest(row)
      else
        self:not_created(row)
      end
    end
  end
end

-- As many waiting calls from position `at` on as one batch and the budget allow, and where
-- the next slice begins.
function Run:slice(at)
  local items, bytes, dollars, most = {}, 0, 0, self.batches
  self.budget = budget.open(self.book)
  self.out_of_money = nil
  while at <= #self.order do
    local job = self.waiting[self.order[at]]
    if job and job.rounds < ROUNDS then
      local size = #job.request.body + most.overhead
      if #items >= most.most or (#items > 0 and bytes + size > most.bytes) then break end
      job.estimate = self.service:estimate(job.request)
      if not self.budget:affords(dollars + job.estimate) then
        self.out_of_money = self.budget:message(self.service, job.estimate, self.finished, self.source.n)
        break
      end
      bytes, dollars = bytes + size, dollars + job.estimate
      items[#items + 1] = { key = job.key, path = job.request.path, body = job.request.body, job = job }
    end
    at = at + 1
  end
  return items, at
end

-- Notes a batch of those items that no other process has come before with; the others come back.
function Run:note(items)
  local service, book = self.service, self.book
  local row, taken = { items = {}, attempts = {} }, {}
  -- a name of our own, by which the batch is found again if the reply to its creation is lost
  row.mark = base.sha256(("%s %.6f %d"):format(items[1].key, base.walltime(), base.pid())):sub(1, 32)
  book:transaction(function()
    for _, item in ipairs(items) do
      local list = (book:find(item.key) or book:busy(item.key)) and taken or row.items
      list[#list + 1] = item
    end
    if #row.items == 0 then return end
    row.id = book:batch { provider = service.provider, endpoint = service.base, detail = row.mark }
    for i, item in ipairs(row.items) do
      local job = item.job
      job.rounds = job.rounds + 1
      local attempt = book:note { key = job.key, provider = service.provider, model = service.model,
        endpoint = service.base .. item.path, study = self.budget.study, stage = self.source.stage,
        estimate = service.price and job.estimate or nil, prompt_tokens = job.request.prompt_tokens,
        sample = job.request.sample, batch = row.id }
      row.attempts[i] = { attempt = attempt, key = job.key }
    end
  end)
  self.at = row.id
  return row, taken
end

function Run:hand_in(items)
  local row, taken = self:note(items)
  if #row.items > 0 then
    local message, sent
    row.remote, message, sent = self.batches.create(self.api, row.mark, row.items)
    if not row.remote then
      if not sent then self:not_created(row) end      -- else the next run looks for it once more
      error(message, 0)
    end
    self.book:batch_change(row.id, { remote = row.remote, state = "running" })
    self:harvest(row)
  end
  self:await(taken)
end

-- Hands in until all is answered, the money is spent, or what is left was handed in often enough.
function Run:hand_in_all()
  local more = true
  while more and not self.hopeless do
    local at, items = 1, nil
    more = false
    self:resume()
    while at <= #self.order and not self.hopeless do
      items, at = self:slice(at)
      if #items == 0 then break end
      more = true
      self:hand_in(items)
    end
  end
end

-- However the run ends: a batch that it waits for no more can be gone on with by any process, though this one lives.
function Run:leave()
  if self.at then pcall(self.book.batch_change, self.book, self.at, { state = "left" }) end
end

---As engine.run, through batches.
---@param service perilune.ai.Service
---@param source perilune.ai.Source
function batch.run(service, source)
  local book = ledger.default()
  local run = setmetatable({ service = service, source = source, book = book, batches = service.wire.batch,
    budget = budget.open(book), waiting = {}, order = {}, finished = 0, proven = false }, Run)
  run:gather()
  if not next(run.waiting) then return end
  run.budget:check(service)
  service:must_unlock(run.waiting[run.order[1]].request)
  local api <close> = rest.new(service)
  run.api = api
  do
    local leaving <close> = base.finally(function() run:leave() end)
    run:hand_in_all()
  end
  if run.finished == source.n then return end
  error(run.hopeless or run.out_of_money or ("%s: %d of %d calls were not answered: %s"):format(service.name,
    source.n - run.finished, source.n, run.last_problem or "their batches ended without them"), 0)
end

return batch
