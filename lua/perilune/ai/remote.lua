--- A service over HTTP as teacher and critic: what the providers in providers/ have in
--- common. A provider translates one chat call into a request and a reply back; here
--- are specs, options, keys, prices, and the three tasks in terms of chat calls.
---   openai:MODEL?temperature=0&concurrency=64
---   openai:MODEL@http://127.0.0.1:8080/v1        any server that speaks the same
local base = require("perilune.core").base
local common = require "perilune.feedback.common"
local limits = require "perilune.ai.limits"
local net = require("perilune.core").net
local options = require "perilune.options"
local prices = require "perilune.ai.prices"
local tokens = require "perilune.ai.tokens"
local wire = require "perilune.ai.wire"

local remote = {}

---@class perilune.ai.Call one chat completion, in no service's words
---@field messages {role: "system"|"user"|"assistant", content: string}[]
---@field sample string|integer which of several draws of the same request
---@field max_tokens? integer
---@field temperature? number
---@field top_p? number
---@field seed? integer
---@field stop? string[]
---@field top_logprobs? integer log-probabilities of so many likeliest tokens
---@field schema? table JSON schema of the answer
---@field about string a few words for errors

---@class perilune.ai.Wire a provider: one file in providers/
---@field name string
---@field base string address of the service
---@field base_env string variable that holds another address
---@field key_env string variable that holds the key
---@field key_header string|fun(o: table): string what stands before the key in its header, name and all
---@field can table<string, boolean> logprobs, seed, schema
---@field headers? fun(o: table): string[]
---@field options? table<string, table> rows of its own
---@field address? fun(given: string): string completes an address the user gave
---@field body fun(service: perilune.ai.Service, call: perilune.ai.Call): string, table path and body
---@field reply fun(body: table): perilune.ai.Answer|nil, table|nil the answer, or {message, code, status?}
---@field assemble fun(events: table[]): table|nil, string|nil the body that a whole stream adds up to
---@field problem fun(body: table): {message: string?, code: string?} of an error reply
---@field request_id string header that names the request
--- An option `version` (of the interface, sent as a header) is part of what identifies a call.
---@field limits fun(headers: table<string, string>): table as perilune.ai.Gate.learn takes
---@field batch? perilune.ai.Batches

-- Options every service takes. `sent` ones change the request and so the key of a stage.
local ROWS = {
  temperature = { type = "number", min = 0, sent = true, doc = "sent only when given" },
  top_p = { type = "number", min = 0, max = 1, sent = true, doc = "sent only when given" },
  max_tokens = { type = "integer", min = 1, sent = true, doc = "longest answer; default: what the stage asks for" },
  seed = { type = "integer", sent = true, doc = "sent only when given, plus the number of the sample" },
  system = { type = "string", sent = true, doc = "system prompt of demonstrations" },
  template = { type = "string", sent = true, doc = "judge prompt, when it is a critic" },
  schema = { false, sent = true, doc = "ask for structured output where the judge prompt is ours" },
  concurrency = { 32, min = 1, max = 1024, doc = "requests in flight" },
  rpm = { type = "number", min = 0.1, doc = "requests a minute" },
  tpm = { type = "number", min = 1, doc = "tokens a minute" },
  tries = { 8, min = 1, doc = "of a request that fails for reasons that may pass" },
  timeout = { 600, type = "number", min = 0.05, doc = "seconds for a reply that is no stream" },
  idle = { 60, type = "number", min = 0.05, doc = "seconds without a byte, of a streamed reply" },
  connect = { 10, type = "number", min = 0.05, doc = "seconds to connect" },
  max_body = { 64 << 20, min = 1024, doc = "bytes of a reply" },
  stream = { false, sent = true, doc = "take replies as a stream: a stalled one is noticed after `idle` seconds" },
  batch = { false, doc = "use the service's batch interface: half the price, up to a day" },
  insecure = { false, doc = "allow http to another machine" },
  key_env = { type = "string", doc = "environment variable that holds the key" },
  price_in = { type = "number", min = 0, doc = "dollars per million input tokens" },
  price_out = { type = "number", min = 0, doc = "dollars per million output tokens" },
  tokenizer = { type = "string", doc = "tokenizer.json that counts its tokens in a plan" },
}

---@class perilune.ai.Service : perilune.ai.Provider
---@field whole boolean takes all requests of a stage at once
local Service = { whole = true }
Service.__index = Service

