--- Starts the mock of the AI services for a test file, and speaks with it.
local base = require("perilune.core").base
local net = require("perilune.core").net

local mock = {}
mock.__index = mock

---Ends the program.
function mock:stop()
  if not self.pid then return end
  os.execute("kill " .. self.pid)          -- first: closing the pipe waits for the program's end
  self.pid = nil
  self.pipe:close()
end

mock.__gc = mock.stop

local function path()
  return (os.getenv "PL_TESTS" or "build/tests") .. "/mock"
end

---@param options? string of the program, such as "--latency-ms 5"
---@return table server {port, url}
function mock.start(options)
  local pipe = io.popen(("echo $$; exec %s %s"):format(path(), options or "--latency-ms 2"), "r")
  local pid, line = pipe:read("l", "l")
  local port = line and line:match "^port (%d+)$"
  if not port then error("the mock did not start: " .. tostring(line)) end
  return setmetatable({ pipe = pipe, pid = pid, port = port, url = ("http://127.0.0.1:%s"):format(port) }, mock)
end

---@param method string
---@param at string
---@param body? string
function mock:ask(method, at, body)
  local http <close> = net.client {}
  http:send { id = 1, method = method, url = self.url .. at, body = body, connect_s = 5, total_s = 10, idle_s = 10 }
  while true do
    http:poll(1)
    local r = http:next()
    if r then return r end
  end
end

---What the next requests meet: { next = { "429", "ok" }, reply = "...", ... }.
function mock:script(t)
  local r = self:ask("POST", "/script", base.json_encode(t))
  if r.status ~= 200 then error(("mock: /script: %s %s"):format(r.status or r.failure, r.body or "")) end
end

---@return table counters
function mock:stats() return base.json_decode(self:ask("GET", "/stats").body, "stats") end

---A client spec for it.
---@param provider string
---@param options? string
function mock:spec(provider, options)
  return ("%s:mock@%s?%s"):format(provider, self.url, options or "")
end

return mock
