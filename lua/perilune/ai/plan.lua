--- What the calls of a stage will be, cost and last, before any is sent: the real
--- prompts are turned into the real requests and their tokens counted; what the ledger
--- holds is taken off. Answers that do not exist yet count with what their stage may
--- make them: a tenth, half, and all of its max_tokens.
local base = require("perilune.core").base
local common = require "perilune.feedback.common"
local ledger = require "perilune.ai.ledger"
local prices = require "perilune.ai.prices"
local standin = require "perilune.study.standin"
local tokens = require "perilune.ai.tokens"

local plan = {}

local SHARES = { low = 0.1, expected = 0.5, max = 1 }
local UNKNOWN_ANSWER = 128   -- longest answer of which nothing at all is known
local LATENCY = 2            -- seconds a reply takes where the ledger has none of this model

-- A request whose answers are all known, or one with empty texts in their places and the
-- longest that those may become.
local function known_part(request)
  local missing, out = 0, nil
  for _, side in ipairs { "a", "b", "answer" } do
    local answer = request[side]
    if answer ~= nil and standin.is(common.text(answer)) then
      if not out then
        out = {}
        for k, v in pairs(request) do out[k] = v end
      end
      local most = type(answer) == "table" and answer.max_tokens
      missing, out[side] = missing + (type(most) == "number" and most or UNKNOWN_ANSWER), ""
    end
  end
  return out or request, missing
end

-- A judge's reply is as long as its prompt asks for; a demonstration may fill its limit.
local function answer_tokens(template, most, share)
  if not template then return most * SHARES[share] end
  local reply = { low = 1, expected = template.reply_tokens, max = most }
  return math.min(reply[share], most)
end

local function open_ledger()
  return base.exists(ledger.path()) and ledger.default() or nil
end

-- Mean seconds a reply of the model took.
local function latency_of(book, service)
  local model = ("%s:%s"):format(service.provider, service.model)
  for _, row in ipairs(book and book:summary { by = "model" } or {}) do
    if row.model == model and row.calls > 0 and row.seconds > 0 then return row.seconds / row.calls end
  end
  return LATENCY, true
end

-- How one request is made, by task; and the judge prompt, if it is one.
local function maker(service, task, opts)
  if task == "demonstrate" then
    return function(request) return service:demonstration(request, opts) end
  end
  local template = service:template(task, opts)
  return function(request) return service:judgement(template, request, opts) end, template
end

---@class perilune.ai.Plan
---@field calls integer that would be sent
---@field kept integer that the ledger answers
---@field tokens number prompt and completion, at most
---@field prompt_tokens {low: number, expected: number, max: number}
---@field completion_tokens {low: number, expected: number, max: number}
---@field dollars {low: number, expected: number, max: number}|nil nil: the price is unknown
---@field seconds number under the rate limits
---@field latency number seconds a reply takes: the ledger's mean of this model, or a guess
---@field guessed boolean the latter
---@field model string
---@field batch boolean its service answers within a day
---@field counted string what counted the tokens

-- Counts the calls of the requests, one by one, into `out`.
local function count(out, service, task, requests, opts, book)
  local counter = tokens.counter(service.model, service.options.tokenizer)
  local make, template = maker(service, task, opts)
  local seen = {}
  out.counted = counter.name
  for _, request in ipairs(requests) do
    local known, missing = known_part(request)
    local call = make(known)
    local wired = service:request(call)
    if missing == 0 and book and book:find(wired.key) then
      out.kept = out.kept + 1
    elseif missing > 0 or not seen[wired.key] then         -- the same call twice is sent once
      seen[wired.key] = missing == 0
      out.calls = out.calls + 1
      local prompt = 0
      for _, message in ipairs(call.messages) do prompt = prompt + counter.count(message.content) + 4 end
      for share, part in pairs(SHARES) do
        out.prompt_tokens[share] = out.prompt_tokens[share] + prompt + missing * part
        out.completion_tokens[share] = out.completion_tokens[share] + answer_tokens(template, wired.max_tokens, share)
      end
    end
  end
end

---@param service perilune.ai.Service
---@param task string
---@param requests perilune.ai.Request[]
---@param opts table as for the task
---@return perilune.ai.Plan
function plan.of(service, task, requests, opts)
  local book = open_ledger()
  local out = {
    calls = 0, kept = 0, model = service.model, batch = service.options.batch,
    prompt_tokens = { low = 0, expected = 0, max = 0 }, completion_tokens = { low = 0, expected = 0, max = 0 },
  }
  -- Without a ledger there is no secret yet; any of the same length gives the same sizes.
  if not book then service.planned = { secret = ("0"):rep(64) } end
  local ok, problem = pcall(count, out, service, task, requests, opts, book)
  service.planned = nil
  if not ok then error(problem, 0) end
  out.tokens = out.prompt_tokens.max + out.completion_tokens.max
  if service.price then
    out.dollars = {}
    for share in pairs(SHARES) do
      out.dollars[share] = prices.cost(service.price, out.prompt_tokens[share], out.completion_tokens[share],
        { batch = service.options.batch })
    end
    out.price = service.price
  end
  local o = service.options
  out.latency, out.guessed = latency_of(book, service)
  out.guessed = out.guessed or false
  out.seconds = math.max(out.calls * out.latency / o.concurrency,
    o.rpm and out.calls / o.rpm * 60 or 0,
    o.tpm and (out.prompt_tokens.expected + out.completion_tokens.expected) / o.tpm * 60 or 0)
  return out
end

return plan
