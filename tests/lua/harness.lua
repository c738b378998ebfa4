--- What a Lua test file requires first. Usage:
---
---   local T = require "tests.lua.harness"
---   T.test("adds", function() T.eq(1 + 1, 2) end)
---   T.done()
---
--- Prints "ok NAME", "not ok NAME" or "skip NAME why"; T.done() ends the program with status 1
--- when a test failed, or when a module under test left a global behind.
local T = {}

local passed, failed, skipped = 0, 0, 0
local skip_mark = setmetatable({}, { __tostring = function() return "skipped" end })
local tmp
local globals = {}
for k in pairs(_G) do
  globals[k] = true
end

local function show(v, depth)
  depth = depth or 0
  if type(v) == "string" then
    return string.format("%q", v)
  end
  if math.type(v) == "float" then
    return string.format("%.17g", v)
  end
  if type(v) ~= "table" or depth > 3 or (getmetatable(v) or {}).__tostring then
    return tostring(v)
  end
  local parts, n = {}, #v
  for i = 1, math.min(n, 20) do
    parts[#parts + 1] = show(v[i], depth + 1)
  end
  for k, x in pairs(v) do
    if not (math.type(k) == "integer" and k >= 1 and k <= n) and #parts < 40 then
      parts[#parts + 1] = tostring(k) .. " = " .. show(x, depth + 1)
    end
  end
  return "{" .. table.concat(parts, ", ") .. (n > 20 and ", ...}" or "}")
end

local function same(a, b)
  if a == b then
    return true
  end
  if a ~= a and b ~= b then
    return true -- both NaN
  end
  if type(a) ~= "table" or type(b) ~= "table" then
    return false
  end
  for k, v in pairs(a) do
    if not same(v, b[k]) then
      return false
    end
  end
  for k in pairs(b) do
    if a[k] == nil then
      return false
    end
  end
  return true
end

--- Runs f as one test; an error in it fails the test and the file goes on.
---@param name string
---@param f fun()
function T.test(name, f)
  local only = os.getenv "PL_TEST_ONLY"
  if only and only ~= "" and not name:find(only, 1, true) then
    return
  end
  local ok, err = xpcall(f, function(e)
    if e == skip_mark then
      return e
    end
    return debug.traceback(tostring(e), 2)
  end)
  if ok then
    passed = passed + 1
    print("ok " .. name)
  elseif err == skip_mark then
    skipped = skipped + 1
    print("skip " .. name .. " " .. skip_mark.why)
  else
    failed = failed + 1
    print((("    " .. tostring(err)):gsub("\n", "\n    ")))
    print("not ok " .. name)
  end
  io.stdout:flush()
end

--- Equal by value; tables are compared in depth.
function T.eq(got, want, msg)
  if not same(got, want) then
    error((msg and msg .. ": " or "") .. "got " .. show(got) .. ", wanted " .. show(want), 2)
  end
end

local function near(a, b, tol)
  if type(a) == "table" and type(b) == "table" then
    if #a ~= #b then
      return false, "lengths " .. #a .. " and " .. #b .. " differ"
    end
    for i = 1, #a do
      local ok, why = near(a[i], b[i], tol)
      if not ok then
        return false, "[" .. i .. "] " .. why
      end
    end
    return true
  end
  if type(a) ~= "number" or type(b) ~= "number" then
    return false, "got " .. show(a) .. ", wanted " .. show(b)
  end
  if a == b or (a ~= a and b ~= b) or math.abs(a - b) <= tol then
    return true
  end
  return false, string.format("got %.9g, wanted %.9g, differ by %.3g > %g", a, b, math.abs(a - b), tol)
end

--- |got - want| <= tol (1e-6); lists element by element, to any depth.
function T.near(got, want, tol, msg)
  local ok, why = near(got, want, tol or 1e-6)
  if not ok then
    error((msg and msg .. ": " or "") .. why, 2)
  end
end

--- v is neither nil nor false.
function T.ok(v, msg)
  if not v then
    error(msg or "failed", 2)
  end
  return v
end

--- f(...) must raise, with a message that contains `pattern` (as plain text or as a Lua pattern).
---@return string message
function T.raises(f, pattern, ...)
  local ok, err = pcall(f, ...)
  if ok then
    error("no error was raised, wanted one with " .. show(pattern), 2)
  end
  err = tostring(err)
  if pattern then
    local fine, found = pcall(string.find, err, pattern)
    if not err:find(pattern, 1, true) and not (fine and found) then
      error("the error was " .. show(err) .. ", wanted one with " .. show(pattern), 2)
    end
  end
  return err
end

--- Leaves the running test and counts it as skipped.
function T.skip(why)
  skip_mark.why = why or ""
  error(skip_mark, 0)
end

local function exists(path)
  local f = io.open(path, "r")
  if f then
    f:close()
  end
  return f ~= nil
end

--- The folder with the shared data, ending in no slash, or nil.
---@return string?
function T.shared()
  local p = os.getenv "PL_SHARED"
  p = p and p ~= "" and p or "../shared"
  return exists(p .. "/data/README.md") and p or nil
end

--- The shared data or a skip.
---@return string
function T.need_shared()
  return T.shared() or T.skip "no shared data (set PL_SHARED)"
end

--- True where tests should be short (sanitizers).
function T.quick()
  local q = os.getenv "PL_TEST_QUICK"
  return q ~= nil and q ~= "" and q ~= "0"
end

--- A folder of this run's own, removed by T.done().
---@return string
function T.tmpdir()
  if not tmp then
    tmp = os.tmpname()
    os.remove(tmp)
    T.ok(os.execute("mkdir -m 700 '" .. tmp .. "'"), "cannot make " .. tmp)
  end
  return tmp
end

--- Prints the counts and ends the program.
function T.done()
  for k in pairs(_G) do
    if not globals[k] then
      failed = failed + 1
      print("not ok no_new_globals: " .. tostring(k))
    end
  end
  if tmp then
    os.execute("rm -rf '" .. tmp .. "'")
  end
  print(string.format("#%d passed, %d failed, %d skipped", passed, failed, skipped))
  io.stdout:flush()
  local good = failed == 0 and passed + skipped > 0
  os.exit(good and 0 or 1, true)
end

return T
