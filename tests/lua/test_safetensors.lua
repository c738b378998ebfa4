--- safetensors from Lua: files of the reference library (made by
--- tests/golden/make_safetensors.py), writing, closed handles; event files.
--- Hostile files are tests/c/test_format.c's.
local T = require "tests.lua.harness"
local core = require "perilune.core"

local format = core.format
local dir = (os.getenv "PL_ROOT" or ".") .. "/tests/golden/safetensors/"
local own, other = dir .. "own.safetensors", dir .. "other.safetensors"

local function flat(t)
  return t:numel() == 0 and {} or t:reshape { t:numel() }:tolist()
end

T.test("the reference library's files read with their values", function()
  local values = core.base.json_read(dir .. "values.json")
  local seen = 0
  for _, path in ipairs { own, other } do
    local st <close> = assert(format.safetensors_open(path))
    for _, name in ipairs(st:names()) do
      local want = values[name]
      if want then
        seen = seen + 1
        T.eq(st:info(name).shape, want.shape, name)
        local got = flat(st:tensor(name))
        T.eq(#got, #want.data, name)
        for i, v in ipairs(want.data) do
          if type(v) == "string" then v = v == "inf" and math.huge or -math.huge end
          local have = got[i]
          if type(have) == "boolean" then v = v and true or false end
          T.ok(have == v, ("%s[%d] is %s, wanted %s"):format(name, i, tostring(have), tostring(v)))
        end
      end
    end
  end
  T.eq(seen, 16)
end)

T.test("reading and writing again gives the reference library's bytes", function()
  local st = assert(format.safetensors_open(own))
  local tensors = {}
  for _, name in ipairs(st:names()) do tensors[name] = st:tensor(name) end
  local path = T.tmpdir() .. "/again.safetensors"
  T.eq(format.safetensors_write(path, tensors, st:metadata()), true)
  T.ok(core.base.read_file(path) == core.base.read_file(own), "bytes differ")
end)

T.test("a view is written as what it shows, metadata defaults to PyTorch's", function()
  local st = assert(format.safetensors_open(own))
  local path = T.tmpdir() .. "/view.safetensors"
  local t = st:tensor "model.b"
  format.safetensors_write(path, { t = t:transpose(1, 2) })
  local back = assert(format.safetensors_open(path))
  T.eq(back:info("t"), { dtype = "F32", shape = { 2, 3 }, bytes = 24 })
  T.eq(back:tensor("t"):tolist(), t:transpose(1, 2):tolist())
  T.eq(back:metadata(), { format = "pt" })
end)

T.test("no tensors at all", function()
  local path = T.tmpdir() .. "/none.safetensors"
  format.safetensors_write(path, {}, {})
  local st = assert(format.safetensors_open(path))
  T.eq(st:names(), {})
  T.eq(st:metadata(), {})
end)

T.test("dtypes that cannot be loaded, unknown names, closed files", function()
  local st = assert(format.safetensors_open(other))
  for _, name in ipairs { "u64", "f8", "complex" } do
    T.raises(function() st:tensor(name) end, "cannot be loaded")
  end
  T.raises(function() st:tensor "nope" end, 'holds no tensor "nope"')
  T.raises(function() st:info "nope" end, 'holds no tensor "nope"')
  st:close()
  st:close()
  T.raises(function() st:names() end, "closed")
  T.eq(tostring(st), "safetensors (closed)")
end)

T.test("failures name the file", function()
  local st, why = format.safetensors_open "/nonexistent/x.safetensors"
  T.eq(st, nil)
  T.ok(why:find("/nonexistent/x.safetensors", 1, true), why)
  local path = T.tmpdir() .. "/short.safetensors"
  local f = assert(io.open(path, "wb"))
  f:write(core.base.read_file(own):sub(1, -2))
  f:close()
  st, why = format.safetensors_open(path)
  T.eq(st, nil)
  T.ok(why:find("short.safetensors", 1, true) and why:find("data ends at byte", 1, true), why)
  local t = assert(format.safetensors_open(own)):tensor "scalar"
  T.raises(function() format.safetensors_write("/nonexistent/x.safetensors", { a = t }) end, "/nonexistent")
  T.raises(function() format.safetensors_write(path, { a = 1 }) end, '"a" is a number')
  T.raises(function() format.safetensors_write(path, { t }) end, "string keys")
  T.raises(function() format.safetensors_write(path, { a = t }, { format = 1 }) end, "not a string")
  T.raises(function() format.safetensors_write(path, { ["../a"] = t }) end, "cannot be written")
end)

-- What the file holds is read back in tests/c/test_format.c.
T.test("event files from Lua", function()
  local dir = T.tmpdir()
  local events = assert(format.tfevents_open(dir))
  local path = events:path()
  events:scalar("loss", 1, 0.5)
  events:scalar("loss", 2, 0)
  T.raises(function() events:scalar("loss", -1, 0.5) end, "step of 0 or more")
  T.raises(function() events:scalar("", 1, 0.5) end, "tag of 1 to")
  T.raises(function() events:scalar("loss", 1.5, 0) end, "integer")
  events:close()
  events:close()
  T.raises(function() events:scalar("loss", 3, 0) end, "closed")
  T.eq(tostring(events), "event file (closed)")
  local bytes = core.base.read_file(path)
  T.ok(bytes:find("brain.Event:2", 1, true) and bytes:find("loss", 1, true))
  T.eq(select(2, bytes:gsub("loss", "")), 2)
  local none, why = format.tfevents_open "/nonexistent"
  T.ok(none == nil and why:find("/nonexistent", 1, true), why)
end)

T.done()
