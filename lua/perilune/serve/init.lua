--- perilune serve: a model behind OpenAI's wire, for clients on this machine or, with a
--- token, on others. One loop takes requests, lets the engine draw a token for every answer
--- that runs, and sends what is certain. Wire and templates are other files; so is HTTP.
local core = require "perilune.core"
local chat = require "perilune.serve.chat"
local engine = require "perilune.serve.engine"
local json = require "perilune.json"
local openai = require "perilune.serve.openai"
local progress = require "perilune.study.progress"
local tokens = require "perilune.serve.tokens"
local base = core.base

local serve = {}

local TAKE_MAX = 64 -- requests taken between two tokens, so that a flood of them stops no stream
local IDLE_WAIT = 0.25
local EXTRA_CONNECTIONS = 256 -- beside those that answers can run on or wait on

local JSON_TYPE = { "Content-Type: application/json" }
local STREAM_HEADERS = { "Content-Type: text/event-stream", "Cache-Control: no-cache" }

---@class perilune.serve.Server
local Server = {}
Server.__index = Server

local function random_seed()
  local f = io.open("/dev/urandom", "rb")
  local bytes = f and f:read(8)
  if f then f:close() end
  return bytes and #bytes == 8 and string.unpack("<i8", bytes) or math.floor(base.walltime() * 1e6)
end

-- Names the weights without reading all of them: the norms change whenever a model is trained.
local function fingerprint(model)
  local small = {}
  for _, p in ipairs(model:parameters()) do
    if #p:shape() == 1 then small[#small + 1] = p end
  end
  return "fp_" .. core.lm.hash(json.encode(model.config) .. model.tokenizer:hash(), small):sub(1, 10)
end

local function context_of(model, o)
  local template, what = chat.choose(model, o.template)
  if o.template and not template then error("serve: " .. what, 0) end
  local seed, run = random_seed(), ("%08x"):format(random_seed() & 0xffffffff)
  local ctx = { model = model, name = o.name, context = model.shape.context,
    vocab = model.shape.vocab, template = template, template_name = template and what or "none",
    no_template = not template and what or nil, tokens = tokens.new(model.tokenizer), started = math.floor(base.walltime()),
    fingerprint = fingerprint(model), run = run, count = 0 }
  function ctx.fresh_seed()
    seed = seed + 1
    return seed
  end
  return ctx
end

---@class perilune.serve.Options
---@field name string
---@field address string
---@field port integer
---@field template? string
---@field batch_size integer
---@field dtype? "f32"|"bf16"|"int8"
---@field max_queue integer
---@field token_env? string
---@field token_optional? boolean

---Listens; run() serves.
---@param model perilune.Model
---@param o perilune.serve.Options
---@return perilune.serve.Server
function serve.new(model, o)
  if not model.tokenizer then error("serve: this model has no tokenizer.json; a server needs one", 0) end
  local ctx = context_of(model, o)
  local srv, message = core.server.listen { address = o.address, port = o.port, token_env = o.token_env,
    token_optional = o.token_optional, open_path = "/health",
    max_connections = o.batch_size + o.max_queue + EXTRA_CONNECTIONS }
  if not srv then error(message, 0) end
  local ends = {}
  if ctx.template and ctx.template.ends then ends[1] = model.tokenizer:token_to_id(ctx.template.ends) end
  return setmetatable({ srv = srv, ctx = ctx, engine = engine.new(model, o.batch_size, ends, o.dtype),
    most = o.batch_size + o.max_queue, requests = 0, tokens = 0 }, Server)
end

function Server:port() return self.srv:port() end

---- requests

function Server:reply(id, status, body) self.srv:respond(id, status, JSON_TYPE, body) end

-- A stream that has begun can only tell in an event, and end.
function Server:fail(id, problem)
  local body = openai.error_body(problem)
  if self.srv:respond(id, problem.status, { JSON_TYPE[1], problem.header }, body) then return end
  self.srv:write(id, "data: " .. body .. "\n\n")
  self.srv:finish(id)
end

local function body_of(request)
  local body, message = json.decode(request.body, "the request body")
  if body == nil or type(body) ~= "table" then
    openai.fail(400, message or "the request body is not a JSON object", nil, "invalid_json")
  end
  return body
end

