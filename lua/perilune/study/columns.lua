--- Lists of rows as columns of text, for the report and the command line: which
--- columns, in which order, with how many digits.
local columns = {}

-- Known names in a sensible order first, any others after them by name.
local FIRST = {}
for i, name in ipairs {
  "text", "name", "label", "arm", "holds", "effect", "win_rate", "ci_low", "ci_high", "true_quality", "quality_low",
  "quality_high", "greedy_quality", "words", "no_stop", "n",
} do FIRST[name] = i end

---Whether a value is a list of rows with named fields.
---@param value any
---@return boolean
function columns.is_rows(value)
  if type(value) ~= "table" or #value == 0 then return false end
  for _, row in ipairs(value) do
    if type(row) ~= "table" or row[1] ~= nil then return false end
  end
  return true
end

local function names_of(rows)
  local seen, names = {}, {}
  for _, row in ipairs(rows) do
    for name in pairs(row) do
      if not seen[name] then
        seen[name] = true
        names[#names + 1] = name
      end
    end
  end
  table.sort(names, function(a, b)
    local ra, rb = FIRST[a] or 99, FIRST[b] or 99
    if ra ~= rb then return ra < rb end
    return tostring(a) < tostring(b)
  end)
  return names
end

-- A column with a fraction in it has the same digits everywhere.
local function digits_of(rows, name)
  local largest, fraction = 0, false
  for _, row in ipairs(rows) do
    local values = type(row[name]) == "table" and row[name] or { row[name] }
    for _, v in pairs(values) do
      if type(v) == "number" and v == v and math.abs(v) < math.huge then
        largest, fraction = math.max(largest, math.abs(v)), fraction or v % 1 ~= 0
      end
    end
  end
  if not fraction then return nil end
  return largest >= 10 and 1 or largest >= 1 and 2 or 4
end

local function show(value, digits)
  if value == nil then return "" end
  if type(value) == "number" and digits then return ("%." .. digits .. "f"):format(value) end
  if type(value) == "table" then
    local parts = {}
    for i, v in ipairs(value) do parts[i] = show(v, digits) end
    return table.concat(parts, " ")
  end
  return tostring(value)
end

---@param rows table[]
---@return string[] titles
---@return string[][] cells plain text
---@return table<integer, boolean> numeric columns of numbers
function columns.of(rows)
  local names = names_of(rows)
  local titles, cells, numeric = {}, {}, {}
  for i in ipairs(rows) do cells[i] = {} end
  for c, name in ipairs(names) do
    titles[c], numeric[c] = tostring(name):gsub("_", " "), true
    local digits = digits_of(rows, name)
    for i, row in ipairs(rows) do
      cells[i][c] = show(row[name], digits)
      if row[name] ~= nil and type(row[name]) ~= "number" then numeric[c] = false end
    end
  end
  return titles, cells, numeric
end

---One value as text.
---@param value any
---@return string
function columns.show(value)
  return show(value, math.type(value) == "float" and (math.abs(value) >= 10 and 2 or 4) or nil)
end

return columns