local function is_price(p) return type(p) == "number" end

-- Fields of a request, at any depth, that `body.NAME=` must not change under the hands of what
-- reads the reply or counts its price, and what to use in their place.
local SEVERAL, LONGEST = "feedback.demonstrate's n asks for several answers", "there is max_tokens="
local OURS = {
  n = SEVERAL, stream = "there is stream=", max_tokens = LONGEST, model = "it stands after the provider's name",
  messages = "they come from the stage", contents = "they come from the stage",
  ["stream_options.include_usage"] = "it tells what a stream costs",
  generation_config = "it is spelt generationConfig here",
  ["generationConfig.maxOutputTokens"] = LONGEST, ["generationConfig.max_output_tokens"] = LONGEST,
  ["generationConfig.candidateCount"] = SEVERAL, ["generationConfig.candidate_count"] = SEVERAL,
}

local function refuse_ours(provider, field, value)
  if OURS[field] then error(("%s: body.%s cannot be given: %s"):format(provider, field, OURS[field]), 0) end
  if type(value) ~= "table" then return end
  for name, inner in pairs(value) do refuse_ours(provider, ("%s.%s"):format(field, name), inner) end
end

-- The user's field into a request: a table adds its fields to those that are there, a list or a value takes the place.
local function put(into, name, value)
  local there = into[name]
  if type(value) == "table" and type(there) == "table" and #value == 0 and #there == 0 then
    for inner, v in pairs(value) do put(there, inner, v) end
  else
    into[name] = value
  end
end

local TRUTH = { ["true"] = true, ["false"] = false }

-- "body.NAME=VALUE" apart from the options.
local function split(provider, given)
  local extra, plain = {}, {}
  for name, value in pairs(given) do
    local field = name:match "^body%.(.+)$"
    if field then refuse_ours(provider, field, value) end
    if not field then
      plain[name] = value
    elseif TRUTH[value] ~= nil then
      extra[field] = TRUTH[value]
    else
      extra[field] = tonumber(value) or value
    end
  end
  return extra, plain
end

-- Options that this service has nothing to do with.
local function check(provider, o)
  local function refuse(name, why) error(("%s: %s: %s"):format(provider.name, name, why), 0) end
  if o.schema and not provider.can.schema then refuse("schema", "this service has no structured output") end
  if o.seed and not provider.can.seed then refuse("seed", "this service has none") end
  if o.batch and not provider.batch then refuse("batch", "this service has no batch interface here") end
  if o.batch and o.stream then refuse("batch", "the answers of a batch are no stream: leave stream out") end
end

local function price_of(o, model)
  if is_price(o.price_in) and is_price(o.price_out) then
    return { input = o.price_in, output = o.price_out, cached = o.price_in, batch = 0.5, as_of = "given" }
  end
  if is_price(o.price_in) or is_price(o.price_out) then error("price_in and price_out go together", 0) end
  return prices.of(model)
end

-- Where the requests go, and the variable of the key. A key goes only to the service it
-- belongs to, or where the user's own variable or key_env= sends it.
local function address(provider, given, o)
  local complete = provider.address or function(url) return url end
  local own = os.getenv(provider.base_env)
  local url, key_env = provider.base, provider.key_env
  if given then
    url, key_env = complete(given:gsub("/+$", "")), nil
    if own and complete(own:gsub("/+$", "")) == url then key_env = provider.key_env end
  elseif own and own ~= "" then
    url = complete(own:gsub("/+$", ""))
  end
  -- an address is written into the ledger and into errors
  if url:find "^https?://[^/]*@" then
    error(("%s: an address holds no user and no password: name the variable of the key with key_env="):format(
      provider.name), 0)
  end
  return url, o.key_env or key_env
end

local made = {}

---What a provider of this name takes, for help; nil where there is none over HTTP.
---@param name string
---@return {doc: string, rows: table<string, table>}|nil
function remote.described(name)
  if name:match "^%l+$" then pcall(require, "perilune.ai.providers." .. name) end
  return made[name]
end

