--- OpenAI's wire: what a request asks for, as a job of the engine, and what goes back.
--- Everything that knows field names of the service is here. Fields that are not known are
--- ignored; fields that ask for something this server cannot do are refused by name.
local base = require("perilune.core").base
local chat = require "perilune.serve.chat"
local json = require "perilune.json"
local rows = require "perilune.rows"

local openai = {}

local TOP_MAX, STOPS_MAX, N_MAX, PROMPTS_MAX = 20, 16, 128, 2048
local COMPLETION_TOKENS = 16 -- what max_tokens is for a text completion when not given

---- errors

---Raises what becomes an error reply.
---@param status integer
---@param message string
---@param param? string
---@param code? string
function openai.fail(status, message, param, code)
  error({ status = status, message = message, param = param, code = code }, 0)
end

---@param problem {status: integer, message: string, param: string|nil, code: string|nil, kind: string|nil}
---@return string
function openai.error_body(problem)
  local kind = problem.status == 429 and "rate_limit_error" or problem.status >= 500 and "server_error"
    or "invalid_request_error"
  return json.encode { error = { message = problem.message, type = kind, param = problem.param or json.null,
    code = problem.code or json.null } }
end

local function bad(param, message, ...)
  openai.fail(400, ("%s: " .. message):format(param, ...), param)
end

---- reading fields

