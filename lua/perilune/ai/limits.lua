--- The gate before one model of one service: how many requests and tokens a minute,
--- how many at a time, and until when to pause. It learns from rate-limit headers and
--- from refusals; what the user set is a ceiling. It sends nothing and knows no clock
--- but the one given to each call.
local limits = {}

---@class perilune.ai.Gate
---@field window number requests allowed in flight now
local Gate = {}
Gate.__index = Gate

---@class perilune.ai.Gate.Spec
---@field concurrency integer most requests in flight
---@field rpm? number requests a minute
---@field tpm? number tokens a minute

---@param spec perilune.ai.Gate.Spec
---@return perilune.ai.Gate
function limits.gate(spec)
  return setmetatable({
    most = spec.concurrency, window = spec.concurrency, paused_until = 0, cut_at = -math.huge,
    buckets = {
      requests = spec.rpm and { rate = spec.rpm / 60 } or nil,
      tokens = spec.tpm and { rate = spec.tpm / 60 } or nil,
    },
    learnt = {},
  }, Gate)
end

-- Seconds of the user's own limit that may be sent in one go.
local BURST = 2

-- Seconds until a bucket holds `amount`; an amount larger than the bucket waits for a full one.
local function wait_for(bucket, amount, now)
  local room = math.max(1, bucket.rate * BURST)
  bucket.level = math.min(room, (bucket.level or room) + (now - (bucket.at or now)) * bucket.rate)
  bucket.at = now
  local short = math.min(amount, room) - bucket.level
  return short > 0 and short / bucket.rate or 0
end

-- Seconds until what the service said is left covers `amount`.
local function wait_learnt(row, amount, now)
  if not row or now >= row.reset_at then return 0 end
  return row.remaining < amount and row.reset_at - now or 0
end

---Seconds until a request of so many tokens may go; 0: now.
---@param tokens number prompt and longest answer
---@param in_flight integer
---@param now number
---@return number
function Gate:wait(tokens, in_flight, now)
  if in_flight >= math.max(1, math.floor(self.window)) then return math.huge end
  local wait = math.max(0, self.paused_until - now)
  if self.buckets.requests then wait = math.max(wait, wait_for(self.buckets.requests, 1, now)) end
  if self.buckets.tokens then wait = math.max(wait, wait_for(self.buckets.tokens, tokens, now)) end
  wait = math.max(wait, wait_learnt(self.learnt.requests, 1, now))
  -- One request alone always goes: a limit below its size would wait for ever.
  if in_flight > 0 then wait = math.max(wait, wait_learnt(self.learnt.tokens, tokens, now)) end
  return wait
end

---Books a request that goes now.
---@param tokens number
function Gate:sent(tokens)
  local b, l = self.buckets, self.learnt
  if b.requests then b.requests.level = b.requests.level - 1 end
  if b.tokens then b.tokens.level = b.tokens.level - tokens end
  if l.requests then l.requests.remaining = l.requests.remaining - 1 end
  if l.tokens then l.tokens.remaining = l.tokens.remaining - tokens end
end

---@class perilune.ai.Quota
---@field limit? number
---@field remaining? number
---@field reset? number seconds until it is full again

---What a reply's headers say of what is left.
---@param said {requests: perilune.ai.Quota?, tokens: perilune.ai.Quota?}
---@param in_flight integer requests whose replies have not counted themselves yet
---@param now number
function Gate:learn(said, in_flight, now)
  for name, quota in pairs(said) do
    if quota.remaining and quota.remaining >= 0 and quota.reset then     -- -1 is some proxies' "no limit"
      local flying = name == "requests" and in_flight or 0
      self.learnt[name] = { remaining = quota.remaining - flying, reset_at = now + math.min(quota.reset, 3600) }
    end
    if quota.limit and quota.limit > 0 then self[name .. "_limit"] = quota.limit end
  end
end

---A reply that went well opens the window by one request a round trip.
function Gate:well()
  if self.window < self.most then self.window = math.min(self.most, self.window + 1 / self.window) end
end

---A refusal for speed: pause as told, and halve the window at most once a second (all
---requests of one burst are refused together; that is one event).
---@param wait number|nil seconds the service asked for
---@param now number
function Gate:refused(wait, now)
  if wait then self.paused_until = math.max(self.paused_until, now + wait) end
  if now - self.cut_at >= 1 then
    self.cut_at, self.window = now, math.max(1, self.window / 2)
  end
end

return limits
