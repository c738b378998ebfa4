--- gemini:MODEL: generateContent of Google's Gemini. Key: GEMINI_API_KEY (sent in a
--- header, never in the address). Address: GEMINI_BASE_URL.
local base = require("perilune.core").base
local remote = require "perilune.ai.remote"
local wire = require "perilune.ai.wire"

local function body(service, call)
  local system, contents = {}, {}
  for _, message in ipairs(call.messages) do
    if message.role == "system" then
      system[#system + 1] = { text = message.content }
    else
      contents[#contents + 1] = { role = message.role == "assistant" and "model" or "user",
        parts = base.json_array { { text = message.content } } }
    end
  end
  local config = { temperature = call.temperature, topP = call.top_p, maxOutputTokens = call.max_tokens,
    seed = call.seed, stopSequences = call.stop }
  if call.top_logprobs then config.responseLogprobs, config.logprobs = true, call.top_logprobs end
  if call.schema then config.responseMimeType, config.responseJsonSchema = "application/json", call.schema end
  local out = { contents = base.json_array(contents) }
  if next(config) then out.generationConfig = config end
  if #system > 0 then out.systemInstruction = { parts = base.json_array(system) } end
  local verb = service.options.stream and ":streamGenerateContent?alt=sse" or ":generateContent"
  return "/models/" .. service.model .. verb, out
end

local function problem(body)
  local e = wire.get(body, "error")
  if type(e) ~= "table" then return { message = type(e) == "string" and e or nil } end
  return { message = wire.text(e, "message"), code = wire.text(e, "status"), status = wire.count(e, "code") }
end

local FINISH = { STOP = "stop", MAX_TOKENS = "length" }
local REFUSED = { SAFETY = true, RECITATION = true, BLOCKLIST = true, PROHIBITED_CONTENT = true, SPII = true }

local function usage_of(body)
  local out = wire.count(body, "usageMetadata", "candidatesTokenCount")
  -- billed as output; a reply that was cut while it thought names nothing else
  local thought = wire.count(body, "usageMetadata", "thoughtsTokenCount")
  return { prompt_tokens = wire.count(body, "usageMetadata", "promptTokenCount"),
    completion_tokens = (out or thought) and (out or 0) + (thought or 0),
    cached_tokens = wire.count(body, "usageMetadata", "cachedContentTokenCount") }
end

local function top_of(step)
  local top = {}
  for _, other in ipairs(wire.get(step, "candidates") or {}) do
    local text, logprob = wire.text(other, "token"), wire.get(other, "logProbability")
    if text and type(logprob) == "number" then top[#top + 1] = { token = text, logprob = logprob } end
  end
  return top
end

local function logprobs_of(candidate)
  local chosen, top = wire.get(candidate, "logprobsResult", "chosenCandidates"),
    wire.get(candidate, "logprobsResult", "topCandidates")
  if type(chosen) ~= "table" then return nil end
  local out = {}
  for i, entry in ipairs(chosen) do
    local text, logprob = wire.text(entry, "token"), wire.get(entry, "logProbability")
    if not text or type(logprob) ~= "number" then return nil end
    out[i] = { token = text, logprob = logprob, top = top_of(wire.get(top, i)) }
  end
  return out
end

local function reply(body)
  if wire.get(body, "error") ~= nil then return nil, problem(body) end
  local usage, candidate = usage_of(body), wire.get(body, "candidates", 1)
  local blocked = wire.text(body, "promptFeedback", "blockReason")
  local reason = wire.text(candidate, "finishReason")
  if blocked or REFUSED[reason] then
    return { outcome = "refused", problem = "blocked: " .. (blocked or reason), finish = reason, usage = usage }
  end
  local parts = {}
  for _, part in ipairs(wire.get(candidate, "content", "parts") or {}) do
    if wire.get(part, "thought") ~= true then parts[#parts + 1] = wire.text(part, "text") end
  end
  if not candidate or #parts == 0 and not reason then
    return { outcome = "invalid", problem = "the reply holds no text", usage = usage }
  end
  return { outcome = "answered", text = table.concat(parts), finish = FINISH[reason] or reason,
    logprobs = logprobs_of(candidate), usage = usage }
end

-- Each event is a reply of its own with the next piece of text; the last tells why it ended.
local function assemble(events)
  local parts, out, reason = {}, {}, nil
  for _, event in ipairs(events) do
    local chunk = wire.decode(event.data)
    if type(chunk) ~= "table" then return nil, "the stream holds an event that is no JSON" end
    if wire.get(chunk, "error") ~= nil or wire.get(chunk, "promptFeedback", "blockReason") then return chunk end
    local candidate = wire.get(chunk, "candidates", 1)
    for _, part in ipairs(wire.get(candidate, "content", "parts") or {}) do parts[#parts + 1] = part end
    reason = wire.text(candidate, "finishReason") or reason
    out.usageMetadata = wire.get(chunk, "usageMetadata") or out.usageMetadata
  end
  if not reason then return nil, "the stream ended without its end mark" end
  out.candidates = { { content = { parts = parts }, finishReason = reason } }
  return out
end

return remote.provider {
  name = "gemini", base = "https://generativelanguage.googleapis.com/v1beta", base_env = "GEMINI_BASE_URL",
  key_env = "GEMINI_API_KEY", key_header = "x-goog-api-key: ", can = { logprobs = true, seed = true, schema = true },
  address = function(url) return url:match "^https?://[^/]+$" and url .. "/v1beta" or url end,
  body = body, reply = reply, assemble = assemble, problem = problem, limits = function() return {} end,
  request_id = "x-request-id",
}
