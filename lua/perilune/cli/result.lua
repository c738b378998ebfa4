--- What a recipe returned, as text for people: claims, arms and other lists of rows
--- as aligned tables, the rest as `key: value` lines.
local columns = require "perilune.study.columns"
local render = require("perilune.cli.table").render

local function table_of(rows)
  local titles, cells = columns.of(rows)
  return render(titles, cells)
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
  if type(result) ~= "table" then return columns.show(result) end
  if columns.is_rows(result) then return table_of(result) end
  local tables, lines, notes = {}, {}, {}
  for _, key in ipairs(keys_of(result)) do
    local value = result[key]
    if columns.is_rows(value) then
      tables[#tables + 1] = tostring(key):gsub("_", " ") .. "\n" .. table_of(value)
    elseif key == "notes" and type(value) == "table" then
      for _, note in ipairs(value) do notes[#notes + 1] = note end
    else
      lines[#lines + 1] = ("%s: %s"):format(key, columns.show(value))
    end
  end
  local parts = tables
  if #lines > 0 then parts[#parts + 1] = table.concat(lines, "\n") end
  if #notes > 0 then parts[#parts + 1] = table.concat(notes, "\n") end
  return table.concat(parts, "\n\n")
end
