--- Continuous batching: jobs come and go while the generator runs. A job is a list of
--- prompts with n answers each; every answer is a choice with its own text stream and
--- stop texts. It must not know HTTP or JSON.
---
--- A job's owner gives the functions emit(choice, text, records) for text that is certain,
--- as it comes, and ended(choice) (both nil: only the whole answers are wanted), and
--- done(job). A record is a token with its log-probability: { id, logprob, top, at = bytes
--- of the text before it }.
local base = require("perilune.core").base
local lm = require("perilune.core").lm
local stream = require "perilune.text.stream"

local engine = {}

---@class perilune.serve.Job
---@field owner any # what cancel names it by
---@field prompts {ids: integer[], text: string?}[]
---@field n integer # answers to each prompt
---@field max_tokens integer # 0: none (echo only)
---@field sampling { temperature: number, top_k: integer, top_p: number, min_p: number, seed: integer }
---@field stops string[]
---@field logprobs boolean
---@field top integer
---@field echo boolean # the prompt is part of the text
---@field emit? fun(choice: perilune.serve.Choice, text: string, records: table)
---@field ended? fun(choice: perilune.serve.Choice)
---@field done fun(job: perilune.serve.Job)
---@field choices perilune.serve.Choice[]
---@field open integer # choices that have not ended

---@class perilune.serve.Choice
---@field index integer # 0-based, prompt by prompt
---@field text string # whole, once it has ended
---@field records table # of the text; not kept where they are emitted
---@field tokens integer # drawn, the end token included
---@field finish "stop"|"length"

---@class perilune.serve.Engine
local Engine = {}
Engine.__index = Engine

