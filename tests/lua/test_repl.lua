-- The session's Lua half: when an entry is complete, how values look, what Tab offers, help.
local T = require "tests.lua.harness"
local complete = require "perilune.repl.complete"
local help = require "perilune.help"
local pl = require "perilune"
local repl = require "perilune.repl"
local show = require "perilune.repl.show"

local entries = { -- text, what it is: value, statement, incomplete, error
  { "1 + 1", "value" }, { "x", "value" }, { "f()", "value" }, { "1, 2", "value" }, { "x;", "value" },
  { "x = 1", "statement" }, { "for i = 1, 2 do end", "statement" }, { "local a", "statement" },
  { "return 5", "statement" }, { "goto a ::a::", "statement" },
  { "1 +", "incomplete" }, { "f(", "incomplete" }, { "for i = 1, 2 do", "incomplete" },
  { "function f()", "incomplete" }, { "x = {", "incomplete" }, { "x = [[ab", "incomplete" },
  { "if true then", "incomplete" }, { "--[[ open", "incomplete" },
  { "1 + + 2", "error" }, { ")", "error" }, { "x = 'abc", "error" }, { '"abc', "error" }, { "x y", "error" },
  { "for for", "error" },
}
for _, entry in ipairs(entries) do
  T.test(("%q is %s"):format(entry[1], entry[2]), function()
    local f, message, incomplete, is_value = repl.compile(entry[1], {})
    local got = f and (is_value and "value" or "statement") or incomplete and "incomplete" or "error"
    T.eq(got, entry[2])
    if not f then T.ok(type(message) == "string") end
  end)
end

-- A session without an editor, fed from a list.
local function session(lines)
  local i, out = 0, {}
  local old = io.write
  local host = { edits = false, add_history = function() end }
  function host.readline()
    i = i + 1
    return lines[i]
  end
  function host.call(f, ...)
    local r = table.pack(pcall(f, ...))
    if not r[1] then out[#out + 1] = tostring(r[2]) end
    return table.unpack(r, 1, r.n)
  end
  local step = repl.start(host)
  io.write = function(...)
    for _, s in ipairs { ... } do out[#out + 1] = s end
    return io.stdout
  end
  local ok, err = pcall(function() while step() do end end)
  io.write = old
  T.ok(ok, err)
  return table.concat(out, "|")
end

T.test("values, nils, the last value and silence", function()
  T.eq(session { "1, nil, 'a'" }, '1|\n|nil|\n|"a"|\n')
  T.eq(session { "20 + 1;", "_ * 2" }, "42|\n")
  T.eq(session { "x = 5", "x" }, "5|\n")
  T.eq(session { "(function() end)()" }, "")
  T.eq(session { "{", "1, 2 }" }, "{ 1, 2 }|\n")
end)

T.test("undefined names are errors with a suggestion; _G stays clean", function()
  T.ok(session({ "counter = 1", "countr" }):find "undefined variable 'countr' %(did you mean 'counter'%?%)")
  T.ok(session({ "function f() zz = 1 end", "f()" }):find "inside a function")
  T.eq(rawget(_G, "counter"), nil)
  T.eq(session { "function f() return counter end", "counter = 3", "f()" }, "3|\n")
end)

T.test("commands", function()
  T.ok(session({ ":qiut" }):find 'did you mean "quit"')
  T.eq(session { ":quit", "1" }, "")
  T.ok(session({ ":load nowhere.lua" }):find "nowhere.lua")
  local path = T.tmpdir() .. "/part.lua"
  local f = assert(io.open(path, "w"))
  f:write "answer = (answer or 41) + 1\n"
  f:close()
  T.eq(session { "answer = nil", "answer = 41", ":load " .. path, "answer", ":reload", "answer" }, "42|\n|43|\n")
end)

T.test("tables print as trees with limits", function()
  T.eq(show.value { 1, 2, a = "x" }, '{ 1, 2, a = "x" }')
  T.eq(show.value({ { { { { 1 } } } } }, { depth = 2 }), "{ { { ... 1 entries } } }")
  local t = {}
  t.self = t
  T.ok(show.value(t):find "contains itself")
  local long = {}
  for i = 1, 100 do long[i] = i end
  T.ok(show.value(long):find "60 more")
  T.eq(show.value(setmetatable({}, { __tostring = function() return "mine" end })), "mine")
  T.ok(show.value({ 1 }, { color = true }):find "\27%[36m1\27%[0m")
  T.ok(show.value(pl.zeros(2, 2)):find "f32 %[2, 2%]")
end)

T.test("completion", function()
  local env = setmetatable({ pl = pl, x = pl.zeros(2), obj = setmetatable({ own = 1 }, { __index = { method = print } }) },
    { __index = _G })
  complete.use(env)
  local function has(line, name)
    for _, c in ipairs((complete.candidates(line))) do
      if c == name then return true end
    end
    return false
  end
  T.ok(has("pl.ran", "randn") and has("pl.", "train"))
  T.ok(has("x:matm", "matmul") and not has("x:matm", "sum"))
  T.ok(has("obj.", "own") and has("obj:", "method") and not has("obj:", "own"))
  T.ok(has("whi", "while") and has("string.f", "format") and has("y = st", "string"))
  T.ok(has("pl.randn(3, { se", "seed = "))
  T.ok(has('io.open("tests/lu', "lua/") or not require("perilune.core").base.is_dir "tests/lua")
  T.eq(#complete.candidates "nothing.such:", 0)
  local trap = setmetatable({}, { __index = function() error "user code ran" end })
  env.trap = trap
  T.eq(#complete.candidates "trap.a.b", 0)
  local insert = complete.edit "pl.logsum"
  T.eq(insert, "exp")
end)

T.test("help", function()
  T.ok(help.text("randn"):find "pl.randn%(sizes, opts%)")
  T.ok(help.text("x:matmul"):find "a:matmul%(b%)")
  T.ok(help.text("pl.json.write"):find "Replaces the file in one step")
  T.ok(help.text("randnn"):find "did you mean randn")
  T.ok(help.source("pl.json.write"):find "function json.write")
  T.ok(help.source("randn"):find "written in C")
  for _, row in ipairs(require("perilune.core").tensor.op_rows()) do
    T.ok(help.text(row.name):find(row.name, 1, true))
  end
end)

T.test("generated stubs are what the rows say", function()
  local root = os.getenv "PL_ROOT" or "."
  local bin = os.getenv "PL_BIN" or "./perilune"
  T.ok(os.execute(("'%s' '%s/scripts/docs.lua' --check >/dev/null"):format(bin, root)),
    "run make docs and commit lua/meta")
end)

T.test("for with a closing value: the pitfall of this Lua is not in our iterators", function()
  for k in pairs { 1 } do T.eq(k, 1) end
  local n = 0
  for _ in ("a b c"):gmatch "%a" do n = n + 1 end
  T.eq(n, 3)
end)

T.done()
