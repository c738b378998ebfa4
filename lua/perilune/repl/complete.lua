--- Completion: names of the session, fields and methods, keywords, file names
--- inside strings, option keys inside a call. It walks tables with a hop limit,
--- never runs user code and never raises.
local base = require("perilune.core").base
local options = require "perilune.options"

local complete = {}

local env = _G
local HOPS = 20
local keywords = {
  "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in",
  "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
}

---@param session table where names are looked up
function complete.use(session)
  env = session
end

-- The tables that hold v's fields, nearest first. __index functions are user
-- code and not called; our own types say what they have.
local function holders(v)
  local found = {}
  for _ = 1, HOPS do
    if type(v) == "table" then found[#found + 1] = v end
    local mt = debug.getmetatable(v)
    if type(mt) ~= "table" then break end
    if type(rawget(mt, "__methods")) == "table" then
      found[#found + 1] = mt.__methods
      break
    end
    local index = rawget(mt, "__index")
    if type(index) ~= "table" or index == v then break end
    v = index
  end
  return found
end

local function is_public_table(v)
  local mt = debug.getmetatable(v)
  return type(mt) == "table" and rawget(mt, "__name") == "perilune" and mt.__names or nil
end

local function field(v, key)
  if is_public_table(v) then
    local ok, found = pcall(function() return v[key] end) -- loads one of our own modules
    return ok and found or nil
  end
  for _, t in ipairs(holders(v)) do
    local found = rawget(t, key)
    if found ~= nil then return found end
  end
  return nil
end

local function lookup(path)
  local v
  local first = true
  for name in path:gmatch "[%a_][%w_]*" do
    if first then
      v = rawget(env, name)
      if v == nil then v = rawget(_G, name) end
      first = false
    else
      v = field(v, name)
    end
    if v == nil then return nil end
  end
  return v
end

local function add_fields(list, v, prefix, only_functions)
  local names = is_public_table(v)
  if names then
    for _, k in ipairs(names(v)) do
      if k:sub(1, #prefix) == prefix then list[#list + 1] = k end
    end
    return
  end
  for _, t in ipairs(holders(v)) do
    for k, x in next, t do
      if type(k) == "string" and k:sub(1, #prefix) == prefix and k:find "^[%a_][%w_]*$"
        and (not only_functions or type(x) == "function") and (k:sub(1, 1) ~= "_" or prefix ~= "") then
        list[#list + 1] = k
      end
    end
  end
end

-- File names that continue what stands in an open string.
local function add_files(list, start)
  local dir, prefix = start:match "^(.*/)([^/]*)$"
  if not dir then dir, prefix = "", start end
  local names = base.list_dir(dir == "" and "." or dir)
  for _, name in ipairs(names or {}) do
    if name:sub(1, #prefix) == prefix and (name:sub(1, 1) ~= "." or prefix ~= "") then
      list[#list + 1] = base.is_dir(dir .. name) and name .. "/" or name
    end
  end
  return prefix
end

-- The text of the open string that the line ends in, or nil.
local function open_string(line)
  local quote, start
  local i = 1
  while i <= #line do
    local c = line:sub(i, i)
    if quote then
      if c == "\\" then i = i + 1 elseif c == quote then quote = nil end
    elseif c == '"' or c == "'" then
      quote, start = c, i + 1
    end
    i = i + 1
  end
  return quote and line:sub(start) or nil
end

-- The function whose options table { ... the line ends in, as it is written.
local function open_call(line)
  local depth, i = 0, #line
  local seen_brace = false
  while i >= 1 do
    local c = line:sub(i, i)
    if c == ")" or c == "}" or c == "]" then
      depth = depth + 1
    elseif c == "(" or c == "{" or c == "[" then
      if depth > 0 then
        depth = depth - 1
      elseif c == "{" and not seen_brace then
        seen_brace = true
        local direct = line:sub(1, i - 1):match "([%a_][%w_.:]*)%s*$"
        if direct then return direct end
      elseif c == "(" and seen_brace then
        return line:sub(1, i - 1):match "([%a_][%w_.:]*)%s*$"
      else
        return nil
      end
    end
    i = i - 1
  end
  return nil
end

local function add_options(list, called, prefix)
  local name = called:match "[%a_][%w_]*$"
  local keys = {}
  for _, row in ipairs(require("perilune.help").rows(name)) do
    local opts = row.params:match "opts: {(.-)}"
    for key in (opts or ""):gmatch "([%a_]+)%s*[=,]?" do
      keys[key] = key ~= "false" and key ~= "true" or nil
    end
    for value in (opts or ""):gmatch '"(%w+)"' do keys[value] = nil end
  end
  for where, spec in pairs(options.seen) do
    if where == name or where:match "[%a_][%w_]*$" == name then
      for key in pairs(spec) do keys[key] = true end
    end
  end
  for key in pairs(keys) do
    if key:sub(1, #prefix) == prefix then list[#list + 1] = key .. " = " end
  end
end

---Everything that may follow the text before the cursor.
---@param line string
---@return string[] candidates sorted
---@return string prefix what of them is typed already
function complete.candidates(line)
  local list, prefix = {}, ""
  local text = open_string(line)
  if text then
    prefix = add_files(list, text)
  else
    local path, sep, word = line:match "([%a_][%w_.]*)([.:])([%w_]*)$"
    if path then
      prefix = word
      local v = lookup(path)
      if v ~= nil then add_fields(list, v, word, sep == ":") end
    else
      prefix = line:match "[%a_][%w_]*$" or ""
      local called = open_call(line)
      if called then add_options(list, called, prefix) end
      if prefix ~= "" then
        add_fields(list, env, prefix)
        if env ~= _G then add_fields(list, _G, prefix) end
        for _, k in ipairs(keywords) do
          if k:sub(1, #prefix) == prefix then list[#list + 1] = k end
        end
        if line:find "^%s*%?" then add_fields(list, require "perilune", prefix) end
      end
    end
  end
  table.sort(list)
  local unique = {}
  for _, name in ipairs(list) do
    if unique[#unique] ~= name then unique[#unique + 1] = name end
  end
  return unique, prefix
end

local function columns(list)
  local width, widest = base.term_width(), 0
  for _, name in ipairs(list) do widest = math.max(widest, #name + 2) end
  local per = math.max(1, width // math.max(1, widest))
  local lines, shown = {}, math.min(#list, 200)
  for i = 1, shown, per do
    local row = {}
    for j = i, math.min(i + per - 1, shown) do row[#row + 1] = ("%-" .. widest .. "s"):format(list[j]) end
    lines[#lines + 1] = (table.concat(row):gsub("%s+$", ""))
  end
  if shown < #list then lines[#lines + 1] = ("... %d more"):format(#list - shown) end
  return table.concat(lines, "\n")
end

---For the line editor: what to insert, and what to list when it is not decided.
---@param line string the text before the cursor
---@return string insert
---@return string|nil list
function complete.edit(line)
  local found, prefix = complete.candidates(line)
  if #found == 0 then return "", nil end
  local common = found[1]
  for _, name in ipairs(found) do
    while name:sub(1, #common) ~= common do common = common:sub(1, -2) end
  end
  local insert = common:sub(#prefix + 1)
  if insert ~= "" or #found == 1 then return insert, nil end
  return "", columns(found)
end

return complete