local function show(v)
  if type(v) == "string" then return ("%q"):format(#v > 60 and v:sub(1, 57) .. "..." or v) end
  return type(v) == "table" and "a list or object" or tostring(v)
end

-- null and an absent key mean the same.
local function field(body, name)
  local v = body[name]
  if v == json.null then return nil end
  return v
end

local function number(body, name, default, least, most)
  local v = field(body, name)
  if v == nil then return default end
  if type(v) ~= "number" or v ~= v or v < least or v > most then
    bad(name, "wanted a number from %s to %s, got %s", least, most, show(v))
  end
  return v
end

local function integer(body, name, default, least, most)
  local v = field(body, name)
  if v == nil then return default end
  local whole = type(v) == "number" and math.tointeger(v)
  if not whole or whole < least or whole > most then
    bad(name, "wanted an integer %s, got %s", most == math.maxinteger and ("of at least %d"):format(least)
      or ("from %d to %d"):format(least, most), show(v))
  end
  return whole
end

local function boolean(body, name)
  local v = field(body, name)
  if v ~= nil and type(v) ~= "boolean" then bad(name, "wanted true or false, got %s", show(v)) end
  return v or false
end

-- What asks for something that is not here, with the values that ask for nothing.
local REFUSED = {
  tools = function(v) return type(v) == "table" and next(v) == nil end,
  tool_choice = function(v) return v == "none" or v == "auto" end,
  functions = function(v) return type(v) == "table" and next(v) == nil end,
  function_call = function(v) return v == "none" or v == "auto" end,
  response_format = function(v) return type(v) == "table" and v.type == "text" end,
  logit_bias = function(v) return type(v) == "table" and next(v) == nil end,
  presence_penalty = function(v) return v == 0 end,
  frequency_penalty = function(v) return v == 0 end,
  repetition_penalty = function(v) return v == 1 end,
  modalities = function(v) return type(v) == "table" and #v == 1 and v[1] == "text" end,
  audio = function() return false end,
  prediction = function() return false end,
  web_search_options = function() return false end,
  suffix = function(v) return v == "" end,
  best_of = function(v, body) return v == 1 or v == field(body, "n") end,
}

local function refuse_unsupported(body)
  local names = {}
  for name in pairs(body) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local nothing, v = REFUSED[name], field(body, name)
    if nothing and v ~= nil and not nothing(v, body) then
      openai.fail(400, ("%s is not supported by this server"):format(name), name, "unsupported_parameter")
    end
  end
end

local function check_model(body, ctx)
  local name = field(body, "model")
  if name == nil or name == ctx.name then return end
  openai.fail(404, ("the model %s does not exist here; this server has %s"):format(show(name), show(ctx.name)),
    "model", "model_not_found")
end

local function stops(body, more)
  local v = field(body, "stop")
  local list = type(v) == "table" and v or { v }
  if #list > STOPS_MAX then bad("stop", "%d texts; wanted at most %d", #list, STOPS_MAX) end
  local out = {}
  for i, s in ipairs(list) do
    if type(s) ~= "string" or s == "" then bad("stop", "text %d is %s; wanted a text that is not empty", i, show(s)) end
    out[i] = s
  end
  return table.move(more or {}, 1, #(more or {}), #out + 1, out)
end

local function stream_options(body, job)
  job.stream = boolean(body, "stream")
  local v = field(body, "stream_options")
  if v == nil then return end
  if type(v) ~= "table" then bad("stream_options", "wanted an object, got %s", show(v)) end
  if not job.stream then bad("stream_options", "only with stream = true") end
  job.include_usage = boolean(v, "include_usage")
end

local function sampling(body, ctx)
  local top_k = integer(body, "top_k", 0, -1, math.maxinteger)
  return {
    temperature = number(body, "temperature", 1, 0, 2),
    top_p = math.max(number(body, "top_p", 1, 0, 1), 1e-9), -- 0: the likeliest token
    top_k = math.max(top_k, 0),
    min_p = number(body, "min_p", 0, 0, 1),
    seed = integer(body, "seed", nil, math.mininteger, math.maxinteger) or ctx.fresh_seed(),
  }
end

-- What both endpoints share; kind: "chat" or "text".
local function new_job(body, ctx, kind)
  check_model(body, ctx)
  refuse_unsupported(body)
  local job = { kind = kind, n = integer(body, "n", 1, 1, N_MAX), sampling = sampling(body, ctx), echo = false,
    created = math.floor(base.walltime()), ctx = ctx }
  stream_options(body, job)
  ctx.count = ctx.count + 1
  job.name = ("%s-%s%06d"):format(kind == "chat" and "chatcmpl" or "cmpl", ctx.run, ctx.count)
  return job
end

local function check_length(ctx, ids, room, param)
  if #ids == 0 then bad(param, "the prompt has no tokens") end
  if #ids > ctx.context - room then
    openai.fail(400, ("this model's context is %d tokens; the prompt has %d%s"):format(ctx.context, #ids,
      room > 0 and " and leaves no room for an answer" or ""), param, "context_length_exceeded")
  end
end

-- Text to ids; a text that the tokenizer has no tokens for is the client's mistake.
local function encode(param, f, ...)
  local ok, ids = pcall(f, ...)
  if not ok then bad(param, "%s", tostring(ids)) end
  return ids
end

---- chat completions

local ROLES = { system = "system", developer = "system", user = "user", assistant = "assistant" }

local function content_text(where, v)
  if type(v) == "string" then return v end
  if type(v) ~= "table" or #v == 0 then bad("messages", "%s.content is %s; wanted a text", where, show(v)) end
  local out = {}
  for i, part in ipairs(v) do
    if type(part) ~= "table" or part.type ~= "text" or type(part.text) ~= "string" then
      bad("messages", "%s.content[%d] is not of type text; only texts are supported", where, i - 1)
    end
    out[i] = part.text
  end
  return table.concat(out)
end

local function messages_of(body)
  local list = field(body, "messages")
  if type(list) ~= "table" or #list == 0 then bad("messages", "wanted a list of at least one message, got %s", show(list)) end
  local out = {}
  for i, m in ipairs(list) do
    local where = ("messages[%d]"):format(i - 1)
    if type(m) ~= "table" then bad("messages", "%s is %s; wanted an object", where, show(m)) end
    local role = ROLES[m.role]
    if not role then
      bad("messages", "%s.role is %s; wanted system, developer, user or assistant", where, show(m.role))
    end
    out[i] = { role = role, content = content_text(where, m.content) }
  end
  return out
end

---@param body table
---@param ctx table
---@return perilune.serve.Job
function openai.chat_job(body, ctx)
  if not ctx.template then openai.fail(400, ctx.no_template, nil, "no_chat_template") end
  local job = new_job(body, ctx, "chat")
  local messages = messages_of(body)
  local ids = encode("messages", chat.encode, ctx.model, ctx.template, messages)
  check_length(ctx, ids, 1, "messages")
  job.prompts = { { ids = ids } }
  local most = math.maxinteger
  job.max_tokens = integer(body, "max_completion_tokens", nil, 1, most) or integer(body, "max_tokens", ctx.context, 1, most)
  job.stops = stops(body, ctx.template.stop)
  job.logprobs = boolean(body, "logprobs")
  job.top = integer(body, "top_logprobs", 0, 0, math.min(TOP_MAX, ctx.vocab))
  if job.top > 0 and not job.logprobs then bad("top_logprobs", "only with logprobs = true") end
  return job
end

---- text completions

local function is_ids(v) return type(v) == "table" and math.type(v[1]) == "integer" end

local function one_prompt(ctx, v, where)
  if type(v) == "string" then
    return { text = v, ids = encode("prompt", rows.encode, ctx.model, v) }
  end
  if not is_ids(v) then bad("prompt", "%s is %s; wanted a text or a list of token ids", where, show(v)) end
  for i, id in ipairs(v) do
    if math.type(id) ~= "integer" or id < 0 or id >= ctx.vocab then
      bad("prompt", "token %d of %s is %s; wanted an id from 0 to %d", i - 1, where, show(id), ctx.vocab - 1)
    end
  end
  return { ids = v }
end

local function prompts_of(body, ctx)
  local v = field(body, "prompt")
  if v == nil then bad("prompt", "is missing; wanted a text, a list of texts, or token ids") end
  if type(v) == "string" or is_ids(v) then return { one_prompt(ctx, v, "the prompt") } end
  if type(v) ~= "table" or #v == 0 or #v > PROMPTS_MAX then
    bad("prompt", "wanted a text, token ids, or a list of 1 to %d of those, got %s", PROMPTS_MAX, show(v))
  end
  local out = {}
  for i, p in ipairs(v) do out[i] = one_prompt(ctx, p, ("prompt %d"):format(i - 1)) end
  return out
end

---@param body table
---@param ctx table
---@return perilune.serve.Job
function openai.completion_job(body, ctx)
  local job = new_job(body, ctx, "text")
  job.echo = boolean(body, "echo")
  job.max_tokens = integer(body, "max_tokens", COMPLETION_TOKENS, 0, math.maxinteger)
  if job.max_tokens == 0 and not job.echo then bad("max_tokens", "0 only with echo = true, to score the prompt") end
  job.prompts = prompts_of(body, ctx)
  for _, p in ipairs(job.prompts) do check_length(ctx, p.ids, job.max_tokens == 0 and 0 or 1, "prompt") end
  job.stops = stops(body)
  local logprobs = field(body, "logprobs")
  job.logprobs = logprobs ~= nil and logprobs ~= false
  job.top = logprobs == true and 0 or logprobs and integer(body, "logprobs", 0, 0, math.min(TOP_MAX, ctx.vocab)) or 0
  return job
end

---- replies

local function usage(job)
  local prompt, completion = 0, 0
  for _, p in ipairs(job.prompts) do prompt = prompt + #p.ids end
  for _, c in ipairs(job.choices) do completion = completion + c.tokens end
  return { prompt_tokens = prompt, completion_tokens = completion, total_tokens = prompt + completion }
end

local function chat_logprobs(job, records)
  if not job.logprobs then return json.null end
  local list = {}
  for i, r in ipairs(records) do list[i] = job.ctx.tokens:chat(r, job.top) end
  return { content = json.array(list), refusal = json.null }
end

local function text_logprobs(job, records, text, skip, skip_chars)
  if not job.logprobs then return json.null end
  return job.ctx.tokens:completion(records, job.top, text, skip, skip_chars)
end

---The body of a whole reply.
---@param job perilune.serve.Job
---@return string
function openai.reply(job)
  local choices = {}
  for i, c in ipairs(job.choices) do
    local choice = { index = c.index, finish_reason = c.finish }
    if job.kind == "chat" then
      choice.message = { role = "assistant", content = c.text, refusal = json.null }
      choice.logprobs = chat_logprobs(job, c.records)
    else
      choice.text = c.text
      choice.logprobs = text_logprobs(job, c.records, c.text, 0, 0)
    end
    choices[i] = choice
  end
  return json.encode { id = job.name, object = job.kind == "chat" and "chat.completion" or "text_completion",
    created = job.created, model = job.ctx.name, system_fingerprint = job.ctx.fingerprint,
    choices = json.array(choices), usage = usage(job) }
end

-- A chunk is put together by hand: it goes out for every token of every stream.
local function chunk(job, choices, usage_text)
  if not job.head then
    job.head = ('data: {"id":%s,"object":%s,"created":%d,"model":%s,"system_fingerprint":%s,"choices":['):format(
      json.encode(job.name), job.kind == "chat" and '"chat.completion.chunk"' or '"text_completion"', job.created,
      json.encode(job.ctx.name), json.encode(job.ctx.fingerprint))
    job.tail = job.include_usage and '],"usage":null}\n\n' or "]}\n\n"
  end
  if usage_text then return job.head .. '],"usage":' .. usage_text .. "}\n\n" end
  return job.head .. choices .. job.tail
end

---What opens a stream: the role of each answer of a chat.
---@param job perilune.serve.Job
---@return string
function openai.stream_begin(job)
  if job.kind ~= "chat" then return "" end
  local out = {}
  for i = 1, job.n do
    out[i] = chunk(job, ('{"index":%d,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,'
      .. '"finish_reason":null}'):format(i - 1))
  end
  return table.concat(out)
end

---@param job perilune.serve.Job
---@param choice perilune.serve.Choice
---@param text string
---@param records table
---@return string
function openai.stream_text(job, choice, text, records)
  local content = json.encode(text)
  if job.kind == "chat" then
    return chunk(job, ('{"index":%d,"delta":{"content":%s},"logprobs":%s,"finish_reason":null}'):format(choice.index,
      content, job.logprobs and json.encode(chat_logprobs(job, records)) or "null"))
  end
  local logprobs = "null"
  if job.logprobs then
    local chars = choice.chars or 0
    logprobs = json.encode(text_logprobs(job, records, text, choice.given - #text, chars))
    choice.chars = chars + utf8.len(text)
  end
  return chunk(job, ('{"index":%d,"text":%s,"logprobs":%s,"finish_reason":null}'):format(choice.index, content, logprobs))
end

---@param job perilune.serve.Job
---@param choice perilune.serve.Choice
---@return string
function openai.stream_end(job, choice)
  local rest = #choice.records > 0 and openai.stream_text(job, choice, "", choice.records) or ""
  return rest .. chunk(job, ('{"index":%d,%s,"logprobs":null,"finish_reason":"%s"}'):format(choice.index,
    job.kind == "chat" and '"delta":{}' or '"text":""', choice.finish))
end

---@param job perilune.serve.Job
---@return string
function openai.stream_done(job)
  return (job.include_usage and chunk(job, "", json.encode(usage(job))) or "") .. "data: [DONE]\n\n"
end

local function model_object(ctx)
  return { id = ctx.name, object = "model", created = ctx.started, owned_by = "perilune", max_model_len = ctx.context }
end

---@param ctx table
---@return string
function openai.models(ctx) return json.encode { object = "list", data = json.array { model_object(ctx) } } end

---@param ctx table
---@param name string
---@return string
function openai.model(ctx, name)
  check_model({ model = name }, ctx)
  return json.encode(model_object(ctx))
end

return openai
