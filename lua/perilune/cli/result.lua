--- What a recipe returned, as text for people: claims, arms and other lists of rows
--- as aligned tables, the rest as `key: value` lines.
local render = require("perilune.cli.table").render

-- Columns in a sensible order first, any others after them by name.
local ORDER = {
  "text", "name", "label", "arm", "holds", "effect", "win_rate", "ci_low", "ci_high", "true_quality", "quality_low",
  "quality_high", "greedy_quality", "words", "no_stop", "n",
}
local RANK = {}
for i, name in ipairs(ORDER) do RANK[name] = i end

local function cell(value)
  if math.type(value) == "float" then return ("%.2f"):format(value) end
  if value == nil then return "" end
  if type(value) == "table" then
    local parts = {}
    for i, v in ipairs(value) do parts[i] = math.type(v) == "float" and ("%.1f"):format(v) or tostring(v) end
    return table.concat(parts, " ")
  end
  return tostring(value)
end

local function is_rows(value)
  if type(value) ~= "table" or type(value[1]) ~= "table" then return false end
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
    local ra, rb = RANK[a] or math.huge, RANK[b] or math.huge
    if ra ~= rb then return ra < rb end
    return a < b
  end)
  return names
end

local function table_of(rows)
  local names, out = names_of(rows), {}
  for i, row in ipairs(rows) do
    out[i] = {}
    for c, name in ipairs(names) do out[i][c] = cell(row[name]) end
  end
  local titles = {}
  for c, name in ipairs(names) do titles[c] = name:gsub("_", " ") end
  return render(titles, out)
end

local function keys_of(result)
  local keys = {}
  for k in pairs(result) do keys[#keys + 1] = k end
  local first = { arms = 1, claims = 2, gains = 3, table = 4, notes = 9 }
  table.sort(keys, function(a, b)
    local ra, rb = first[a] or 5, first[b] or 5
    if ra ~= rb then return ra < rb end
    return tostring(a) < tostring(b)
  end)
  return keys
end

---@param result any
---@return string
return function(result)
  if type(result) ~= "table" then return cell(result) end
  if is_rows(result) then return table_of(result) end
  local tables, lines, notes = {}, {}, {}
  for _, key in ipairs(keys_of(result)) do
    local value = result[key]
    if is_rows(value) then
      tables[#tables + 1] = tostring(key):gsub("_", " ") .. "\n" .. table_of(value)
    elseif key == "notes" and type(value) == "table" then
      for _, note in ipairs(value) do notes[#notes + 1] = note end
    else
      lines[#lines + 1] = ("%s: %s"):format(key, cell(value))
    end
  end
  local parts = tables
  if #lines > 0 then parts[#parts + 1] = table.concat(lines, "\n") end
  if #notes > 0 then parts[#parts + 1] = table.concat(notes, "\n") end
  return table.concat(parts, "\n\n")
end
