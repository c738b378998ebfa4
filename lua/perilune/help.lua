--- pl.help and the session's ?name: signature, text and example of a function,
--- out of op rows, binding tables, or the comment above a Lua function.
local core = require "perilune.core"
local options = require "perilune.options"

local help = {}

---The rows (op rows and binding tables) with this name.
---@param name string
---@return table[]
function help.rows(name)
  local found = {}
  for _, row in ipairs(core.tensor.op_rows()) do
    if row.name == name then found[#found + 1] = row end
  end
  return found
end

local words = {
  ["tensor?"] = "tensor or nil", tensors = "list of tensors", ids = "token ids (0-based)",
  pos = "positions (from 1)", mask = "bool tensor", dim = "dim (from 1 or -1)",
  ["dim?"] = "dim (from 1 or -1) or nil", dims = "dim, list of dims or nil",
  index = "position (from 1 or -1)", shape = "sizes", int = "integer", ["int?"] = "integer or nil",
  num = "number", bool = "boolean", dtype = "dtype",
}

-- The text above a definition: its --- lines, without annotations it cannot explain.
local function comment_above(lines, first)
  local block = {}
  local i = first - 1
  while i >= 1 and lines[i]:find "^%s*%-%-" do
    table.insert(block, 1, (lines[i]:gsub("^%s*%-%-+%s?", "")))
    i = i - 1
  end
  for k, line in ipairs(block) do
    block[k] = line:gsub("^@param ", "  "):gsub("^@return ", "  returns "):gsub("^@%a+.*", "")
  end
  return block
end

local function source_lines(f)
  local info = debug.getinfo(f, "S")
  if info.what == "C" or info.source:sub(1, 1) ~= "@" then return nil, info end
  local text = core.base.read_file(info.source:sub(2))
  if not text then return nil, info end
  local lines = {}
  for line in (text .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = line end
  return lines, info
end

local function row_text(row)
  local out = {}
  local names = {}
  local flat = row.params:gsub("%b{}", function(s) return (s:gsub(",", "\0")) end)
  for part in flat:gmatch "[^,]+" do
    part = part:gsub("%z", ","):gsub("^%s+", "")
    local name, kind, default = part:match "^([%w_.]+):%s*(%b{})$"
    if not name then name, kind, default = part:match "^([%w_.]+):%s*([%w?]+)%s*=?%s*(.*)$" end
    names[#names + 1] = name or part
    if name then
      out[#out + 1] = ("  %-10s %s%s"):format(name, words[kind] or kind,
        default and default ~= "" and ", default " .. default or "")
    end
  end
  local lines = {}
  local call = table.concat(names, ", ")
  if row.is_function then lines[#lines + 1] = ("pl.%s(%s) -> %s"):format(row.name, call, row.ret) end
  if row.is_method then
    local rest = table.concat(names, ", ", 2)
    lines[#lines + 1] = ("%s:%s(%s) -> %s"):format(names[1] or "x", row.name, rest, row.ret)
  end
  lines[#lines + 1] = row.doc
  table.move(out, 1, #out, #lines + 1, lines)
  return table.concat(lines, "\n")
end

-- What a written name stands for: a row, or a value of the session.
local function resolve(name, env)
  local last = name:match "([%w_]+)$" or name
  local direct = name:match "^pl[.:]([%w_]+)$" or name:match "^[%w_]+$" or name:match "^[%w_]+:([%w_]+)$"
  if direct then
    local rows = help.rows(last)
    if #rows > 0 then return rows, nil end
  end
  local v = nil
  local first = true
  local pl = require "perilune"
  for part in name:gmatch "[%w_]+" do
    if first then
      v = rawget(env or _G, part) or rawget(_G, part)
      if v == nil and part == "pl" then
        v = pl
      elseif v == nil then
        local ok, found = pcall(function() return pl[part] end)
        v = ok and found or nil
      end
      first = false
    else
      local holder = v
      local ok, found = pcall(function() return holder[part] end)
      v = ok and found or nil
    end
    if v == nil then return nil, nil end
  end
  return nil, v
end

local function not_found(name)
  local names = {}
  for _, row in ipairs(core.tensor.op_rows()) do names[#names + 1] = row.name end
  local mt = getmetatable(require "perilune")
  for _, k in ipairs(mt.__names(require "perilune")) do names[#names + 1] = k end
  local near = options.nearest(name:match "([%w_]+)$" or name, names)
  return ("nothing is known about %s%s"):format(name, near and (" (did you mean %s?)"):format(near) or "")
end

local function function_text(name, f)
  local lines, info = source_lines(f)
  if not lines then
    return ("%s: a function %s"):format(name, info.what == "C" and "written in C" or "of the session")
  end
  local out = { (lines[info.linedefined]:gsub("^%s*local%s+", ""):gsub("^%s+", "")) }
  local block = comment_above(lines, info.linedefined)
  table.move(block, 1, #block, #out + 1, out)
  out[#out + 1] = ("(%s:%d)"):format(info.short_src, info.linedefined)
  return table.concat(out, "\n")
end

local function table_text(name, t)
  local functions, others = {}, {}
  local mt = getmetatable(t)
  for _, from in ipairs { t, type(mt) == "table" and type(mt.__index) == "table" and mt.__index or {} } do
    for k, v in pairs(from) do
      if type(k) == "string" and k:sub(1, 1) ~= "_" then
        local into = type(v) == "function" and functions or others
        into[#into + 1] = k
      end
    end
  end
  table.sort(functions)
  table.sort(others)
  local out = { name .. ":" }
  if #functions > 0 then out[#out + 1] = "  functions: " .. table.concat(functions, ", ") end
  if #others > 0 then out[#out + 1] = "  fields: " .. table.concat(others, ", ") end
  return table.concat(out, "\n")
end

---The help text for a name as it is written in Lua: "randn", "x:matmul", "pl.train.sft".
---@param name string
---@param env? table variables of the session
---@return string
function help.text(name, env)
  local rows, v = resolve(name, env)
  if rows then
    local texts = {}
    for i, row in ipairs(rows) do texts[i] = row_text(row) end
    return table.concat(texts, "\n\n")
  end
  if v == nil then return not_found(name) end
  if type(v) == "function" then return function_text(name, v) end
  local mt = getmetatable(v)
  if type(mt) == "table" and type(mt.__call) == "function" then
    return function_text(name, mt.__call) .. (type(v) == "table" and "\n" .. table_text(name, v) or "")
  end
  if type(v) == "table" then return table_text(name, v) end
  return ("%s is a %s: %s"):format(name, type(v), tostring(v))
end

---The source of a Lua function.
---@param name string
---@param env? table
---@return string
function help.source(name, env)
  local rows, v = resolve(name, env)
  if rows then
    return ("%s is written in C%s"):format(name, rows[1].is_op and ": its row is in src/autograd/" or "")
  end
  local mt = v ~= nil and getmetatable(v)
  if type(v) ~= "function" and type(mt) == "table" and type(mt.__call) == "function" then v = mt.__call end
  if type(v) ~= "function" then return v == nil and not_found(name) or ("%s is a %s"):format(name, type(v)) end
  local lines, info = source_lines(v)
  if not lines then return ("%s: no source at hand"):format(name) end
  return ("-- %s:%d\n%s"):format(info.short_src, info.linedefined,
    table.concat(lines, "\n", info.linedefined, info.lastlinedefined))
end

return setmetatable(help, {
  -- pl.help "randn" or pl.help(pl.randn)
  __call = function(_, what)
    if type(what) == "function" then
      for _, row in ipairs(core.tensor.op_rows()) do
        if core.tensor[row.name] == what then return print(row_text(row)) end
      end
      return print(function_text("function", what))
    end
    if type(what) ~= "string" then
      error("help: wants a name like \"randn\" or a function, got " .. type(what), 2)
    end
    print(help.text(what))
  end,
})
