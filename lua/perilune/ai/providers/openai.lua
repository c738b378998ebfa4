--- openai:MODEL: chat completions of OpenAI, and of every server that speaks the same
--- (llama.cpp, vLLM, Ollama, `perilune serve`): openai:MODEL@http://127.0.0.1:8080/v1
--- Key: OPENAI_API_KEY. Address: OPENAI_BASE_URL.
local base = require("perilune.core").base
local remote = require "perilune.ai.remote"
local wire = require "perilune.ai.wire"

local OFFICIAL = "https://api.openai.com/v1"

local function body(service, call)
  local out = { model = service.model, messages = base.json_array(call.messages), temperature = call.temperature,
    top_p = call.top_p, stop = call.stop, seed = call.seed }
  -- The old name is refused by reasoning models, the new one unknown to many other servers.
  out[service.base == OFFICIAL and "max_completion_tokens" or "max_tokens"] = call.max_tokens
  if call.top_logprobs then out.logprobs, out.top_logprobs = true, call.top_logprobs end
  if call.schema then
    out.response_format = { type = "json_schema",
      json_schema = { name = "answer", schema = call.schema, strict = true } }
  end
  if service.options.stream then
    out.stream, out.stream_options = true, { include_usage = true }
  end
  return "/chat/completions", out
end

local function token(entry)
  local text, logprob = wire.text(entry, "token"), wire.get(entry, "logprob")
  if not text or type(logprob) ~= "number" then return nil end
  return { token = text, logprob = logprob }
end