---Makes the constructor of a provider: what `require "perilune.ai.providers.NAME"` returns.
---@param provider perilune.ai.Wire
---@return fun(rest: string, given: table<string, any>, spec: any): perilune.ai.Service
function remote.provider(provider)
  local rows = {}
  for name, row in pairs(ROWS) do rows[name] = row end
  for name, row in pairs(provider.options or {}) do rows[name] = row end
  made[provider.name] = { rows = rows, doc = ("%s:MODEL, or %s:MODEL@URL for another address (%s); key in %s"):format(
    provider.name, provider.name, provider.base, provider.key_env) }
  return function(rest, given, spec)
    local ai = require "perilune.ai"
    local extra, plain = split(provider.name, given)
    local o = ai.options(provider.name, rows, plain)
    check(provider, o)
    local model, url = rest:match "^(.-)@(https?://.*)$"
    model = model or rest
    if model == "" then error(("%s: names a model, as in %s:MODEL"):format(provider.name, provider.name), 0) end
    if model:find "@" then
      error(("%s: %q is no address: http:// or https://"):format(provider.name, model:match "@(.*)$"), 0)
    end
    if o.template then require("perilune.feedback.templates").get(o.template) end
    local service = setmetatable({
      wire = provider, provider = provider.name, name = tostring(spec), model = model, options = o, extra = extra,
      rows = rows, can = provider.can,
      insecure = o.insecure, connect_s = o.connect, timeout = o.timeout, idle = o.idle, max_body = o.max_body,
      tries = o.tries, price = price_of(o, model),
      key_header = type(provider.key_header) == "function" and provider.key_header(o) or provider.key_header,
      gate = limits.gate { concurrency = o.concurrency, rpm = o.rpm, tpm = o.tpm },
    }, Service)
    service.base, service.key_env = address(provider, url, o)
    return service
  end
end

---What identifies the service in the key of a stage: whatever changes a request.
function Service:key()
  local sent = {}
  for name, row in pairs(self.rows) do
    if row.sent then sent[name] = self.options[name] end
  end
  return base.json_encode { provider = self.provider, model = self.model, base = self.base, sent = sent,
    extra = self.extra }
end

---Takes the key out of the environment.
---@return true|nil ok
---@return string|nil message
function Service:unlock()
  self.unlocked_env, self.secret_header = nil, nil
  if not self.key_env then return true end
  local ok, message = net.secret(self.key_env)
  if ok then
    self.unlocked_env, self.secret_header = self.key_env, self.key_header
    return true
  end
  -- a local server mostly wants no key
  if net.is_loopback(self.base) and not self.options.key_env then return true end
  return nil, message
end

---The same; raises, and names the call that needs it.
---@param request table
function Service:must_unlock(request)
  local ok, message = self:unlock()
  if ok then return end
  error(("%s: %s, and the ledger %s does not hold this call: %s"):format(self.name, message,
    require("perilune.ai.ledger").path(), request.about), 0)
end

-- Estimates of a text's tokens err upwards where no vocabulary is at hand: Chinese and
-- code take fewer bytes a token than English.
local BYTES_AT_LEAST = 2.5
local MESSAGE_TOKENS = 6
local LONG_ANSWER = 4096

local function message_bytes(messages)
  local n = 0
  for _, message in ipairs(messages) do n = n + #message.content + MESSAGE_TOKENS * BYTES_AT_LEAST end
  return n
end

---The request of a call. `key` is the hash of all that is sent, and of the sample's number.
---@param call perilune.ai.Call
---@return table request {url, body, key, stream, tokens, prompt_tokens, max_tokens, about, sample}
function Service:request(call)
  local path, body = self.wire.body(self, call)
  for name, value in pairs(self.extra) do put(body, name, value) end
  local text = base.json_encode(body)
  local url = self.base .. path
  local sample = tostring(call.sample or 1)
  local prompt = math.ceil(message_bytes(call.messages) / BYTES_AT_LEAST)
  local most = math.max(call.max_tokens or LONG_ANSWER, math.tointeger(self.extra.max_completion_tokens) or 0)
  return {
    url = url, body = text, path = path,
    key = base.sha256(table.concat({ self.provider, self.options.version or "", url, text, sample }, "\0")),
    stream = self.options.stream, sample = sample, prompt_tokens = prompt, max_tokens = most,
    tokens = prompt + (call.max_tokens or 0), about = call.about or "a call",
  }
end

