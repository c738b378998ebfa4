-- Providers as translators: what they send for a call, what they make of recorded replies, of
-- errors in every shape, and of streams cut at every byte.
local T = require "tests.lua.harness"
local base = require("perilune.core").base
local pl = require "perilune"
local wire = require "perilune.ai.wire"

local function service(spec, more) return pl.ai(spec, more).provider end

local CALL = {
  messages = { { role = "system", content = "Be brief." }, { role = "user", content = "Hi \u{E9}" } },
  sample = 1, max_tokens = 9, about = "test",
}

local function sent(spec, call)
  local s = service(spec)
  local request = s:request(call or CALL)
  return base.json_decode(request.body), request, s
end

T.test("openai: only what was set is sent", function()
  local body, request = sent "openai:gpt-4o"
  T.eq(body, { model = "gpt-4o", max_completion_tokens = 9, messages = CALL.messages })
  T.eq(request.url, "https://api.openai.com/v1/chat/completions")
  body, request = sent "openai:m@http://127.0.0.1:8080?temperature=0&seed=3&body.top_k=40"
  T.eq(request.url, "http://127.0.0.1:8080/v1/chat/completions")
  -- the seed is a demonstration's business; a bare call sends none
  T.eq(body, { model = "m", max_tokens = 9, messages = CALL.messages, top_k = 40 })
  local s = service "openai:m@http://127.0.0.1:8080/v1/?temperature=0&seed=3&system=Rhyme"
  local call = s:demonstration({ prompt = "p", index = 2 }, { max_tokens = 5, seed = 1 })
  T.eq(base.json_decode(s:request(call).body), { model = "m", max_tokens = 5, temperature = 0, seed = 4,
    messages = { { role = "system", content = "Rhyme" }, { role = "user", content = "p" } } })
end)

T.test("anthropic and gemini: the same call in their words", function()
  local body, request, s = sent "anthropic:claude-x"
  T.eq(body, { model = "claude-x", max_tokens = 9, system = "Be brief.", messages = { CALL.messages[2] } })
  T.eq(request.url, "https://api.anthropic.com/v1/messages")
  T.eq(s:headers("id")[1], "anthropic-version: 2023-06-01")
  body, request = sent "gemini:gemini-x"
  T.eq(body, { systemInstruction = { parts = { { text = "Be brief." } } }, generationConfig = { maxOutputTokens = 9 },
    contents = { { role = "user", parts = { { text = "Hi \u{E9}" } } } } })
  T.eq(request.url, "https://generativelanguage.googleapis.com/v1beta/models/gemini-x:generateContent")
end)

T.test("the key of a call depends on all that is sent and on the sample, and on nothing else", function()
  local function key(spec, sample)
    local call = {}
    for k, v in pairs(CALL) do call[k] = v end
    call.sample = sample or 1
    return service(spec):request(call).key
  end
  local one = key "openai:m"
  T.eq(key "openai:m?concurrency=3&rpm=5&price_in=1&price_out=1&timeout=3", one)
  for _, other in ipairs { key "openai:n", key "openai:m?stream=true", key("openai:m", 2), key "openai:m?body.x=1",
    key "openai:m@http://127.0.0.1:1/v1" } do
    T.ok(other ~= one)
  end
  T.eq(service("openai:m?concurrency=3"):key(), service("openai:m"):key())
  T.ok(service("openai:m?temperature=0"):key() ~= service("openai:m"):key())
end)

T.test("specs that are wrong say what was wanted", function()
  for _, case in ipairs {
    { "openai:", "names a model" }, { "openai:m@ftp://x", "http:// or https://" }, { "openai:m?temprature=1", "temperature" },
    { "openai:m?concurrency=0", "at least 1" }, { "openai:m?stream=maybe", "boolean" }, { "openai:m?price_in=1", "go together" },
    { "opnai:m", 'did you mean "openai"' }, { "openai:m?template=alpaca_evl_2", "alpaca_eval_2" },
    { "openai:m?key=sk-123", "unknown option" }, { "anthropic:m?seed=3", "seed" }, { "gemini:m?batch=true", "batch" },
    { "openai:m?batch=true&stream=true", "stream" }, { "openai:m?body.n=4", "body.n" },
    { "openai:m?temperature=0&temperature=1", "temperature is given twice" }, { "oracle:1?seed=1&seed=1", "given twice" },
    { "openai:m?body.stream=true", "stream=" }, { "openai:m@http://me:secret@127.0.0.1/v1", "key_env" },
  } do
    T.raises(function() pl.ai(case[1]) end, case[2])
  end
  T.raises(function() pl.ai("openai:m?temperature=1", { temperature = 0 }) end, "given twice")
  local message = T.raises(function() pl.ai "openai:m@http://me:secret@127.0.0.1/v1" end)
  T.ok(not message:find("secret", 1, true), message)
end)