-- Gives a job to the engine, its text to the client.
function Server:run_job(id, job)
  local srv = self.srv
  job.owner = id
  if not job.stream then
    job.done = function() self:reply(id, 200, openai.reply(job)) end
    self.engine:add(job)
    return
  end
  if not srv:begin(id, 200, STREAM_HEADERS) then return end
  local function write(bytes)
    if bytes ~= "" and not srv:write(id, bytes) then self.lost[#self.lost + 1] = id end
  end
  write(openai.stream_begin(job))
  job.emit = function(choice, text, records) write(openai.stream_text(job, choice, text, records)) end
  job.ended = function(choice) write(openai.stream_end(job, choice)) end
  job.done = function()
    write(openai.stream_done(job))
    srv:finish(id)
  end
  self.engine:add(job)
end

-- Raises unless there is room for so many more answers.
function Server:make_room(answers)
  local active = self.engine:active()
  if active + answers <= self.most then return end
  error({ status = 429, code = "rate_limit_exceeded", header = "Retry-After: 1",
    message = ("%d answers are running or waiting, and this server takes %d: no room for %d more, try again later"):format(
      active, self.most, answers) }, 0)
end

function Server:admit(request, make)
  self:make_room(1)                        -- before a request is read that is refused anyhow
  local job = make(body_of(request), self.ctx)
  local answers = #job.prompts * job.n
  if answers > self.most then              -- waiting would not help
    openai.fail(400, ("%d prompts with n = %d are %d answers, and this server takes %d at a time: send fewer in a request")
      :format(#job.prompts, job.n, answers, self.most), "n", "too_many_answers")
  end
  self:make_room(answers)
  self:run_job(request.id, job)
end

local ROUTES = {
  ["/health"] = { GET = function(self, r) self:reply(r.id, 200, '{"status":"ok"}') end },
  ["/v1/models"] = { GET = function(self, r) self:reply(r.id, 200, openai.models(self.ctx)) end },
  ["/v1/chat/completions"] = { POST = function(self, r) self:admit(r, openai.chat_job) end },
  ["/v1/completions"] = { POST = function(self, r) self:admit(r, openai.completion_job) end },
}

local MODEL = {
  GET = function(self, r) self:reply(r.id, 200, openai.model(self.ctx, r.path:match "^/v1/models/(.+)$")) end,
}

function Server:handle(request)
  local route = ROUTES[request.path] or (request.path:find "^/v1/models/." and MODEL)
  if not route then
    local known = {}
    for path in pairs(ROUTES) do known[#known + 1] = path end
    table.sort(known)
    openai.fail(404, ("no such path: %s; there are %s"):format(request.path, table.concat(known, ", ")), nil, "not_found")
  end
  local act = route[request.method]
  if not act then
    local wanted = next(route)
    error({ status = 405, code = "method_not_allowed", header = "Allow: " .. wanted,
      message = ("%s %s: wanted %s"):format(request.method, request.path, wanted) }, 0)
  end
  act(self, request)
end

-- A problem with one request is that client's, and nobody else's.
function Server:serve_one(request)
  self.requests = self.requests + 1
  local ok, problem = xpcall(self.handle, function(e)
    return type(e) == "table" and e or { status = 500, message = tostring(e), code = "internal_error" }
  end, self, request)
  if ok then return end
  base.check_interrupt()
  self.engine:cancel(request.id)
  self:fail(request.id, problem)
  if problem.status == 500 then progress.say("perilune serve: " .. problem.message) end
end

---- the loop

function Server:step()
  local drawn, problem, owners = self.engine:step()
  self.tokens = self.tokens + drawn
  if not problem then return end
  progress.say("perilune serve: " .. problem)
  for _, id in ipairs(owners) do self:fail(id, { status = 500, code = "internal_error", message = problem }) end
end

---One turn: new requests, clients that left, one token for every answer that runs.
---@param wait number # seconds to wait for a request while nothing runs
function Server:turn(wait)
  self.lost = {}
  local request = self.srv:take(self.engine:active() > 0 and 0 or wait)
  for _ = 1, TAKE_MAX do
    if not request then break end
    self:serve_one(request)
    request = self.srv:take(0)
  end
  if request then self:serve_one(request) end
  for _, id in ipairs(self.srv:gone()) do self.engine:cancel(id) end
  if self.engine:active() > 0 then self:step() end
  for _, id in ipairs(self.lost) do self.engine:cancel(id) end
end

---Serves until interrupted.
function Server:run()
  local line = progress.start { label = "serve", unit = "requests" }
  local since, tokens_then, told = base.now(), 0, 0
  local rate = 0
  while true do
    self:turn(IDLE_WAIT)
    local now = base.now()
    if now - since >= 1 then
      rate = (self.tokens - tokens_then) / (now - since)
      since, tokens_then = now, self.tokens
    end
    if self.engine:active() > 0 or told ~= self.requests or rate > 0 then
      told = self.requests
      line:update(self.requests, { running = self.engine:running(), queued = self.engine:queued(), ["tokens/s"] = rate })
    end
  end
end

function Server:close()
  self.srv:close()
  self.engine:close()
end

Server.__close = Server.close

return serve
