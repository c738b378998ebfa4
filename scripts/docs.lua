--- Writes lua/meta/*.lua, the stubs for the Lua language server, out of op rows
--- and binding tables. With --check it writes nothing and fails where a file
--- differs. Usage: ./perilune scripts/docs.lua [--check]
local core = require "perilune.core"

local types = {
  tensor = "perilune.Tensor|number", ["tensor?"] = "perilune.Tensor|number|nil",
  tensors = "perilune.Tensor[]", ids = "perilune.Tensor|integer[]", pos = "perilune.Tensor|integer[]",
  mask = "perilune.Tensor", dim = "integer", ["dim?"] = "integer|nil", dims = "integer|integer[]|nil",
  index = "integer", shape = "integer|integer[]", int = "integer", ["int?"] = "integer|nil",
  num = "number", bool = "boolean", dtype = "perilune.dtype", list = "table", ["function"] = "function",
  any = "any",
}

-- "x: tensor, dim: dim = -1" to a list of {name, kind, default}.
local function params(row)
  local list = {}
  local flat = row.params:gsub("%b{}", function(s) return (s:gsub(",", "\1"):gsub(":", "\2")) end)
  for part in flat:gmatch "[^,]+" do
    part = part:gsub("\1", ","):gsub("\2", ":"):gsub("^%s+", "")
    local name, kind, default = part:match "^([%w_]+):%s*([%w?]+)%s*=?%s*(.*)$"
    if name then
      list[#list + 1] = { name = name, kind = kind, default = default ~= "" and default or nil }
    elseif part:match "^opts:" then
      list[#list + 1] = { name = "opts", kind = "opts", doc = part:match "%b{}" }
    else
      list[#list + 1] = { name = "...", kind = "any" }
    end
  end
  return list
end

-- "Tensor[, Positions]": the part in brackets comes with some arguments only.
local function returns(row)
  local list = {}
  local function add(words, suffix)
    for word in words:gmatch "[^, ]+" do
      local kind = (word == "Tensor" or word == "Positions") and "perilune.Tensor" or word
      list[#list + 1] = kind .. suffix
    end
  end
  local always, sometimes = row.ret:match "^(.-)%[, (.-)%]$"
  add(always or row.ret, "")
  if sometimes then add(sometimes, "|nil") end
  return list
end

local function wrap(out, text)
  local line = "---"
  for word in text:gmatch "%S+" do
    if #line + #word + 1 > 98 and line ~= "---" then
      out[#out + 1] = line
      line = "---"
    end
    line = line .. (line == "---" and "" or " ") .. word
  end
  out[#out + 1] = line
end

local function emit(out, row, owner, method)
  out[#out + 1] = ""
  wrap(out, row.doc)
  local names = {}
  local list = params(row)
  local first = method and 2 or 1
  local varargs = false
  for i = first, #list do
    local p = list[i]
    if varargs then
      break
    elseif p.kind == "shape" or p.name == "..." then
      -- sizes may be several arguments; what follows them is then part of ...
      local rest = {}
      for j = i + 1, #list do rest[#rest + 1] = list[j].name .. (list[j].doc and " " .. list[j].doc or "") end
      out[#out + 1] = ("---@param ... %s %s"):format(#rest > 0 and "integer|integer[]|number|table" or types[p.kind],
        p.kind == "shape" and "sizes" .. (#rest > 0 and ", then " .. table.concat(rest, ", ") or "") or "arguments")
      names[#names + 1] = "..."
      varargs = true
    elseif p.kind == "opts" then
      out[#out + 1] = ("---@param opts? table %s"):format(p.doc)
      names[#names + 1] = "opts"
    else
      local kind = types[p.kind]
      local optional = p.default or kind:find "|nil$" or p.kind == "dims"
      kind = kind:gsub("|nil$", "")
      out[#out + 1] = ("---@param %s%s %s%s"):format(p.name, optional and "?" or "", kind,
        p.default and " default " .. p.default or "")
      names[#names + 1] = p.name
    end
  end
  for _, kind in ipairs(returns(row)) do
    if kind ~= "nil" then out[#out + 1] = "---@return " .. kind end
  end
  out[#out + 1] = ("function %s%s%s(%s) end"):format(owner, method and ":" or ".", row.name, table.concat(names, ", "))
end

local function sorted(rows)
  table.sort(rows, function(a, b) return a.name < b.name end)
  return rows
end

local function head(module, what)
  return {
    "---@meta " .. module,
    ("--- %s For the language server only; written by scripts/docs.lua (make docs)."):format(what),
    ('error "this file describes %s to the language server; it is not to be required"'):format(module),
  }
end

local function tensor_file(rows)
  local out = head("perilune.Tensor", "The methods of a tensor.")
  out[#out + 1] = ""
  out[#out + 1] = '---@alias perilune.dtype "f32"|"f64"|"bf16"|"i32"|"i64"|"bool"'
  out[#out + 1] = ""
  out[#out + 1] = "---@class perilune.Tensor"
  out[#out + 1] = "---@field grad perilune.Tensor|nil what backward has gathered; may be set"
  out[#out + 1] = "---@field name string|nil of a parameter; may be set"
  out[#out + 1] = "---@field requires_grad boolean"
  out[#out + 1] = "---@field [integer] perilune.Tensor|number x[i]: a view of one dim less, negative from the end"
  for _, op in ipairs { "add", "sub", "mul", "div", "pow" } do
    out[#out + 1] = ("---@operator %s(perilune.Tensor|number): perilune.Tensor"):format(op)
  end
  out[#out + 1] = "---@operator unm: perilune.Tensor"
  out[#out + 1] = "---@operator len: integer"
  out[#out + 1] = "local Tensor = {}"
  for _, row in ipairs(rows) do
    if row.is_method then emit(out, row, "Tensor", true) end
  end
  return table.concat(out, "\n") .. "\n"
end

local function functions_file(rows)
  local out = head("perilune.functions", "The tensor functions of the public table.")
  out[#out + 1] = ""
  out[#out + 1] = "---@class perilune"
  out[#out + 1] = "local pl = {}"
  for _, row in ipairs(rows) do
    if row.is_function then emit(out, row, "pl", false) end
  end
  return table.concat(out, "\n") .. "\n"
end

local rows = sorted(core.tensor.op_rows())
for _, row in ipairs(rows) do
  assert(row.doc and #row.doc > 5, row.name .. ": a row without a text")
end
local root = core.base.realpath(arg[0]):match "^(.*)/scripts/[^/]+$"
local files = {
  ["lua/meta/tensor.lua"] = tensor_file(rows),
  ["lua/meta/functions.lua"] = functions_file(rows),
}
local check = arg[1] == "--check"
local stale = {}
for name, text in pairs(files) do
  local path = root .. "/" .. name
  if core.base.read_file(path) ~= text then
    stale[#stale + 1] = name
    if not check then
      assert(core.base.mkdirs(root .. "/lua/meta"))
      assert(core.base.write_file(path, text))
    end
  end
end
table.sort(stale)
if check then
  if #stale > 0 then
    io.stderr:write("not what the op rows say: ", table.concat(stale, ", "), " (run: make docs)\n")
    os.exit(1)
  end
  print(("%d rows, %d files: up to date"):format(#rows, 2))
else
  print(#stale > 0 and "written: " .. table.concat(stale, ", ") or "nothing to do")
end
