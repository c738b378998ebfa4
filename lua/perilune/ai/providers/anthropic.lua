--- anthropic:MODEL: the messages interface of Anthropic, and of servers that speak it.
--- Key: ANTHROPIC_API_KEY. Address: ANTHROPIC_BASE_URL. It has no seed, no
--- log-probabilities and one answer a request.
local base = require("perilune.core").base
local remote = require "perilune.ai.remote"
local wire = require "perilune.ai.wire"

-- The service requires a limit; this one serves where neither user nor stage gives any.
local MAX_TOKENS = 1024

local function body(service, call)
  local system, messages = {}, {}
  for _, message in ipairs(call.messages) do
    if message.role == "system" then
      system[#system + 1] = message.content
    else
      messages[#messages + 1] = { role = message.role, content = message.content }
    end
  end
  local out = { model = service.model, messages = base.json_array(messages), max_tokens = call.max_tokens or MAX_TOKENS,
    temperature = call.temperature, top_p = call.top_p, stop_sequences = call.stop }
  if #system > 0 then out.system = table.concat(system, "\n\n") end
  if call.schema then out.output_config = { format = { type = "json_schema", schema = call.schema } } end
  if service.options.stream then out.stream = true end
  return "/v1/messages", out
end

local function problem(body)
  local e = wire.get(body, "error")
  if type(e) ~= "table" then return { message = type(e) == "string" and e or nil } end
  local kind = wire.text(e, "type")
  return { message = wire.text(e, "message"), code = kind, status = kind == "overloaded_error" and 529 or nil }
end

local FINISH = { end_turn = "stop", stop_sequence = "stop", max_tokens = "length",
  model_context_window_exceeded = "length", tool_use = "tool_calls" }

local function usage_of(body)
  local cached = wire.count(body, "usage", "cache_read_input_tokens") or 0
  local made = wire.count(body, "usage", "cache_creation_input_tokens") or 0
  local fresh = wire.count(body, "usage", "input_tokens")
  return { prompt_tokens = fresh and fresh + cached + made, cached_tokens = cached,
    completion_tokens = wire.count(body, "usage", "output_tokens") }
end

local function reply(body)
  if wire.get(body, "type") == "error" or wire.get(body, "error") ~= nil then return nil, problem(body) end
  local usage, reason = usage_of(body), wire.text(body, "stop_reason")
  if reason == "refusal" then
    return { outcome = "refused", problem = "the model refused", finish = reason, usage = usage }
  end
  local content = wire.get(body, "content")
  if type(content) ~= "table" then
    return { outcome = "invalid", problem = "the reply holds no content", usage = usage }
  end
  local parts = {}
  for _, block in ipairs(content) do
    if wire.get(block, "type") == "text" then parts[#parts + 1] = wire.text(block, "text") end
  end
  return { outcome = "answered", text = table.concat(parts), finish = FINISH[reason] or reason, usage = usage }
end

local function merge(into, from)
  for k, v in pairs(type(from) == "table" and from or {}) do into[k] = v end
end

local function assemble(events)
  local blocks, usage, reason, ended = {}, {}, nil, false
  for _, event in ipairs(events) do
    local data = wire.decode(event.data)
    if type(data) ~= "table" then return nil, "the stream holds an event that is no JSON" end
    local kind = wire.text(data, "type")
    if kind == "error" then return data end
    if kind == "message_start" then
      merge(usage, wire.get(data, "message", "usage"))
    elseif kind == "content_block_start" then
      if wire.get(data, "content_block", "type") == "text" then
        blocks[#blocks + 1] = wire.text(data, "content_block", "text")
      end
    elseif kind == "content_block_delta" then
      blocks[#blocks + 1] = wire.text(data, "delta", "text")
    elseif kind == "message_delta" then
      merge(usage, wire.get(data, "usage"))          -- cumulative: the last one counts
      reason = wire.text(data, "delta", "stop_reason") or reason
    elseif kind == "message_stop" then
      ended = true
    end
  end
  if not ended or not reason then return nil, "the stream ended without its end mark" end
  return { content = { { type = "text", text = table.concat(blocks) } }, stop_reason = reason, usage = usage }
end

local function limits(headers)
  local out = {}
  local names = { requests = { "requests" }, tokens = { "tokens", "input-tokens", "output-tokens" } }
  for name, list in pairs(names) do
    for _, kind in ipairs(list) do
      local stem = "anthropic-ratelimit-" .. kind
      local remaining = tonumber(headers[stem .. "-remaining"])
      local at = wire.rfc3339(headers[stem .. "-reset"] or "")
      -- of several counts of tokens the scarcest binds
      if remaining and at and (not out[name] or remaining < out[name].remaining) then
        out[name] = { remaining = remaining, limit = tonumber(headers[stem .. "-limit"]),
          reset = math.max(0, at - base.walltime()) }
      end
    end
  end
  return out
end

-- ------------------------------------------------------------------- batches

local PATH = "/v1/messages/batches"

local batches = { most = 100000, bytes = 240 << 20, overhead = 100 }

-- Two clocks may differ by so many seconds.
local CLOCKS = 600

function batches.create(api, _, items)
  local since, requests = base.walltime(), {}
  for i, item in ipairs(items) do requests[i] = ('{"custom_id":"%s","params":%s}'):format(item.key, item.body) end
  local made, message, sent = api:ask("POST", PATH, { again = false,
    body = ('{"requests":[%s]}'):format(table.concat(requests, ",")) })
  local id = made and wire.text(wire.decode(made.body), "id")
  if id then return id end
  if made or sent then id = batches.find(api, nil, since, #items) end
  return id, message or "the reply does not name the batch", sent or made ~= nil
end

-- Batches bear no name of ours: one of the same size, made since then and not known to the ledger, is taken for it.
-- Were it another's, none of its results would bear our calls' names, and all would be asked again.
function batches.find(api, _, since, n)
  local page, message = api:json(PATH .. "?limit=100")
  if not page then error(("%s: %s"):format(api.service.name, message), 0) end
  for _, row in ipairs(wire.get(page, "data") or {}) do
    local sum = 0
    for _, count in pairs(wire.get(row, "request_counts") or {}) do sum = sum + (tonumber(count) or 0) end
    local made = wire.rfc3339(wire.text(row, "created_at") or "")
    if sum == n and made and made >= since - CLOCKS and not api:knows(row.id) then return row.id end
  end
  return nil
end

function batches.status(api, remote_id)
  local row, message = api:json(("%s/%s"):format(PATH, remote_id))
  if not row then return nil, message end
  local state, counts = wire.text(row, "processing_status") or "?", wire.get(row, "request_counts") or {}
  return state == "ended", state, (counts.succeeded or 0) + (counts.errored or 0) + (counts.expired or 0)
end

function batches.results(api, remote_id)
  local text, message = api:text(("%s/%s/results"):format(PATH, remote_id))
  if not text then return nil, message end
  local out = {}
  for line in text:gmatch "[^\r\n]+" do
    local row = wire.decode(line)
    local kind = wire.text(row, "result", "type")
    if kind == "succeeded" then
      out[#out + 1] = { key = row.custom_id, status = 200, body = base.json_encode(row.result.message) }
    elseif kind == "errored" then
      local refused = wire.text(row, "result", "error", "error", "type") == "invalid_request_error"
      out[#out + 1] = { key = row.custom_id, status = refused and 400 or 500, body = base.json_encode(row.result.error) }
    end
  end
  return out
end

return remote.provider {
  name = "anthropic", base = "https://api.anthropic.com", base_env = "ANTHROPIC_BASE_URL",
  key_env = "ANTHROPIC_API_KEY", can = { logprobs = false, seed = false, schema = true },
  options = {
    version = { "2023-06-01", sent = true, doc = "of the interface: the header anthropic-version" },
    auth = { "x-api-key", choices = { "bearer", "x-api-key" }, doc = "the header that carries the key" },
  },
  key_header = function(o) return o.auth == "bearer" and "Authorization: Bearer " or "x-api-key: " end,
  address = function(url) return (url:gsub("/v1$", "")) end,
  headers = function(o) return { "anthropic-version: " .. o.version } end,
  body = body, reply = reply, assemble = assemble, problem = problem, limits = limits,
  request_id = "request-id", batch = batches,
}
