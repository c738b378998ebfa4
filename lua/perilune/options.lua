--- Named options: one table per function, checked against its spec. An unknown
--- key is an error that suggests the nearest name; a wrong type or value names
--- the option, what came and what was wanted. It must not know any option.
---
--- A spec row: lr = { 1e-5, doc = "...", min = 0, max =, choices = {...}, type = "number" }
--- [1] is the default; without one the row needs a type. Types: number, integer,
--- boolean, string, table, function, any, or several joined by "|".
local options = {
  ---specs by the name of the function that resolved them, for completion
  ---@type table<string, table>
  seen = {},
}

-- Levenshtein distance with adjacent transpositions, case ignored.
local function distance(a, b)
  a, b = a:lower(), b:lower()
  local before, last = {}, {}
  for j = 0, #b do last[j] = j end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        row[j] = math.min(row[j], before[j - 2] + 1)
      end
    end
    before, last = last, row
  end
  return last[#b]
end

---The entry of a list that a misspelt name most likely meant.
---@param name string
---@param list string[]
---@return string|nil # nil when nothing is near
function options.nearest(name, list)
  local best, best_d
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  for _, candidate in ipairs(sorted) do
    local d = distance(name, candidate)
    if candidate:sub(1, #name) == name and #name >= 2 then d = math.min(d, 1) end
    if not best_d or d < best_d then best, best_d = candidate, d end
  end
  local limit = #name < 3 and 0 or math.min(3, (#name + 1) // 3)
  if best and best_d <= limit then return best end
  return nil
end

---"unknown option "sede" (did you mean "seed"?)" or, with nothing near, the list.
---@param what string "option", "command", ...
---@param name any
---@param list string[]
---@return string
function options.unknown(what, name, list)
  local near = options.nearest(tostring(name), list)
  if near then return ('unknown %s "%s" (did you mean "%s"?)'):format(what, tostring(name), near) end
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  if #sorted == 0 then return ('unknown %s "%s" (there are none)'):format(what, tostring(name)) end
  return ('unknown %s "%s" (known: %s)'):format(what, tostring(name), table.concat(sorted, ", "))
end

local function show(v)
  if type(v) == "string" then return ("%q"):format(#v > 60 and v:sub(1, 57) .. "..." or v) end
  if type(v) == "number" or type(v) == "boolean" or v == nil then return tostring(v) end
  return "a " .. type(v)
end

local function type_of(row)
  if row.type then return row.type end
  local default = row[1]
  if default == nil then return "any" end
  return math.type(default) == "integer" and "integer" or type(default)
end

local function fits(v, kind)
  if kind == "any" then return true end
  if kind == "integer" then return math.type(v) == "integer" or (type(v) == "number" and v % 1 == 0) end
  if kind == "function" then
    local mt = getmetatable(v)
    return type(v) == "function" or (type(mt) == "table" and mt.__call ~= nil)
  end
  return type(v) == kind
end

-- A value that passed, or an error that says what was wanted.
local function checked(where, key, row, v)
  local kinds, ok = type_of(row), false
  for kind in kinds:gmatch("[^|]+") do
    if fits(v, kind) then
      ok = true
      if kind == "integer" then v = math.tointeger(v) end
      break
    end
  end
  if not ok then
    error(("%s: option %s must be %s, got %s"):format(where, key, kinds:gsub("|", " or "), show(v)), 0)
  end
  if type(v) == "number" then
    if v ~= v then error(("%s: option %s must not be NaN"):format(where, key), 0) end
    if row.min and v < row.min then
      error(("%s: option %s must be at least %s, got %s"):format(where, key, row.min, v), 0)
    end
    if row.max and v > row.max then
      error(("%s: option %s must be at most %s, got %s"):format(where, key, row.max, v), 0)
    end
  end
  if row.choices and type(v) == "string" then
    local found = false
    for _, c in ipairs(row.choices) do found = found or c == v end
    if not found then
      error(("%s: option %s: %s"):format(where, key, options.unknown("choice", v, row.choices)), 0)
    end
  end
  return v
end

local function keys(spec)
  local list = {}
  for k in pairs(spec) do list[#list + 1] = k end
  return list
end

-- Raises with the place where the user called the function that resolves its options.
local function raise(message)
  local level = 3
  while true do
    local info = debug.getinfo(level, "Sl")
    if not info then break end
    if info.currentline > 0 and not info.source:find("lua/perilune/", 1, true) then
      message = ("%s:%d: %s"):format(info.short_src, info.currentline, message)
      break
    end
    level = level + 1
  end
  error(message, 0)
end

local function resolve(where, spec, given, extra)
  options.seen[where] = spec
  if given ~= nil and type(given) ~= "table" then
    error(("%s: options must be a table, got %s"):format(where, show(given)), 0)
  end
  local out = {}
  for key, v in pairs(given or {}) do
    local row = spec[key]
    if row then
      out[key] = checked(where, key, row, v)
    elseif extra then
      extra[key] = v
    else
      error(("%s: %s"):format(where, options.unknown("option", key, keys(spec))), 0)
    end
  end
  for key, row in pairs(spec) do
    if out[key] == nil then out[key] = row[1] end
  end
  return out
end

---Checks `given` against `spec` and fills in the defaults.
---@param where string name of the function, as the user wrote it: "train.sft"
---@param spec table<string, table>
---@param given table|nil
---@return table
function options.resolve(where, spec, given)
  local ok, result = pcall(resolve, where, spec, given)
  if not ok then raise(result) end
  return result
end

---As resolve, but keys that the spec does not know come back on their own.
---@param where string
---@param spec table<string, table>
---@param given table|nil
---@return table resolved
---@return table extra
function options.extra(where, spec, given)
  local extra = {}
  local ok, result = pcall(resolve, where, spec, given, extra)
  if not ok then raise(result) end
  return result, extra
end

---One line for each option of a spec, sorted, for help texts.
---@param spec table<string, table>
---@return string[]
function options.describe(spec)
  local list = keys(spec)
  table.sort(list)
  local out = {}
  for i, key in ipairs(list) do
    local row = spec[key]
    local default = row[1] ~= nil and " = " .. show(row[1]) or ""
    out[i] = ("%s: %s%s%s"):format(key, type_of(row), default, row.doc and "  -- " .. row.doc or "")
  end
  return out
end

return options
