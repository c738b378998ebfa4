--- core.net from Lua: the client against tests/net/rawserver.c, which breaks connections on request,
--- the parser of server-sent events, keys and the redactor.
local T = require "tests.lua.harness"
local core = require "perilune.core"
local net, base = core.net, core.base

local tests = os.getenv "PL_TESTS" or "build/tests"
local bin = os.getenv "PL_BIN" or "./perilune"
local server = base.exists(tests .. "/rawserver") and io.popen("exec '" .. tests .. "/rawserver'") or nil
local root = server and "http://127.0.0.1:" .. server:read("l"):match "^port (%d+)$"

local function need_server()
  return root or T.skip("no " .. tests .. "/rawserver; make tests builds it")
end

---One request to its end: the result, the events before it.
local function ask(client, path, o)
  local request = { id = 1, url = path:find "^/" and root .. path or path, idle_s = 5, total_s = 5 }
  for k, v in pairs(o or {}) do
    request[k] = v
  end
  client:send(request)
  local events = {}
  local stop = base.now() + 10
  while base.now() < stop do
    client:poll(1)
    local r = client:next()
    while r do
      T.eq(r.id, request.id)
      if r.sent ~= nil then
        return r, events
      end
      events[#events + 1] = r
      r = client:next()
    end
  end
  error("no result of " .. path .. " within 10 s")
end

---How many requests for that path the server has read.
local function count(client, path)
  return base.json_decode(ask(client, "/count").body)[path] or 0
end

---Runs Lua code in another process with these variables; returns what it prints.
local function other_process(env, code)
  local file = T.tmpdir() .. "/other.lua"
  T.ok(base.write_file(file, "local core = require 'perilune.core' local net, base = core.net, core.base\n" ..
    "local root = '" .. root .. "'\n" .. code))
  local p = T.ok(io.popen(("env %s '%s' '%s' 2>&1"):format(env, bin, file)))
  local text = p:read "a"
  p:close()
  return text
end

T.test("a request and its reply", function()
  need_server()
  local c <close> = net.client()
  local body = "line\r\n\0\xff"
  local r = ask(c, "/echo?a=b", { id = 7, body = body, headers = { "Content-Type: application/json", "X-Own: 1" } })
  T.eq(r.status, 200)
  T.eq(r.failure, nil)
  T.eq(r.message, nil)
  T.eq(r.sent, true)
  T.eq(r.headers["content-type"], "text/plain")
  T.ok(r.seconds > 0 and r.first_s > 0 and r.seconds < 5)
  local head, got = r.body:match "^(.-\r\n)\r\n(.*)$"
  T.eq(got, body)
  T.ok(head:find "^POST /echo%?a=b HTTP/1.1\r\n", head)
  T.ok(head:find "\r\nX%-Own: 1\r\n" and head:find "\r\nContent%-Type: application/json\r\n", head)
  T.ok(not head:find "Expect:" and not head:find "Cookie", head)
end)

T.test("methods", function()
  need_server()
  local c <close> = net.client()
  for _, case in ipairs {
    { nil, nil, "GET", "" }, { "GET", nil, "GET", "" }, { "POST", nil, "POST", "" }, { "DELETE", nil, "DELETE", "" },
    { "PUT", "x", "PUT", "x" }, { "POST", "", "POST", "" }, { nil, "y", "POST", "y" }, { "GET", nil, "GET", "" },
  } do
    local r = ask(c, "/echo", { method = case[1], body = case[2] })
    local head, body = r.body:match "^(.-\r\n)\r\n(.*)$"
    T.eq(head:match "^%u+", case[3])
    T.eq(body, case[4])
    T.ok(not head:find "Content%-Type", "a content type nobody gave: " .. head)
  end
  local r = ask(c, "/ok", { method = "HEAD" })
  T.eq({ r.status, r.body, r.failure }, { 200, "", nil })
  T.eq(ask(c, "/ok", { method = "get" }).failure, "refused")
end)

T.test("headers of a reply", function()
  need_server()
  local c <close> = net.client()
  local h = ask(c, "/headers").headers
  T.eq(h, { ["x-request-id"] = "abc", ["x-twice"] = "1, 2", ["x-empty"] = "", ["content-length"] = "2" })
  local r = ask(c, "/early-hints")
  T.eq({ r.status, r.headers["x-hint"], r.body }, { 200, nil, '{"ok":true}' })
end)

T.test("any status is a result, redirects too", function()
  need_server()
  local c <close> = net.client()
  for _, code in ipairs { 400, 401, 404, 408, 429, 500, 503, 529 } do
    local r = ask(c, "/status?code=" .. code)
    T.eq({ r.status, r.failure, r.headers["retry-after"] }, { code, nil, "3" })
  end
  local r = ask(c, "/redirect-file")
  T.eq({ r.status, r.failure, r.body, r.headers.location }, { 302, nil, "", "file:///etc/passwd" })
  r = ask(c, "/redirect-host")
  T.eq({ r.status, r.failure, r.headers.location }, { 302, nil, "http://elsewhere.example/" })
end)

T.test("compressed replies are unpacked", function()
  need_server()
  local c <close> = net.client()
  T.eq(ask(c, "/gzip").body, "unpacked text")
end)

-- path, failure, what the message says, options
local faults = {
  { "/reset-before", "reset", "may have been carried out" },
  { "/close-before", "reset", "may have been carried out" },
  { "/reset-header", "reset", "may have been carried out" },
  { "/close-header", "reset", "before its reply was whole" },
  { "/reset-body", "reset", "may have been carried out" },
  { "/short", "short", "after 100 bytes" },
  { "/short-chunked", "short", "after 3 bytes" },
  { "/long-length", "too_large", "over the limit" },
  { "/bad-length", "protocol", "not proper HTTP" },
  { "/endless", "too_large", "body is over 100000 bytes", { max_body = 100000 } },
  { "/gzip-bomb", "too_large", "body is over 5000000 bytes", { max_body = 5000000 } },
  { "/bad-gzip", "protocol", "not proper HTTP" },
  { "/bad-http", "protocol", "not proper HTTP" },
  { "/bad-chunk", "protocol", "not proper HTTP" },
  { "/big-headers", "too_large", "header is over" },
  { "/long-header", "too_large", "header line" },
  { "/stall", "idle", "nothing came for 0.1 s", { idle_s = 0.1 } },
  { "/silent", "idle", "nothing came for 0.1 s", { idle_s = 0.1 } },
  { "/drip?ms=20", "timeout", "within 0.3 s", { total_s = 0.3, idle_s = 0.2 } },
  { "/slow?ms=3000", "timeout", "within 0.2 s", { total_s = 0.2 } },
}

T.test("faults have names", function()
  need_server()
  local c <close> = net.client()
  for _, case in ipairs(faults) do
    local path, failure, says, options = table.unpack(case)
    for _, body in ipairs { false, "a body" } do
      local o = { body = body or nil }
      for k, v in pairs(options or {}) do
        o[k] = v
      end
      local t0 = base.now()
      local r = ask(c, path, o)
      T.eq(r.failure, failure, path)
      T.eq(r.sent, true, path)
      T.ok(r.message:find(says, 1, true), path .. " says: " .. r.message)
      T.ok(r.message:find(root:match "//(.*)", 1, true) == 1, path .. " does not name its host: " .. r.message)
      T.ok(base.now() - t0 < 1, path .. " took " .. base.now() - t0 .. " s")
    end
  end
  T.eq(ask(c, "/ok").status, 200)
end)

T.test("what came before a fault is kept", function()
  need_server()
  local c <close> = net.client()
  local r = ask(c, "/short")
  T.eq({ r.status, #r.body, r.headers["content-length"] }, { 200, 100, "1000" })
  T.eq(#ask(c, "/stall", { idle_s = 0.05 }).body, 100)
end)

T.test("a packed bomb needs no memory", function()
  need_server()
  local c <close> = net.client()
  local before = base.memory().peak or 0
  for _ = 1, 5 do
    T.eq(ask(c, "/gzip-bomb", { max_body = 1 << 20 }).failure, "too_large")
  end
  T.ok((base.memory().peak or 0) - before < 8 << 20)
end)

T.test("nothing is sent twice", function()
  need_server()
  local c <close> = net.client { connections = 1 }
  local n = 0
  for _, path in ipairs { "/reset-reused", "/reset-before", "/close-before", "/short" } do
    for _, body in ipairs { "", "a body", ("x"):rep(200000) } do
      local before = count(c, path)
      for _ = 1, 6 do
        local r = ask(c, path, { body = body ~= "" and body or nil })
        T.eq(r.sent, true)
        n = n + (r.failure and 1 or 0)
      end
      T.eq(count(c, path) - before, 6, path .. " with " .. #body .. " bytes")
    end
  end
  T.eq(n, 3 * (3 + 6 + 6 + 6))
end)

T.test("a connection closed while idle costs nothing", function()
  need_server()
  local c <close> = net.client { connections = 1 }
  T.eq(ask(c, "/close-idle?ms=5").status, 200)
  base.sleep(0.05)
  local r = ask(c, "/close-idle?ms=5")
  T.eq({ r.status, r.failure }, { 200, nil })
end)

T.test("what surely was not sent", function()
  need_server()
  local c <close> = net.client()
  local r = ask(c, "http://127.0.0.1:1/x")
  T.eq({ r.failure, r.sent, r.status, r.body }, { "connect", false, nil, "" })
  T.ok(r.message:find("127.0.0.1:1: no connection (Connection refused)", 1, true), r.message)
  r = ask(c, root:gsub("^http", "https") .. "/ok", { connect_s = 0.2 }) -- no answer to the handshake
  T.eq({ r.failure, r.sent }, { "connect", false })
  T.ok(r.message:find("within 0.2 s", 1, true), r.message)
  r = ask(c, "https://no-such-host.invalid/", { connect_s = 2 })
  T.eq(r.sent, false)
  T.ok(r.failure == "resolve" or r.failure == "connect", r.failure)
  T.ok(r.message:find("no-such-host.invalid", 1, true), r.message)
end)

T.test("a request that waits for a connection can time out unsent", function()
  need_server()
  local c <close> = net.client { connections = 1 }
  c:send { id = 1, url = root .. "/slow?ms=400" }
  c:send { id = 2, url = root .. "/ok", total_s = 0.1 }
  local r
  repeat
    c:poll(1)
    r = c:next()
  until r
  T.eq({ r.id, r.failure, r.sent }, { 2, "timeout", false })
  T.eq(c:active(), 1)
end)

T.test("what is refused is a result", function()
  need_server()
  local c <close> = net.client()
  local before = count(c, "/ok")
  for _, case in ipairs {
    { "http://api.example.com/v1", "insecure = true" },
    { "https://me:pass@api.example.com/", "password" },
    { "file:///etc/passwd", "https" },
    { "not an address", "https://host/path" },
    { "https://h\0ost/", "https://host/path" },
    { root .. "/ok", "line end", { headers = { "X: a\r\nY: b" } } },
    { root .. "/ok", "line end", { headers = { "X: a\0b" } } },
    { root .. "/ok", "Name: value", { headers = { "no colon" } } },
  } do
    local r = ask(c, case[1], case[3])
    T.eq({ r.failure, r.sent }, { "refused", false }, case[1])
    T.ok(r.message:find(case[2], 1, true), r.message)
    T.ok(not r.message:find("pass@", 1, true), r.message)
  end
  T.eq(count(c, "/ok"), before)
  T.eq(ask(c, "/ok").status, 200)
end)

T.test("many at once", function()
  need_server()
  local c <close> = net.client { connections = 64 }
  local n, sent, done, seen = 500, 0, 0, {}
  local t0 = base.now()
  while done < n do
    while sent < n and c:active() < 64 do
      sent = sent + 1
      c:send { id = sent, url = root .. "/slow?ms=20", body = "x" }
    end
    c:poll(1)
    local r = c:next()
    while r do
      T.eq(r.status, 200, r.message)
      T.eq(seen[r.id], nil)
      seen[r.id] = true
      done = done + 1
      r = c:next()
    end
  end
  T.ok(base.now() - t0 < 3, "500 requests of 20 ms, 64 at once, took " .. base.now() - t0 .. " s")
end)

T.test("poll waits, and no longer than it should", function()
  need_server()
  local c <close> = net.client()
  local t0 = base.now()
  T.eq(c:poll(0.15), 0)
  T.ok(base.now() - t0 >= 0.15 and base.now() - t0 < 0.5)
  c:send { id = 1, url = root .. "/slow?ms=50" }
  t0 = base.now()
  T.eq(c:poll(5), 1)
  T.ok(base.now() - t0 < 0.5)
  T.eq(c:poll(5), 1) -- still there
  T.eq(c:next().id, 1)
  T.eq(c:next(), nil)
  T.eq(c:poll(0), 0)
end)

T.test("events arrive as they come", function()
  need_server()
  local c <close> = net.client()
  local r, events = ask(c, "/sse", { stream = true })
  T.eq(events, { { id = 1, event = "first", data = "one\ntwo" }, { id = 1, data = "café" }, { id = 1, data = "[DONE]" } })
  T.ok(r.failure == nil and r.body:find("data: [DONE]\r\n\r\n", 1, true))
  r, events = ask(c, "/sse") -- not asked for as a stream
  T.eq(#events, 0)
  T.ok(r.body:find("caf\xc3\xa9", 1, true))
  r, events = ask(c, "/ok", { stream = true }) -- no stream: an error body
  T.eq({ #events, r.body }, { 0, '{"ok":true}' })
  r, events = ask(c, "/sse?ms=1", { stream = true }) -- byte by byte
  T.eq(#events, 3)
  r, events = ask(c, "/sse-open", { stream = true, idle_s = 0.1 })
  T.eq({ #events, r.failure }, { 2, "idle" })
  r, events = ask(c, "/sse-cut", { stream = true })
  T.eq({ #events, events[2].data, r.failure }, { 2, "two", nil })
  r, events = ask(c, "/sse-reset", { stream = true }) -- what is not whole is not given
  T.eq({ #events, events[1].data, r.failure }, { 1, "one", "reset" })
end)

T.test("cancel, close and the collector", function()
  need_server()
  local c = net.client()
  for id = 1, 5 do
    c:send { id = id, url = root .. "/silent" }
  end
  c:poll(0.02)
  T.eq(c:active(), 5)
  T.eq({ c:cancel(2), c:cancel(2), c:cancel(99) }, { 1, 0, 0 })
  T.eq(c:active(), 4)
  c:send { id = 7, url = "nothing" }
  T.eq(c:cancel(7), 1) -- its result too
  T.eq(c:next(), nil)
  T.ok(tostring(c):find("4 in flight", 1, true))
  c:close()
  c:close()
  T.raises(function() c:poll(0) end, "the client is closed")
  T.raises(function() c:send {} end, "the client is closed")
  T.ok(tostring(c):find("closed", 1, true))
  for i = 1, 50 do
    local lost = net.client()
    lost:send { id = i, url = root .. "/ok" }
  end
  collectgarbage()
  collectgarbage()
end)

T.test("misuse raises", function()
  local c <close> = net.client()
  for _, case in ipairs {
    { {}, "id is missing" }, { { id = 1 }, "url is missing" }, { { id = 1.5, url = "x" }, "id must be a whole number" },
    { { id = 1, url = 2 }, "url must be a string" }, { { id = 1, url = "x", uri = "y" }, "unknown field uri" },
    { { id = 1, url = "x", idle_s = 0 }, "idle_s must be over 0" }, { { id = 1, url = "x", total_s = 0 / 0 }, "total_s" },
    { { id = 1, url = "x", stream = 1 }, "stream must be a boolean" }, { { id = 1, url = "x", [1] = 2 }, "unknown field 1" },
    { { id = 1, url = "x", headers = "A: b" }, "headers must be a table" },
    { { id = 1, url = "x", headers = { 1 } }, "headers[1] must be a string" },
    { { id = 1, url = "x", max_body = 0 }, "max_body must be a whole number over 0" },
    { { id = 1, url = "x", secret_env = "PL_NO_SUCH" }, "belong together" },
    { { id = 1, url = "x", secret_env = "PL_NO_SUCH", secret_header = "A: " }, 'net.secret("PL_NO_SUCH")' },
  } do
    T.raises(function() c:send(case[1]) end, case[2])
  end
  T.eq(c:next(), nil)
  T.raises(function() net.client { connection = 1 } end, "unknown option connection")
  T.raises(function() net.client { connections = 0 } end, "1 to 4096")
  T.raises(function() net.client { user_agent = "a\r\nB: c" } end, "line end")
  T.raises(function() net.client(1) end, "table expected")
  T.raises(function() c:poll(-1) end, "negative")
  T.raises(function() c.poll(io.stdout, 1) end, "HttpClient expected")
  T.raises(function() net.secret "A=B" end, "environment variable")
  T.raises(function() net.secret() end, "string expected")
end)

T.test("the parser of events", function()
  local p <close> = net.sse()
  T.eq(p:feed "event: a\ndata: 1\nda", {})
  T.eq(p:feed "ta: 2\n\nid: 5\ndata\n\ndata: x", { { event = "a", data = "1\n2" }, { data = "", id = "5" } })
  T.eq(p:finish(), { { data = "x", id = "5" } })
  T.eq(p:finish(), {})
  p:close()
  T.raises(function() p:feed "x" end, "the parser is closed")
  local small <close> = net.sse(10)
  local events, message = small:feed "data: 12345678901234567890"
  T.eq(events, nil)
  T.ok(message:find("over 10 bytes", 1, true), message)
end)

T.test("the redactor without a key", function()
  T.eq(net.redact "Authorization: Bearer abc", "Authorization: Bearer [key]")
  T.eq(net.redact "x-api-key: abc", "x-api-key: [key]")
  T.eq(net.redact "/v1?key=abc&x=1", "/v1?key=[key]&x=1")
  T.eq(net.redact "", "")
  local text = ("The organization's text has dashes - and k=v pairs. "):rep(200)
  T.eq(net.redact(text), text)
end)

T.test("this machine's addresses", function()
  for url, want in pairs {
    ["http://localhost:1/"] = true, ["http://127.1.2.3/"] = true, ["http://[::1]/"] = true, ["https://localhost/"] = true,
    ["http://example.com/"] = false, ["http://localhost.example.com/"] = false, ["nonsense"] = false,
    ["http://x@localhost/"] = false,
  } do
    T.eq(net.is_loopback(url), want, url)
  end
end)

T.test("a key is seen by its service alone", function()
  need_server()
  T.eq(other_process("PL_TEST_KEY=sk-canary-0123456789", [[
    local text = "sk-canary-" .. "0123456789"
    assert(net.has_secret "PL_TEST_KEY" and os.getenv "PL_TEST_KEY")
    assert(net.redact(text) == text)
    assert(net.secret "PL_TEST_KEY" == true and net.secret "PL_TEST_KEY" == true)
    assert(net.has_secret "PL_TEST_KEY" and not os.getenv "PL_TEST_KEY")
    local f = io.open("/proc/self/environ", "rb")
    local environ = f:read "a"
    f:close()
    assert(environ:find "PATH=" and not environ:find(text, 1, true), "the environment still has it")
    assert(not io.popen("env"):read "a":find(text, 1, true))
    local limits = io.open "/proc/self/limits":read "a"
    assert(limits:find "Max core file size%s+0%s+0%s", limits)
    local c = net.client()
    c:send { id = 1, url = root .. "/echo", secret_env = "PL_TEST_KEY", secret_header = "Authorization: Bearer " }
    c:poll(5)
    local r = c:next()
    assert(r.body:find("\r\nAuthorization: Bearer " .. text .. "\r\n", 1, true), r.body)
    assert(not net.redact(r.body):find(text, 1, true), net.redact(r.body))
    c:send { id = 2, url = "http://" .. text .. ".example/", secret_env = "PL_TEST_KEY", secret_header = "X: " }
    c:poll(5)
    r = c:next()
    assert(r.failure == "refused" and r.message:find("[key].example", 1, true), r.message)
    print "fine"
  ]]), "fine\n")
  T.eq(other_process("PL_TEST_KEY= PL_TEST_TWO=$(printf 'a\\rb')", [[
    assert(not net.has_secret "PL_TEST_KEY" and not net.has_secret "PL_NO_SUCH")
    local ok, message = net.secret "PL_TEST_KEY"
    assert(ok == nil and message:find "blank", message)
    ok, message = net.secret "PL_TEST_TWO"
    assert(ok == nil and message:find "control character", message)
    ok, message = net.secret "PL_NO_SUCH"
    assert(ok == nil and message:find "not set", message)
    print "fine"
  ]]), "fine\n")
end)

T.test("proxies are for others than this machine", function()
  need_server()
  T.eq(other_process("http_proxy=" .. root .. " https_proxy=http://127.0.0.1:1 no_proxy=", [[
    local c = net.client()
    local function get(url)
      c:send { id = 1, url = url, insecure = true }
      c:poll(5)
      return c:next()
    end
    local r = get(root .. "/echo")
    assert(r.body:find "^GET /echo ", r.body)
    r = get "http://a.example/ok" -- an address of this form is none of the server's cases
    assert(r.status == 404 and r.body == "no such case", r.message)
    r = get "https://a.example/ok"
    assert(r.failure == "connect" and not r.sent, r.message)
    print "fine"
  ]]), "fine\n")
end)

if server then
  local c <close> = net.client()
  c:send { id = 1, url = root .. "/quit" }
  c:poll(5)
  server:close()
end

T.done()
