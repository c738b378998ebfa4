-- What all services share: lenient reading, waits in every form, which failures may be tried
-- again, the gate before a service, prices.
local T = require "tests.lua.harness"
local base = require("perilune.core").base
local limits = require "perilune.ai.limits"
local prices = require "perilune.ai.prices"
local wire = require "perilune.ai.wire"

T.test("replies are read leniently, but only as JSON", function()
  T.eq(wire.decode '{"a":"\\ud83d\\ude00"}', { a = "\u{1F600}" })
  T.eq(wire.decode '{"a":"x\\ud800y"}', { a = "x\u{FFFD}y" })
  T.eq(wire.decode '{"a":"x\\udc00"}', { a = "x\u{FFFD}" })
  T.eq(wire.decode '{"a":"x\\u0000y"}', { a = "x\u{FFFD}y" })
  T.eq(wire.decode '{"a":"\\\\ud800"}', { a = "\\ud800" })
  T.eq(wire.decode '{"a":"\\\\\\ud800"}', { a = "\\\u{FFFD}" })
  T.eq(wire.decode '{"a":"\\ud800\\u0041"}', { a = "\u{FFFD}A" })
  T.eq(wire.decode "{\"a\":\"x\xff\"}", { a = "x\u{FFFD}" })
  for _, bad in ipairs { "", "<html>", '{"a":1}x', "{malformed json: <<<", ("["):rep(100000) } do
    local value, message = wire.decode(bad)
    T.eq(value, nil)
    T.ok(type(message) == "string" and #message < 400)
  end
end)

T.test("fields are found or nil, whatever stands in their way", function()
  local body = wire.decode '{"choices":null,"usage":{"n":-1,"m":3},"e":{"message":5}}'
  T.eq(wire.get(body, "choices", 1, "message"), nil)
  T.eq(wire.text(body, "e", "message"), nil)
  T.eq(wire.count(body, "usage", "n"), nil)
  T.eq(wire.count(body, "usage", "m"), 3)
  T.eq(wire.get("text", "choices"), nil)
end)

T.test("dates and durations", function()
  T.eq(wire.http_date "Thu, 01 Jan 1970 00:00:10 GMT", 10)
  T.eq(wire.http_date "Wed, 21 Oct 2015 07:28:00 GMT", 1445412480)
  T.eq(wire.http_date "yesterday", nil)
  T.eq(wire.rfc3339 "1970-01-01T00:01:00Z", 60)
  T.eq(wire.rfc3339 "2015-10-21T09:28:00.5+02:00", 1445412480.5)
  T.eq(wire.rfc3339 "2015-10-21", nil)
  for text, seconds in pairs { ["6m0s"] = 360, ["12ms"] = 0.012, ["1s"] = 1, ["1h2m3.5s"] = 3723.5, ["0s"] = 0 } do
    T.near(wire.duration(text), seconds, 1e-9, text)
  end
  for _, text in ipairs { "", "soon", "5", "5x" } do T.eq(wire.duration(text), nil, text) end
end)

T.test("retry-after in all its forms, clamped", function()
  local function wait(value, name) return wire.retry_after({ [name or "retry-after"] = value }, 300) end
  T.eq(wait "2", 2)
  T.eq(wait "0.25", 0.25)
  T.eq(wait("150", "retry-after-ms"), 0.15)
  T.eq(wait "1000000000", 300)
  for _, text in ipairs { "-1", "nan", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT" } do T.eq(wait(text), nil, text) end
  local soon = wait(os.date("!%a, %d %b %Y %H:%M:%S GMT", math.floor(base.walltime()) + 20))
  T.ok(soon > 15 and soon <= 20, soon)
  T.eq(wait "Fri, 31 Dec 9999 23:59:59 GMT", 300)
end)

T.test("which failures may be tried again", function()
  for _, case in ipairs {
    { 429, {}, {}, "again" }, { 408, {}, {}, "again" }, { 409, {}, {}, "again" }, { 500, {}, {}, "again" },
    { 503, {}, { code = "server_is_overloaded" }, "again" }, { 529, {}, { code = "overloaded_error" }, "again" },
    { 400, {}, {}, "failed" }, { 413, {}, {}, "failed" }, { 422, {}, {}, "failed" },
    { 401, {}, {}, "stop" }, { 403, {}, {}, "stop" }, { 404, {}, {}, "stop" }, { 302, {}, {}, "stop" },
    { 429, {}, { code = "insufficient_quota" }, "stop" }, { 402, {}, { code = "billing_error" }, "stop" },
    { 429, {}, { code = "project_spend_limit_exceeded" }, "stop" }, { 403, {}, { code = "credit_balance_exhausted" }, "stop" },
    { 429, {}, { code = "organization_usage_limit_exceeded" }, "stop" },
    { 400, { ["x-should-retry"] = "true" }, {}, "again" }, { 500, { ["x-should-retry"] = "false" }, {}, "failed" },
    { 429, { ["x-should-retry"] = "false" }, {}, "stop" }, { 429, { ["x-should-retry"] = "true" }, { code = "insufficient_quota" }, "stop" },
  } do
    T.eq(wire.verdict(case[1], case[2], case[3]), case[4], ("%d %s"):format(case[1], case[3].code or ""))
  end
end)

T.test("a message names service, status, request and what to try, and stays short", function()
  local text = wire.message("openai:gpt-4o", 401, ("x"):rep(5000) .. "\n", "req_1")
  T.ok(text:find("openai:gpt-4o: status 401:", 1, true) and text:find("req_1", 1, true) and text:find("variable", 1, true))
  T.ok(#text < 500)
  T.ok(wire.message("a", 302, nil):find("redirects", 1, true))
end)

T.test("the gate: window, pauses, rates", function()
  local gate = limits.gate { concurrency = 8 }
  T.eq(gate:wait(10, 7, 0), 0)
  T.eq(gate:wait(10, 8, 0), math.huge)
  gate:refused(2, 0)
  T.eq(gate:wait(10, 0, 0.5), 1.5)
  T.eq(gate:wait(10, 4, 3), math.huge)          -- the window is halved, once for the burst
  gate:refused(nil, 0.1)
  T.eq(gate:wait(10, 3, 3), 0)
  for _ = 1, 100 do gate:well() end
  T.eq(gate:wait(10, 7, 3), 0)
  local slow = limits.gate { concurrency = 8, rpm = 60 }
  for k = 1, 2 do
    T.eq(slow:wait(1, 0, 0), 0, k)
    slow:sent(1)
  end
  T.near(slow:wait(1, 0, 0), 1, 1e-9)
  T.near(slow:wait(1, 0, 0.75), 0.25, 1e-9)
  T.eq(slow:wait(1, 0, 1), 0)
  local told = limits.gate { concurrency = 8 }
  told:learn({ requests = { remaining = 2, reset = 6 }, tokens = { remaining = 50, reset = 3 } }, 0, 0)
  T.eq(told:wait(40, 1, 0), 0)
  told:sent(40)
  T.eq(told:wait(40, 1, 0), 3)                  -- ten tokens are left for 3 s
  told:sent(1)
  T.eq(told:wait(1, 0, 1), 5)                   -- no request is left for 6 s
  T.eq(told:wait(1e9, 0, 7), 0)
end)

T.test("prices: known, dated names, unknown", function()
  T.eq(prices.of("gpt-4o-mini-2024-07-18").input, prices.of("gpt-4o-mini").input)
  T.eq(prices.of("gpt-4-0314").output, 60)
  -- dated ones that cost more than their name does today
  for model, p in pairs { ["gpt-4o-2024-05-13"] = { 5, 15 }, ["gpt-4o-2024-08-06"] = { 2.5, 10 },
    ["gpt-3.5-turbo-0613"] = { 1.5, 2 }, ["gpt-3.5-turbo-0301"] = { 1.5, 2 }, ["gpt-3.5-turbo-1106"] = { 1, 2 },
    ["gpt-3.5-turbo-0125"] = { 0.5, 1.5 }, ["gpt-3.5-turbo-16k"] = { 3, 4 }, ["gpt-3.5-turbo-16k-0613"] = { 3, 4 } } do
    local found = prices.of(model)
    T.near({ found.input, found.output }, p, 1e-12, model)
  end
  T.eq(prices.of("claude-3-haiku-20240307").input, 0.25)
  T.eq(prices.of "somebody/model", nil)
  T.near(prices.cost(prices.of "gpt-4", 1000, 100), 0.036, 1e-12)
  T.near(prices.cost(prices.of "gpt-4o", 1000, 0, { cached = 1000 }), 0.00125, 1e-12)
  T.near(prices.cost(prices.of "gpt-4", 1000, 100, { batch = true }), 0.018, 1e-12)
  T.eq(prices.cost(nil, 1, 1), nil)
end)

T.done()