T.test("a table of the user's own joins what is there, and holds no limit of ours", function()
  local function config(extra)
    local s = service("gemini:m?temperature=0.5", { ["body.generationConfig"] = extra })
    return base.json_decode(s:request(s:demonstration({ prompt = "x" }, { max_tokens = 9 })).body).generationConfig
  end
  local thinking = { thinkingConfig = { thinkingBudget = 128 } }
  for _ = 1, 2 do
    T.eq(config(thinking), { temperature = 0.5, maxOutputTokens = 9, thinkingConfig = { thinkingBudget = 128 } })
  end
  T.eq(thinking, { thinkingConfig = { thinkingBudget = 128 } }, "the user's table stays as it was")
  T.eq(config { stopSequences = { "a", "b" } }, { temperature = 0.5, maxOutputTokens = 9, stopSequences = { "a", "b" } })
  for _, name in ipairs { "maxOutputTokens", "max_output_tokens", "candidateCount" } do
    T.raises(function() config { [name] = 4 } end, ("body.generationConfig.%s cannot be given"):format(name))
  end
  T.raises(function() pl.ai("gemini:m", { ["body.generation_config"] = { topK = 3 } }) end, "generationConfig here")
  T.raises(function() pl.ai("openai:m", { ["body.stream_options"] = { include_usage = false } }) end, "include_usage")
  local s = service("openai:m", { ["body.stop"] = { "x" } })
  T.eq(base.json_decode(s:request { messages = CALL.messages, stop = { "y", "z" } }.body).stop, { "x" })
end)

T.test("fields of the user's own: numbers and truth values as such; a larger limit is what it may cost", function()
  T.eq(sent "openai:m?body.cache=false&body.top_k=4&body.mode=x".cache, false)
  local body, request = sent "openai:m?body.max_completion_tokens=900"
  T.eq({ body.max_completion_tokens, request.max_tokens }, { 900, 900 })
end)

-- ------------------------------------------------------------------- replies