---@param model perilune.Model
---@param rows integer # answers that run at a time
---@param more_stop_ids integer[]
---@param dtype? "f32"|"bf16"|"int8" # numbers of the weights
---@return perilune.serve.Engine
function engine.new(model, rows, more_stop_ids, dtype)
  local stop_ids, ends = model:stop_ids(), {}
  for _, id in ipairs(more_stop_ids) do stop_ids[#stop_ids + 1] = id end
  for _, id in ipairs(stop_ids) do ends[id] = true end
  local e = setmetatable({ tok = model.tokenizer, rows = rows, ends = ends,
    generator = function() return lm.generator(model.decoder, rows, stop_ids, dtype) end }, Engine)
  e:begin()
  e.g = e.generator()
  return e
end

-- Without jobs; the first one makes a generator.
function Engine:begin()
  self:close()
  self.g = nil
  self.slots, self.last_index, self.live, self.watched = {}, 0, 0, 0
  self.to_score, self.jobs = {}, {}
end

---Answers that have not ended.
function Engine:active() return self.live end

function Engine:running() return math.min(self.live, self.rows) end

function Engine:queued() return math.max(0, self.live - self.rows) end

---- one answer's text

-- Length of the longest end of `text` that a stop text may begin with.
local function may_begin(text, stops)
  local longest = 0
  for _, s in ipairs(stops) do
    for n = math.min(#s - 1, #text), longest + 1, -1 do
      if text:sub(-n) == s:sub(1, n) then
        longest = n
        break
      end
    end
  end
  return longest
end

-- Adds certain text to a choice; gives out what is no part of a stop text.
local function add_text(choice, text, last)
  local job = choice.job
  local held = choice.held .. text
  choice.seen = choice.seen + #text
  local at = stream.find_stop(held, job.stops)
  local keep = 0
  if at then
    choice.stopped = true
    choice.seen = choice.seen - (#held - at + 1)
    held = held:sub(1, at - 1)
  elseif not last and #job.stops > 0 then
    keep = may_begin(held, job.stops)
  end
  choice.held = keep > 0 and held:sub(-keep) or ""
  local ready = keep > 0 and held:sub(1, #held - keep) or held
  if ready == "" then return end
  choice.given = choice.given + #ready
  if not job.emit then
    choice.parts[#choice.parts + 1] = ready
    return
  end
  local records = choice.records
  if #records > 0 then -- those whose text begins in what goes out
    local n = #records
    while n > 0 and records[n].at >= choice.given do n = n - 1 end
    choice.records = table.move(records, n + 1, #records, 1, {})
    records = table.move(records, 1, n, 1, {})
  end
  job.emit(choice, ready, records)
end

-- One more token of an answer. True: a stop text is complete.
function Engine:feed(choice, id, logprob, top)
  choice.tokens = choice.tokens + 1
  if choice.stopped then return true end
  if choice.job.logprobs then
    choice.records[#choice.records + 1] = { id = id, logprob = logprob, top = top, at = choice.seen }
  end
  local text = choice.stream:push(id)
  if text ~= "" then add_text(choice, text, false) end
  return choice.stopped
end

-- An answer is over; its job may be with it.
function Engine:finish(choice, finish)
  local job = choice.job
  if not choice.stopped then add_text(choice, choice.stream:flush(), true) end
  choice.finish = choice.stopped and "stop" or finish
  local records = choice.records
  for k = #records, 1, -1 do -- a stop text's tokens are not part of the answer
    if not choice.stopped or records[k].at < choice.given then break end
    records[k] = nil
  end
  choice.text = table.concat(choice.parts)
  choice.parts, choice.stream = nil, nil
  job.open = job.open - 1
  self.live = self.live - 1
  if job.ended then job.ended(choice) end
  if job.open == 0 then
    job.done(job)
    self.jobs[job.owner] = nil -- not before: who fails in between is told
  end
end

---- jobs

local function new_choice(job, prompt, index)
  return { job = job, prompt = prompt, index = index, held = "", seen = 0, given = 0, tokens = 0, records = {},
    parts = {}, stopped = false }
end

-- The prompt as the first part of an answer. scores, tops: of all its tokens but the first.
function Engine:echo(choice, scores, tops)
  local ids, job = choice.prompt.ids, choice.job
  local text = choice.prompt.text or self.tok:decode(ids)
  if job.logprobs then
    local reader, at = stream.new(self.tok, {}), 0
    for k, id in ipairs(ids) do
      choice.records[k] = { id = id, logprob = scores[k - 1], top = tops and tops[k - 1], at = at }
      at = at + #reader:push(id)
    end
  end
  choice.seen, choice.given = #text, #text
  if job.emit then
    local records = choice.records
    choice.records = {}
    job.emit(choice, text, records)
  else
    choice.parts[1] = text
  end
end

function Engine:start(job, p)
  local prompt = job.prompts[p]
  local scores, tops = {}, nil
  self.g = self.g or self.generator()
  if job.echo and job.logprobs and #prompt.ids > 1 then scores, tops = self.g:score(prompt.ids, job.top) end
  local choices = {}
  for s = 1, job.n do
    local choice = job.choices[(p - 1) * job.n + s]
    choice.stream = stream.new(self.tok, prompt.ids)
    if job.echo then self:echo(choice, scores, tops) end
    choices[s] = choice
  end
  if job.max_tokens == 0 then
    for _, choice in ipairs(choices) do self:finish(choice, "length") end
    return
  end
  self.last_index = self.last_index + 1
  local o = job.sampling
  self.g:add(prompt.ids, self.last_index, { n = job.n, max_tokens = job.max_tokens, temperature = o.temperature,
    top_k = o.top_k, top_p = o.top_p, min_p = o.min_p, seed = o.seed, key = p, top = job.logprobs and job.top or 0 })
  local watch = job.emit ~= nil or #job.stops > 0
  self.slots[self.last_index] = { job = job, choices = choices, left = job.n, watch = watch }
  if watch then self.watched = self.watched + 1 end
end

---Takes a job on. Its prompts must have 1 to context - 1 tokens (with max_tokens = 0: context).
---@param job perilune.serve.Job
function Engine:add(job)
  job.choices, job.open = {}, #job.prompts * job.n
  for p, prompt in ipairs(job.prompts) do
    for s = 1, job.n do
      local index = (p - 1) * job.n + s
      job.choices[index] = new_choice(job, prompt, index - 1)
    end
  end
  self.live = self.live + job.open
  self.jobs[job.owner] = job
  for p = 1, #job.prompts do
    if job.echo and job.logprobs then -- a forward pass each: one at a turn
      self.to_score[#self.to_score + 1] = { job = job, p = p }
    else
      self:start(job, p)
    end
  end
end

function Engine:free_slot(index)
  local slot = self.slots[index]
  if slot.watch then self.watched = self.watched - 1 end
  self.slots[index] = nil
end

---Drops a job whose client is gone; nothing of it is reported any more.
---@param owner any
function Engine:cancel(owner)
  local job = self.jobs[owner]
  if not job then return end
  self.jobs[owner] = nil
  self.live = self.live - job.open
  local indexes = {}
  for index, slot in pairs(self.slots) do
    if slot.job == job then indexes[#indexes + 1] = index end
  end
  for _, index in ipairs(indexes) do
    self.g:cancel(index)
    self:free_slot(index)
  end
  for k = #self.to_score, 1, -1 do
    if self.to_score[k].job == job then table.remove(self.to_score, k) end
  end
end

-- The newest token of each row that drew one.
function Engine:watch()
  local g, slots = self.g, self.slots
  local i, last = g:drew()
  while i <= last do
    local index, sample, _, id, logprob, top = g:last(i)
    local slot = slots[index]
    if slot.watch and self:feed(slot.choices[sample], id, logprob, top) then
      g:stop(i)
      last = last - 1
    else
      i = i + 1
    end
  end
end

function Engine:collect()
  while true do
    local index, sample, ids, logprobs, finish, tops = self.g:take()
    if not index then return end
    local slot = self.slots[index]
    local choice = slot.choices[sample]
    for k = choice.tokens + 1, #ids do
      if k == #ids and finish == "stop" and self.ends[ids[k]] then
        choice.tokens = choice.tokens + 1 -- the end token counts and has no text
      elseif self:feed(choice, ids[k], logprobs[k], tops and tops[k]) then
        choice.tokens = #ids
        break
      end
    end
    slot.left = slot.left - 1
    if slot.left == 0 then self:free_slot(index) end
    self:finish(choice, finish)
  end
end

function Engine:advance()
  local task = table.remove(self.to_score, 1)
  if task then self:start(task.job, task.p) end
  local _, drawn = self.g:step(1)
  if drawn > 0 and self.watched > 0 then self:watch() end
  self:collect()
  return drawn
end

---One token for every answer that runs, or for some where many do. Text goes out to the jobs. Where that
---fails (no memory, weights that give NaN) all jobs are given up, and the next ones begin anew.
---@return integer tokens drawn
---@return string? problem
---@return any[]? owners of the jobs given up
function Engine:step()
  local ok, drawn = pcall(self.advance, self)
  if ok then return drawn end
  base.check_interrupt()
  local owners = {}
  for owner in pairs(self.jobs) do owners[#owners + 1] = owner end
  self:begin()
  return 0, tostring(drawn), owners
end

function Engine:close()
  if self.g then self.g:close() end
end

return engine
