--- Single requests to a service beside the calls of a stage: batches, lists, files. They
--- cost nothing, so they are tried again freely; they are not noted, and keep to no window.
local base = require("perilune.core").base
local ledger = require "perilune.ai.ledger"
local net = require("perilune.core").net
local rand = require "perilune.rand"
local wire = require "perilune.ai.wire"

local rest = {}

local TRIES, LONGEST = 6, 30

---@class perilune.ai.Rest
local Rest = {}
Rest.__index = Rest

---@param service perilune.ai.Service
---@return perilune.ai.Rest
function rest.new(service)
  return setmetatable({ service = service, http = net.client { connections = 4 } }, Rest)
end

function Rest:__close() self.http:close() end

local function once(self, request)
  local service = self.service
  local headers = service.wire.headers and service.wire.headers(service.options) or {}
  if request.body then headers[#headers + 1] = "Content-Type: " .. (request.type or "application/json") end
  self.http:send {
    id = 1, method = request.method, url = service.base .. request.path, headers = headers, body = request.body,
    secret_header = service.secret_header, secret_env = service.unlocked_env, insecure = service.insecure,
    connect_s = service.connect_s, total_s = service.timeout, idle_s = service.timeout, max_body = 1 << 30,
  }
  while true do
    self.http:poll(1)
    local r = self.http:next()
    if r then
      if r.body then r.body = net.redact(r.body) end
      return r
    end
  end
end

-- What the service had once and has no more.
local MISSING = { [404] = true, [410] = true }

---One request, tried again where that can help and `again` allows it.
---@param method string
---@param path string after the service's address
---@param o? {body: string?, type: string?, again: boolean?}
---@return table|nil result {status, body, headers}
---@return string|nil message
---@return boolean|nil sent it may have been carried out all the same
---@return boolean|nil missing the service does not know what was asked for; the message is its own then
function Rest:ask(method, path, o)
  local request = { method = method, path = path, body = o and o.body, type = o and o.type }
  local tries = o and o.again == false and 1 or TRIES
  for try = 1, tries do
    local r = once(self, request)
    local message, wait
    if r.failure then
      message = ("%s: %s"):format(self.service.name, r.message or r.failure)
      if r.failure == "refused" or r.failure == "tls" or try == tries then return nil, message, r.sent end
    elseif r.status >= 200 and r.status < 300 then
      return r
    else
      local problem = self.service:problem(r.status, r.body)
      if MISSING[r.status] and method == "GET" then return nil, problem.message, true, true end
      message = wire.message(self.service.name, r.status, problem.message, self.service:request_id(r.headers))
      -- a gateway that gives up does not know what became of the request
      if wire.verdict(r.status, r.headers, problem) ~= "again" or try == tries then return nil, message, r.status >= 500 end
      wait = wire.retry_after(r.headers, LONGEST)
    end
    base.sleep((wait or 0) + rand.of(base.pid(), path .. try) * math.min(LONGEST, 2 ^ (try - 1)))
  end
end

---Is a batch of this name in our ledger?
---@param remote string
---@return boolean
function Rest:knows(remote) return ledger.default():knows_batch(remote, self.service.base) end

---Text that is read, its failure raised.
---@param path string
---@return string|nil text nil: the service does not know it
---@return string|nil message its words then
function Rest:text(path)
  local r, message, _, missing = self:ask("GET", path)
  if r then return r.body end
  if missing then return nil, message end
  error(message, 0)
end

---The same for what is JSON.
---@return table|nil value
---@return string|nil message
function Rest:json(path)
  local text, message = self:text(path)
  if not text then return nil, message end
  local body, bad = wire.decode(text)
  if type(body) ~= "table" then error(("%s: %s"):format(self.service.name, bad or "the reply is no JSON object"), 0) end
  return body
end

return rest