local REPLIES = {
  openai = {
    ok = [[{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-4o","choices":[{"index":0,"message":{"role":"assistant",
"content":"Output (a)","refusal":null},"logprobs":{"content":[{"token":"Output","logprob":-0.1,"bytes":[79],"top_logprobs":
[{"token":"Output","logprob":-0.1,"bytes":null},{"token":"I","logprob":-9999.0}]}]},"finish_reason":"stop"}],"usage":
{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":3}},"new_field":{}}]],
    refused = [[{"choices":[{"message":{"content":null,"refusal":"I can't."},"finish_reason":"stop"}],"usage":
{"prompt_tokens":1,"completion_tokens":2}}]],
    invalid = { [[{"choices":null}]], [[{"choices":[]}]], [[{"choices":[{"message":{"content":null},"finish_reason":"stop"}]}]],
      [[{}]], [[{"choices":{"x":1}}]], [[{malformed json: <<<]], "", "null", "[1,2]" },
    error200 = [[{"error":{"message":"The server is overloaded","type":"server_error","param":null,"code":"server_error"}}]],
  },
  anthropic = {
    ok = [[{"id":"msg_1","type":"message","role":"assistant","model":"claude","content":[{"type":"thinking","thinking":"hm"},
{"type":"text","text":"Output "},{"type":"text","text":"(a)"}],"stop_reason":"end_turn","stop_sequence":null,"usage":
{"input_tokens":12,"cache_creation_input_tokens":4,"cache_read_input_tokens":3,"output_tokens":10}}]],
    refused = [[{"type":"message","content":[],"stop_reason":"refusal","usage":{"input_tokens":1,"output_tokens":1}}]],
    invalid = { [[{"type":"message","content":null}]], [[{}]], "<html>" },
    error200 = [[{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}]],
  },
  gemini = {
    ok = [[{"candidates":[{"content":{"parts":[{"text":"plan","thought":true},{"text":"Output "},{"text":"(a)"}],"role":
"model"},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":19,"candidatesTokenCount":6,
"thoughtsTokenCount":4,"cachedContentTokenCount":3,"totalTokenCount":29},"modelVersion":"g"}]],
    refused = [[{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":5}}]],
    invalid = { [[{"candidates":[]}]], [[{"candidates":null}]], [[{}]] },
    error200 = [[{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}]],
  },
}

for name, replies in pairs(REPLIES) do
  T.test(name .. ": recorded replies", function()
    local s = service(name .. ":m")
    local request = s:request(CALL)
    local answer = s:read(replies.ok, request)
    T.eq(answer.outcome, "answered")
    T.eq(answer.text, "Output (a)")
    T.eq(answer.finish, "stop")
    T.eq(s:usage(answer, request), { prompt_tokens = 19, completion_tokens = 10, cached_tokens = 3, estimated = false })
    answer = s:read(replies.refused, request)
    T.eq(answer.outcome, "refused")
    T.ok(answer.problem)
    for _, text in ipairs(replies.invalid) do
      answer = s:read(text, request)
      T.eq(answer.outcome, "invalid", text)
      T.ok(s:usage(answer, request).estimated)
    end
    local none, problem = s:read(replies.error200, request)
    T.eq(none, nil)
    T.ok(problem.message:lower():find "overloaded")
  end)
end

T.test("fields of the wrong kind make an invalid answer or an estimate, never an error", function()
  for name, texts in pairs {
    openai = { [[{"choices":[{"message":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":0,"top_logprobs":5}]}}]}]],
      [[{"choices":[{"message":{"content":"a"},"logprobs":{"content":7}}]}]], [[{"choices":5}]] },
    anthropic = { [[{"content":[5,{"type":"text","text":4}],"usage":3}]] },
    gemini = { [[{"candidates":[{"content":{"parts":5}}]}]], [[{"candidates":[{"finishReason":{}}]}]] },
  } do
    local s = service(name .. ":m")
    for _, text in ipairs(texts) do
      local answer = s:read(text, s:request(CALL))
      T.ok(answer and answer.outcome, text)
    end
  end
  local s = service "openai:m?price_in=1&price_out=1"
  local request = s:request(CALL)
  local function usage(tokens)
    local text = ([[{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":%s,"completion_tokens":%s}}]]):format(tokens, tokens)
    return s:usage(s:read(text, request), request)
  end
  T.eq(math.type(usage("19.0").prompt_tokens), "integer")
  T.eq(usage("19.5").prompt_tokens, 20)
  for _, odd in ipairs { "-1", "999999999999999", "1e300", '"7"', "null" } do T.ok(usage(odd).estimated, odd) end
end)

T.test("what a model thought is paid for, also where it said nothing else", function()
  local s = service "gemini:gemini-2.5-pro?max_tokens=128"
  local request = s:request(s:demonstration({ prompt = "Why?" }, {}))
  local function booked(finish, text, usage)
    local part = text and ('"parts":[{"text":"%s"}]'):format(text) or '"role":"model"'
    local answer = s:read(('{"candidates":[{"content":{%s},"finishReason":"%s"}]%s}'):format(part, finish, usage or ""),
      request)
    local u = s:usage(answer, request)
    return { u.completion_tokens, u.estimated }
  end
  T.eq(booked("MAX_TOKENS", nil, ',"usageMetadata":{"promptTokenCount":7,"thoughtsTokenCount":127}'), { 127, false })
  T.eq(booked("STOP", "ab", ',"usageMetadata":{"promptTokenCount":7,"candidatesTokenCount":2}'), { 2, false })
  T.eq(booked("MAX_TOKENS", nil), { 128, true })
  T.eq(booked("MAX_TOKENS", "cut off"), { 128, true })
  T.eq(booked("STOP", " "), { 128, true })
  T.eq(booked("STOP", "whole"), { 2, true })
end)

T.test("openai: log-probabilities", function()
  local s = service "openai:m"
  T.eq(s:read(REPLIES.openai.ok, s:request(CALL)).logprobs, { { token = "Output", logprob = -0.1,
    top = { { token = "Output", logprob = -0.1 }, { token = "I", logprob = -9999.0 } } } })
end)

T.test("errors in every shape give their message and code", function()
  for _, case in ipairs {
    { "openai", [[{"error":{"message":"no","type":"invalid_request_error","param":"m","code":null}}]], "no", "invalid_request_error" },
    { "openai", [[{"error":{"message":"no","type":"x","code":"insufficient_quota"}}]], "no", "insufficient_quota" },
    { "openai", [[{"object":"error","message":"no","type":"BadRequestError","code":400}]], "no", "BadRequestError" },
    { "openai", [[{"error":"no"}]], "no" }, { "openai", [[{"detail":"Not Found"}]], "Not Found" },
    { "openai", "<html><body>502 Bad Gateway</body></html>", "502 Bad Gateway" }, { "openai", "", "an empty reply" },
    { "anthropic", REPLIES.anthropic.error200, "Overloaded", "overloaded_error" },
    { "gemini", REPLIES.gemini.error200, "The model is overloaded.", "UNAVAILABLE" },
  } do
    local problem = service(case[1] .. ":m"):problem(500, case[2])
    T.ok(problem.message:find(case[3], 1, true), problem.message)
    T.eq(problem.code, case[4])
  end
end)

-- ------------------------------------------------------------------- streams

local function events(list, named)
  local out = {}
  for i, data in ipairs(list) do
    local kind = named and data:match '"type":"([%a_]+)"'
    out[i] = (kind and "event: " .. kind .. "\r\n" or "") .. "data: " .. data .. "\r\n\r\n"
  end
  return ": ping\r\n\r\n" .. table.concat(out)
end

local STREAMS = {
  openai = events { [[{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}]],
    [[{"choices":[{"index":0,"delta":{"content":"Caf\u00e9 "},"finish_reason":null}],"obfuscation":"xx"}]],
    [[{"choices":[{"index":0,"delta":{"content":"é"},"finish_reason":"stop"}]}]],
    [[{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}]], "[DONE]" },
  anthropic = events({ [[{"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}]],
    [[{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}]], [[{"type":"ping"}]],
    [[{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Café "}}]],
    [[{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"é"}}]],
    [[{"type":"content_block_stop","index":0}]],
    [[{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":2}}]],
    [[{"type":"message_stop"}]] }, true),
  gemini = events { [[{"candidates":[{"content":{"parts":[{"text":"Café "}],"role":"model"}}]}]],
    [[{"candidates":[{"content":{"parts":[{"text":"é"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":7,
"candidatesTokenCount":2}}]] },
}
STREAMS.gemini = STREAMS.gemini:gsub(",\n\"cand", ",\"cand")

for name, text in pairs(STREAMS) do
  T.test(name .. ": a stream is whole or no answer, wherever it is cut", function()
    local s = service(name .. ":m?stream=true")
    local request = s:request(CALL)
    T.ok(request.stream)
    local answer = s:read(text, request)
    T.eq(answer.outcome, "answered")
    T.eq(answer.text, "Café é")
    T.eq(s:usage(answer, request), { prompt_tokens = 7, completion_tokens = 2, cached_tokens = 0, estimated = false })
    for n = 0, #text - 1 do
      local cut, problem = s:read(text:sub(1, n), request)
      if cut then
        -- only the mark of the end itself may lack its last blank line
        T.ok(n >= #text - 4, ("taken as whole after %d of %d bytes"):format(n, #text))
        T.eq(cut.text, "Café é")
      else
        T.ok(problem.cut, n)
      end
    end
  end)
end

T.test("an error event in a stream is an error, with the code in it", function()
  local s = service "openai:m?stream=true"
  local text = events { [[{"choices":[{"delta":{"content":"Ca"}}]}]], [[{"error":{"message":"boom","code":"insufficient_quota"}}]] }
  local answer, problem = s:read(text, s:request(CALL))
  T.eq(answer, nil)
  T.eq(problem.code, "insufficient_quota")
  T.ok(problem.cut, "what was written before it is paid for")
  text = events { [[{"error":{"message":"overloaded"}}]] }
  T.ok(not select(2, s:read(text, s:request(CALL))).cut)
end)

T.test("an account without money and a key that is not valid are no faults of a call", function()
  local function verdict(provider, status, text)
    local s = service(provider .. ":m")
    return wire.verdict(status, {}, s:problem(status, text))
  end
  T.eq(verdict("anthropic", 400, [[{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the API."}}]]), "stop")
  T.eq(verdict("gemini", 400, [[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]]), "stop")
  T.eq(verdict("openai", 400, [[{"error":{"message":"This model's maximum context length is 4097 tokens."}}]]), "failed")
end)

T.done()