local function logprobs_of(choice)
  local content = wire.get(choice, "logprobs", "content")
  if type(content) ~= "table" then return nil end
  local out = {}
  for i, entry in ipairs(content) do
    local row = token(entry)
    if not row then return nil end
    row.top = {}
    for _, other in ipairs(wire.get(entry, "top_logprobs") or {}) do row.top[#row.top + 1] = token(other) end
    out[i] = row
  end
  return out
end

-- Errors are nested, or (older vLLM) stand at the top.
local function problem(body)
  local e = wire.get(body, "error")
  if type(e) == "string" then return { message = e } end
  if type(e) ~= "table" then e = wire.get(body, "object") == "error" and body or {} end
  local code = wire.get(e, "code")
  local kind = wire.text(e, "type")
  return { message = wire.text(e, "message"), code = type(code) == "string" and code or kind,
    status = math.type(code) == "integer" and code or nil }
end

local function usage_of(body)
  return {
    prompt_tokens = wire.count(body, "usage", "prompt_tokens"),
    completion_tokens = wire.count(body, "usage", "completion_tokens"),
    cached_tokens = wire.count(body, "usage", "prompt_tokens_details", "cached_tokens"),
  }
end

local function reply(body)
  if wire.get(body, "error") ~= nil or wire.get(body, "object") == "error" then return nil, problem(body) end
  local choice = wire.get(body, "choices", 1)
  local usage = usage_of(body)
  local text, refusal = wire.text(choice, "message", "content"), wire.text(choice, "message", "refusal")
  local finish = wire.text(choice, "finish_reason")
  if refusal or finish == "content_filter" then
    return { outcome = "refused", problem = refusal or "the service's content filter", finish = finish, usage = usage }
  end
  if not text then
    return { outcome = "invalid", problem = choice and "the reply holds no text" or "the reply holds no choice",
      usage = usage }
  end
  return { outcome = "answered", text = text, finish = finish, logprobs = logprobs_of(choice), usage = usage }
end

-- What the chunks of a stream add up to: the body of the same reply without streaming.
local function assemble(events)
  local parts, logprobs, out, ended, finish, refusal = {}, {}, {}, false, nil, nil
  for _, event in ipairs(events) do
    if event.data == "[DONE]" then
      ended = true
      break
    end
    local chunk = wire.decode(event.data)
    if type(chunk) ~= "table" then return nil, "the stream holds an event that is no JSON" end
    if wire.get(chunk, "error") ~= nil then return chunk end
    local choice = wire.get(chunk, "choices", 1)
    parts[#parts + 1] = wire.text(choice, "delta", "content")
    refusal = wire.text(choice, "delta", "refusal") and (refusal or "") .. choice.delta.refusal or refusal
    for _, entry in ipairs(wire.get(choice, "logprobs", "content") or {}) do logprobs[#logprobs + 1] = entry end
    finish = wire.text(choice, "finish_reason") or finish
    out.usage = wire.get(chunk, "usage") or out.usage
  end
  -- A clean end without its mark is how a proxy hides a server that died.
  if not ended or not finish then return nil, "the stream ended without its end mark" end
  out.choices = { { message = { content = table.concat(parts), refusal = refusal }, finish_reason = finish,
    logprobs = #logprobs > 0 and { content = logprobs } or nil } }
  return out
end

local function limits(headers)
  local out = {}
  for _, name in ipairs { "requests", "tokens" } do
    local remaining = tonumber(headers["x-ratelimit-remaining-" .. name])
    if remaining then
      out[name] = { remaining = remaining, limit = tonumber(headers["x-ratelimit-limit-" .. name]),
        reset = wire.duration(headers["x-ratelimit-reset-" .. name] or "") }
    end
  end
  return out
end

-- The account's organisation and project are no secrets and go as they are.
local function headers()
  local out = {}
  for name, variable in pairs { ["OpenAI-Organization"] = "OPENAI_ORG_ID", ["OpenAI-Project"] = "OPENAI_PROJECT_ID" } do
    local value = os.getenv(variable)
    if value and value ~= "" then out[#out + 1] = ("%s: %s"):format(name, value) end
  end
  return out
end

-- ------------------------------------------------------------------- batches

local BOUNDARY = "perilune-batch-file"

local function form(name, lines)
  local function field(of, value, extra)
    return ('--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'):format(BOUNDARY, of, extra or "", value)
  end
  return field("purpose", "batch")
    .. field("file", lines, ('; filename="%s.jsonl"\r\nContent-Type: application/jsonl'):format(name))
    .. ("--%s--\r\n"):format(BOUNDARY)
end

local function lines_of(text)
  local out = {}
  for line in text:gmatch "[^\r\n]+" do out[#out + 1] = (wire.decode(line)) end
  return out
end

local FINAL = { failed = true, completed = true, expired = true, cancelled = true }

local batches = { most = 50000, bytes = 190 << 20, overhead = 200 }

function batches.create(api, mark, items)
  local lines = {}
  for i, item in ipairs(items) do
    lines[i] = ('{"custom_id":"%s","method":"POST","url":"/v1%s","body":%s}'):format(item.key, item.path, item.body)
  end
  local file, message = api:ask("POST", "/files", { body = form(mark, table.concat(lines, "\n") .. "\n"),
    type = "multipart/form-data; boundary=" .. BOUNDARY })
  if not file then return nil, message, false end
  local made, problem, sent = api:ask("POST", "/batches", { again = false, body = base.json_encode {
    input_file_id = wire.text(wire.decode(file.body), "id"), endpoint = "/v1" .. items[1].path, completion_window = "24h",
    metadata = { perilune = mark } } })
  local id = made and wire.text(wire.decode(made.body), "id")
  if id then return id end
  -- A reply that got lost does not mean there is no batch: look before anything is handed in twice.
  if made or sent then id = batches.find(api, mark) end
  return id, problem or "the reply does not name the batch", sent or made ~= nil
end

function batches.find(api, mark)
  local after = ""
  for _ = 1, 20 do
    local page, message = api:json("/batches?limit=100" .. after)
    if not page then error(("%s: %s"):format(api.service.name, message), 0) end
    local last
    for _, row in ipairs(wire.get(page, "data") or {}) do
      last = row.id
      if wire.get(row, "metadata", "perilune") == mark then return row.id end
    end
    if not last or wire.get(page, "has_more") ~= true then return nil end
    after = "&after=" .. last
  end
  return nil
end

function batches.status(api, remote_id)
  local row, message = api:json("/batches/" .. remote_id)
  if not row then return nil, message end
  local state = wire.text(row, "status") or "?"
  local done = (wire.count(row, "request_counts", "completed") or 0) + (wire.count(row, "request_counts", "failed") or 0)
  local problem = wire.text(row, "errors", "data", 1, "message")
  return FINAL[state] or false, state, done, problem
end

function batches.results(api, remote_id)
  local row, message = api:json("/batches/" .. remote_id)
  if not row then return nil, message end
  local out = {}
  for _, name in ipairs { "output_file_id", "error_file_id" } do
    local file = wire.text(row, name)
    if file then
      local text, gone = api:text(("/files/%s/content"):format(file))
      if not text then return nil, gone end
      for _, line in ipairs(lines_of(text)) do
        local body = wire.get(line, "response", "body")
        local status = wire.count(line, "response", "status_code")
        if wire.text(line, "custom_id") and status then
          out[#out + 1] = { key = line.custom_id, status = status, body = base.json_encode(body or {}) }
        end
      end
    end
  end
  return out
end

return remote.provider {
  name = "openai", base = OFFICIAL, base_env = "OPENAI_BASE_URL", key_env = "OPENAI_API_KEY",
  key_header = "Authorization: Bearer ", can = { logprobs = true, seed = true, schema = true },
  address = function(url) return url:match "^https?://[^/]+$" and url .. "/v1" or url end,
  body = body, reply = reply, assemble = assemble, problem = problem, limits = limits, headers = headers,
  request_id = "x-request-id", batch = batches,
}
