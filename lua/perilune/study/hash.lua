--- The hash of any Lua value, for the keys of stages: two values get the same
--- hash only if a stage would do the same with them. What cannot be hashed (a
--- coroutine, a file, a C function of somebody else's) is said, never guessed.
local base = require("perilune.core").base
local bytecode = require "perilune.study.bytecode"

local hash = {}

-- Where perilune's own Lua lies: the directory that holds "perilune/".
local root = debug.getinfo(1, "S").source:match "^@(.*)perilune/study/hash%.lua$" or ""
local STANDARD = {
  _G = true, string = true, table = true, math = true, io = true, os = true, debug = true,
  coroutine = true, utf8 = true, package = true,
}

-- What Lua's basic library puts into _G, beside the libraries.
local BASIC = {}
for name in ([[assert collectgarbage dofile error getmetatable ipairs load loadfile next pairs pcall print rawequal
  rawget rawlen rawset require select setmetatable tonumber tostring type warn xpcall]]):gmatch "%a+" do
  BASIC[name] = true
end

-- A field of a library's table that is Lua's own, not one that a user's code has put there.
local function is_standard(module, field, value)
  if module == "_G" and STANDARD[field] then return value == package.loaded[field] end
  if module == "_G" and not BASIC[field] then return field == "_VERSION" end
  if type(value) ~= "function" then return module ~= "_G" end
  return debug.getinfo(value, "S").what == "C"
end

local function own(module) return module == "perilune" or module:sub(1, 9) == "perilune." end

-- Modules and library functions are known by name: perilune's own change only
-- with the code version, which is part of every key, and Lua's do not change.
-- A function known under several names takes the first in order; names of the
-- public table come last, for it fills up as a session goes on.
local function known_names()
  local names = {}
  local function note(value, name)
    local before = names[value]
    if not before or before:sub(1, 9) == "perilune:" or (name < before and name:sub(1, 9) ~= "perilune:") then
      names[value] = name
    end
  end
  local function note_fields(module, fields)
    for field, inner in next, fields do
      local theirs = STANDARD[module] and not is_standard(module, field, inner)
      if type(inner) == "function" and type(field) == "string" and not theirs then
        note(inner, module .. ":" .. field)
      end
    end
  end
  for module, value in pairs(package.loaded) do
    if own(module) or STANDARD[module] then
      if type(value) == "table" then
        names[value] = module
        note_fields(module, value)
      elseif type(value) == "function" then
        note(value, module)
      end
    end
  end
  for part, fields in pairs(package.loaded["perilune.core"] or {}) do
    if type(fields) == "table" then
      names[fields] = "perilune.core." .. tostring(part)
      note_fields("perilune.core." .. tostring(part), fields)
    end
  end
  names[_G] = "_G"
  return names
end

-- All Lua modules a user's code has loaded, by file; their bytes are part of the
-- hash of every Lua function, for the function may call them.
local function user_modules(files)
  for module in pairs(package.loaded) do
    if not own(module) and not STANDARD[module] then
      local path = package.searchpath(module, package.path)
      if path then files[path] = true end
    end
  end
end

-- Globals, and functions in Lua's own tables (string.split), that a user's code has set, in order.
local function user_globals()
  local out = {}
  for module in pairs(STANDARD) do
    for field, value in next, package.loaded[module] or {} do
      if type(field) == "string" and not is_standard(module, field, value) then
        out[#out + 1] = { name = module .. "." .. field, field = field, value = value, global = module == "_G" }
      end
    end
  end
  table.sort(out, function(a, b) return a.name < b.name end)
  return out
end

-- How string.dump writes a string constant: its length plus one in groups of seven bits, then the bytes.
local function dumped(text)
  local n = #text + 1
  local size = string.char(0x80 | n & 0x7f)
  while n > 0x7f do
    n = n >> 7
    size = string.char(n & 0x7f) .. size
  end
  return size .. text
end

local file_hashes = {}
local function file_hash(path)
  if file_hashes[path] == nil then
    local text = base.read_file(path)
    file_hashes[path] = text and base.sha256(text) or false
  end
  return file_hashes[path]
end

---@param v number
---@return string
local function number_text(v)
  if v ~= v then return "fnan" end
  local whole = math.tointeger(v)
  return whole and ("i%d"):format(whole) or ("f%.17g"):format(v)
end

local RANK = { boolean = 1, number = 2, string = 3 }
local function key_before(a, b)
  local ta, tb = type(a), type(b)
  if ta ~= tb then return RANK[ta] < RANK[tb] end
  if ta == "boolean" then return a and not b end
  return a < b
end

---@class perilune.study.Walker
local Walker = {}
Walker.__index = Walker

function Walker:put(text) self.out[#self.out + 1] = text end

function Walker:fail(what, path)
  error({ unhashable = path == "" and what or ("%s (at %s)"):format(what, path) }, 0)
end

-- Objects that know their own identity: models and datasets by :hash(), clients by :key().
function Walker:object(v, path)
  local mt = getmetatable(v)
  if not mt then return false end
  local ok, method = pcall(function() return v.hash end)
  if ok and type(method) == "function" then
    self:put("o" .. method(v))
    return true
  end
  ok, method = pcall(function() return v.key end)
  if ok and type(method) == "function" then
    local key, why = method(v)
    if not key then self:fail(why or tostring(v), path) end
    self:put(("k%d:%s"):format(#key, key))
    return true
  end
  return false
end

function Walker:table(v, path)
  local mt = getmetatable(v)
  if mt and mt.__standin then self:fail("a stand-in", path) end
  if self:object(v, path) then return end
  local keys = {}
  for k in next, v do
    if not RANK[type(k)] then self:fail("a table with a " .. type(k) .. " as key", path) end
    keys[#keys + 1] = k
  end
  table.sort(keys, key_before)
  self:put "{"
  for _, k in ipairs(keys) do
    self:value(k, path)
    self:value(v[k], path == "" and tostring(k) or path .. "." .. tostring(k))
  end
  self:put "}"
end

function Walker:func(v, path)
  local info = debug.getinfo(v, "S")
  if info.what == "C" then self:fail("a C function", path) end
  local code = string.dump(v, true)
  self:put(("F%d:%s"):format(#code, code))
  local source = info.source:match "^@(.*)$"
  local of_user = not source or root == "" or source:sub(1, #root) ~= root
  if source and of_user then self.files[source] = true end
  user_modules(self.files)
  local env = {}
  for i = 1, math.huge do
    local name, value = debug.getupvalue(v, i)
    if not name then break end
    if name == "_ENV" or value == _G then env[i - 1] = true end
    self:value(value, path == "" and name or path .. "." .. name)
  end
  if of_user then self:globals(code, env, path) end -- the code version covers perilune's own
end

-- The user's globals that a function, or one inside it, may read: those that it names. One that is nil now
-- and set later is then among them. Where its bytecode leaves open what it reads, and for fields of Lua's
-- own tables, any string of its code counts as a name.
function Walker:globals(code, env, path)
  self.user = self.user or user_globals()
  if #self.user == 0 then return end
  local names = bytecode.globals(code, env)
  for _, g in ipairs(self.user) do
    local counts
    if g.global and names then counts = names[g.field] else counts = code:find(dumped(g.field), 1, true) end
    if counts then
      self:put(("g%d:%s"):format(#g.name, g.name))
      self:value(g.value, path == "" and g.field or path .. "." .. g.field)
    end
  end
end

function Walker:userdata(v, path)
  if self:object(v, path) then return end
  local ok, list = pcall(function() return v:tolist() end)
  if not ok then self:fail("a " .. tostring(v):match "^[^:]+", path) end
  self:put("t" .. tostring(v:dtype()))
  self:value(list, path)
end

function Walker:value(v, path)
  local kind = type(v)
  if kind == "nil" then return self:put "n" end
  if kind == "boolean" then return self:put(v and "T" or "X") end
  if kind == "number" then return self:put(number_text(v)) end
  if kind == "string" then return self:put(("s%d:%s"):format(#v, v)) end
  if v == base.null then return self:put "N" end
  if kind == "thread" then self:fail("a coroutine", path) end
  if self.names[v] then return self:put(("m%s;"):format(self.names[v])) end
  if self.seen[v] then return self:put(("r%d;"):format(self.seen[v])) end
  self.count = self.count + 1
  self.seen[v] = self.count
  if kind == "table" then return self:table(v, path) end
  if kind == "function" then return self:func(v, path) end
  return self:userdata(v, path)
end

---The hash of a value: tables by content, functions by stripped bytecode, captured
---values, the globals they name and the bytes of the files they come from, models and datasets by their
---own hash, clients by their key.
---@param value any
---@return string|nil hex sha256; nil if something in it cannot be hashed
---@return string|nil reason names the thing and the path to it
function hash.of(value)
  local walker = setmetatable({
    out = {}, files = {}, seen = {}, count = 0, names = known_names(),
  }, Walker)
  local ok, problem = pcall(walker.value, walker, value, "")
  if not ok then
    if type(problem) == "table" and problem.unhashable then return nil, problem.unhashable end
    error(problem, 0)
  end
  local paths = {}
  for path in pairs(walker.files) do paths[#paths + 1] = path end
  table.sort(paths)
  -- The bytes count, not where the file lies: a study moves between directories.
  for _, path in ipairs(paths) do walker:put("file" .. tostring(file_hash(path))) end
  return base.sha256(table.concat(walker.out))
end

---Forgets the bytes of files already hashed, so that a file edited since (in the
---shell, between two runs) counts as what it is now.
function hash.refresh() file_hashes = {} end

-- Every file under a directory, sorted, as paths relative to it.
local function files_under(dir, prefix, out)
  for _, name in ipairs(base.list_dir(dir) or {}) do
    local path = dir .. "/" .. name
    if base.is_dir(path) then
      files_under(path, prefix .. name .. "/", out)
    elseif name:match "%.lua$" then
      out[#out + 1] = { name = prefix .. name, path = path }
    end
  end
  return out
end

local version
---The code version: a hash of perilune's C sources (noted at build) and of all its Lua files.
---@return string hex
function hash.code_version()
  if not version then
    local sum = base.sha256_new()
    local c_sources = base.source_hash
    sum:add(type(c_sources) == "function" and c_sources() or tostring(c_sources))
    for _, file in ipairs(files_under(root .. "perilune", "", {})) do
      local text = assert(base.read_file(file.path))
      sum:add(("\n%s %d\n"):format(file.name, #text))
      sum:add(text)
    end
    version = sum:hex()
  end
  return version
end

---The hash of a file's bytes, read in pieces.
---@param path string
---@return string|nil hex
---@return string|nil message
function hash.file(path)
  local file, message = io.open(path, "rb")
  if not file then return nil, message end
  local sum = base.sha256_new()
  for piece in file:lines(1 << 20) do sum:add(piece) end
  file:close()
  return sum:hex()
end

-- The model files of a directory, what tells that one has changed, and the time of the last change; nil and
-- a message where they cannot be looked at.
local function model_files(dir)
  local names, marks, last = {}, {}, 0
  local list, message = base.list_dir(dir)
  if not list then return nil, message end
  for _, name in ipairs(list) do
    if name:match "%.json$" or name:match "%.safetensors$" then
      local s, missing = base.stamp(dir .. "/" .. name)
      if not s then return nil, missing end
      names[#names + 1] = name
      marks[#marks + 1] = ("%s %d %d %d %d"):format(name, s.size, s.inode, s.mtime_ns, s.ctime_ns)
      last = math.max(last, s.ctime_ns)
    end
  end
  return names, table.concat(marks, "\n"), last / 1e9
end

-- Clocks of file systems tick: two changes closer than this (seconds) may look like one.
local TICK = 0.1

local directories = {} -- path -> {mark, hex}
---The hash of a model directory's bytes (*.json, *.safetensors): its identity without
---loading it. Files that did not change since are not read again.
---@param dir string
---@return string|nil hex
---@return string|nil message why the directory or a file of it cannot be read, as while it is replaced
function hash.model_dir(dir)
  local names, mark, last = model_files(dir)
  if not names then return nil, mark end
  local known = directories[dir]
  if known and known.mark == mark then return known.hex end
  local settled = base.walltime() > last + TICK
  local sum = base.sha256_new()
  for _, name in ipairs(names) do
    local hex, message = hash.file(dir .. "/" .. name)
    if not hex then return nil, message end
    sum:add(name .. " " .. hex .. "\n")
  end
  directories[dir] = settled and { mark = mark, hex = sum:hex() } or nil
  return sum:hex()
end

return hash
