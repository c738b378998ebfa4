--- perilune help [RECIPE]: the commands, or what a recipe does and its parameters.
local cli = require "perilune.cli"
local find = require "perilune.cli.find"
local render = require("perilune.cli.table").render

local function default_of(row)
  local value = row[1]
  if value == nil then return "" end
  if type(value) == "table" then return table.concat(value, ",") end
  return tostring(value)
end

local function limits(row)
  local parts = {}
  if row.choices then parts[1] = "one of " .. table.concat(row.choices, ", ") end
  if row.min then parts[#parts + 1] = "at least " .. tostring(row.min) end
  if row.max then parts[#parts + 1] = "at most " .. tostring(row.max) end
  return #parts > 0 and (" (" .. table.concat(parts, ", ") .. ")") or ""
end

---@param words string[]
return function(words)
  if not words[1] then
    io.stdout:write(cli.usage, "\n\nrecipes: ", table.concat(find.names(), ", "), "\n")
    return 0
  end
  local recipe = find.recipe(words[1])
  local rows = {}
  for i, name in ipairs(recipe:names()) do
    local row = recipe.params[name]
    rows[i] = { name, default_of(row), (row.doc or "") .. limits(row) }
  end
  io.stdout:write(recipe.name, "\n", recipe.doc, "\n\n", render({ "parameter", "default", "" }, rows),
    "\n\nexample: perilune run ", words[1], rows[1] and (" %s=%s"):format(rows[1][1], rows[1][2]) or "", "\n")
  return 0
end