---@param client_id string
---@return string[]
function Service:headers(client_id)
  local list = self.wire.headers and self.wire.headers(self.options) or {}
  list[#list + 1] = "Content-Type: application/json"
  -- our own name of the request: what the service's support asks for, and how tests count
  list[#list + 1] = "x-client-request-id: " .. client_id
  return list
end

function Service:request_id(headers)
  local id = headers[self.wire.request_id] or headers["x-request-id"]
  return id and net.redact(id)
end

function Service:limits(headers) return self.wire.limits(headers) end

---What an error reply says; a body that is no JSON is shown as it is.
---@param status integer
---@param text string
function Service:problem(status, text)
  local body = wire.decode(text)
  local found = type(body) == "table" and self.wire.problem(body) or {}
  if not found.message then
    local plain = text:gsub("<[^>]*>", " "):gsub("%s+", " ")
    found.message = plain:find "%S" and plain:sub(1, 200) or ("an empty reply")
  end
  found.status = status
  return found
end

local function events_of(text)
  local parser <close> = net.sse()
  local events = assert(parser:feed(text))
  for _, event in ipairs(assert(parser:finish())) do events[#events + 1] = event end
  return events
end

local function translate(self, text, request)
  if request.stream and not text:find "^%s*{" then
    local events = events_of(text)
    local body, message = self.wire.assemble(events)
    if not body then return nil, { message = message, cut = true } end
    local answer, problem = self.wire.reply(body)
    -- an error after the first event: what was written before it may be charged
    if problem then problem.cut = #events > 1 end
    return answer, problem
  end
  local body, message = wire.decode(text)
  if type(body) ~= "table" then
    return { outcome = "invalid", problem = "the reply is no JSON: " .. tostring(message or type(body)) }
  end
  return self.wire.reply(body)
end

---The answer in a whole reply of status 2xx.
---@param text string
---@param request table
---@return perilune.ai.Answer|nil answer
---@return table|nil problem {message, code, status?, cut?} where the reply tells of an error
function Service:read(text, request)
  -- What a service may not send it sends one day: that is its answer then, and no end of the stage.
  local ok, answer, problem = pcall(translate, self, text, request)
  if not ok then return { outcome = "invalid", problem = "the reply cannot be read: " .. tostring(answer) } end
  return answer, problem
end

---What a whole reply means, whatever its status.
---@param status integer
---@param headers table<string, string>
---@param text string
---@param request table
---@return perilune.ai.Answer|nil answer
---@return table|nil problem as of read
---@return "again"|"stop"|"failed"|nil verdict of wire.verdict
function Service:understand(status, headers, text, request)
  if status < 200 or status >= 300 then
    local problem = self:problem(status, text)
    return nil, problem, wire.verdict(status, headers, problem)
  end
  local answer, problem = self:read(text, request)
  if answer then return answer end
  return nil, problem, wire.verdict(problem.status or 500, headers, problem)   -- a 200 whose body is an error
end

---A recorded answer, as it was understood when it came.
---@param entry table of ledger.find
---@param request table
---@return perilune.ai.Answer
function Service:recall(entry, request)
  local answer, problem
  if entry.outcome ~= "failed" then answer, problem = self:read(entry.reply or "", request) end
  return answer or { outcome = entry.outcome,
    problem = problem and problem.message or wire.message(self.name, entry.status, entry.reply) }
end

---Tokens of a call, estimated where the service tells none: the most there can be where the text does not show
---them, for a model may have thought before it was cut or said nothing.
---@return {prompt_tokens: integer, completion_tokens: integer, cached_tokens: integer, estimated: boolean}
function Service:usage(answer, request)
  local said = answer and answer.usage
  if said and said.prompt_tokens and said.completion_tokens then
    return { prompt_tokens = said.prompt_tokens, completion_tokens = said.completion_tokens,
      cached_tokens = math.min(said.cached_tokens or 0, said.prompt_tokens), estimated = false }
  end
  local text = answer and answer.text
  local shown = text and text:find "%S" and answer.finish ~= "length"
  return { prompt_tokens = request.prompt_tokens, cached_tokens = 0, estimated = true,
    completion_tokens = shown and math.ceil(#text / BYTES_AT_LEAST) or request.max_tokens }
end

---Dollars of a call; nil where the price is unknown.
function Service:cost(usage)
  return prices.cost(self.price, usage.prompt_tokens, usage.completion_tokens,
    { cached = usage.cached_tokens, batch = self.options.batch })
end

---The most that a request may cost, in dollars; 0 where the price is unknown.
function Service:estimate(request)
  return prices.cost(self.price, request.prompt_tokens, request.max_tokens, { batch = self.options.batch }) or 0
end

-- --------------------------------------------------------------------- tasks

-- The first words of a prompt, for errors.
local function about(task, prompt)
  local line = prompt:gsub("%s+", " ")
  return ("%s, prompt %q"):format(task, #line > 60 and common.clean(line:sub(1, 57)) .. "..." or line)
end

-- What the user set wins over what a published protocol sets, and that over the stage's.
function Service:sampling(call, protocol, opts)
  local o = self.options
  for _, name in ipairs { "temperature", "top_p", "max_tokens" } do
    call[name] = o[name] or protocol[name] or opts[name]
  end
  call.top_logprobs = protocol.top_logprobs
  call.seed = o.seed
  return call
end

---The chat call of a demonstration.
---@return perilune.ai.Call
function Service:demonstration(request, opts)
  local messages, system = {}, opts.system or self.options.system
  if system then messages[1] = { role = "system", content = system } end
  messages[#messages + 1] = { role = "user", content = request.prompt }
  local index = request.index or 1
  local call = self:sampling({ messages = messages, sample = ("%d/%d"):format(opts.seed or 0, index),
    about = about("demonstrate", request.prompt) }, {}, opts)
  if call.seed then call.seed = call.seed + index - 1 end
  return call
end

-- Answers come as texts or as rows that hold one; what is no UTF-8 has no form in JSON.
local TEXTS = { prompt = true, a = true, b = true, answer = true, reference = true }
local function text_of(value) return common.clean(common.text(value)) end

-- A request with its answers as plain text. A base model's answer begins with a blank and a
-- service's does not: a judge that saw it would know which is which.
local function plain(request)
  local out = {}
  for name, value in pairs(request) do out[name] = TEXTS[name] and text_of(value) or value end
  for _, name in ipairs { "a", "b", "answer" } do
    if out[name] then out[name] = out[name]:match "^%s*(.-)%s*$" end
  end
  return out
end

-- What judge prompts are made with; a plan without a ledger brings its own.
function Service:context()
  return self.planned or { secret = require("perilune.ai.ledger").default():secret() }
end

---The judge prompt in use for a task.
function Service:template(task, opts)
  local template = require("perilune.feedback.templates").of(task, opts.template or self.options.template)
  if template.sampling.top_logprobs and not self.can.logprobs then
    error(("%s: template %s weighs by log-probabilities, which this service does not give"):format(self.name,
      template.name), 0)
  end
  return template
end

---The chat call of a comparison or rating.
---@return perilune.ai.Call
function Service:judgement(template, request, opts)
  local structured = self.options.schema and template.schema or nil
  local call = self:sampling({ messages = template.messages(plain(request), self:context(), structured ~= nil), sample = 1,
    about = about(template.task, request.prompt) }, template.sampling, opts)
  call.schema = structured
  return call
end

-- The verdict in an answer.
function Service:verdict(template, answer, request)
  if self.options.schema and template.schema then
    local value = wire.decode(answer.text)
    return type(value) == "table" and template.read_schema(value) or nil
  end
  return template.parse(answer, plain(request), self:context())
end

local function run(self, source)
  if self.options.batch then return require("perilune.ai.batch").run(self, source) end
  return require("perilune.ai.engine").run(self, source)
end

function Service:demonstrate(requests, opts)
  local out = {}
  run(self, {
    n = #requests, stage = opts.stage or "demonstrate", on_progress = opts.on_progress,
    make = function(i) return self:demonstration(requests[i], opts) end,
    done = function(i, answer)
      out[i] = answer.outcome == "answered" and { text = answer.text, finish = answer.finish }
        or { invalid = answer.problem or answer.outcome }
    end,
  })
  return out
end

local function judged(task, invalid)
  return function(self, requests, opts)
    local out, template = {}, self:template(task, opts)
    run(self, {
      n = #requests, stage = opts.stage or task, on_progress = opts.on_progress,
      make = function(i) return self:judgement(template, requests[i], opts) end,
      done = function(i, answer)
        out[i] = answer.outcome == "answered" and self:verdict(template, answer, requests[i]) or invalid
        if out[i] == invalid and opts.on_invalid then opts.on_invalid(answer.text or answer.problem or answer.outcome) end
      end,
    })
    return out
  end
end

Service.compare = judged("compare", "invalid")
Service.rate = judged("rate", false)

---What a stage's calls will be; nothing is sent.
function Service:plan(task, requests, opts) return require("perilune.ai.plan").of(self, task, requests, opts) end

return remote
