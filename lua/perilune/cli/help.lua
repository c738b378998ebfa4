--- perilune help [RECIPE | PROVIDER]: the commands, what a recipe does and its parameters,
--- or the options of a service's spec (help openai).
local cli = require "perilune.cli"
local find = require "perilune.cli.find"
local remote = require "perilune.ai.remote"
local text = require "perilune.cli.table"
local render = text.render

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

local function table_of(names, rows_by_name)
  local rows = {}
  for i, name in ipairs(names) do
    local row = rows_by_name[name]
    rows[i] = { name, default_of(row), (row.doc or "") .. limits(row) }
  end
  return rows
end

-- A short parameter makes the example: the first that fits on a line.
local function example(rows)
  for _, row in ipairs(rows) do
    if row[2] ~= "" and #row[2] < 20 then return (" %s=%s"):format(row[1], row[2]) end
  end
  return ""
end

---@param words string[]
return function(words)
  local service = words[1] and remote.described(words[1])
  if service then
    io.stdout:write(service.doc, "\n\n", render({ "option", "default", "" }, table_of(text.sorted(service.rows), service.rows)),
      ("\n\nexample: %s:MODEL?concurrency=64&temperature=0\n"):format(words[1]))
    return 0
  end
  if not words[1] then
    io.stdout:write(cli.usage, "\n\nrecipes: ", table.concat(find.names(), ", "), "\n")
    return 0
  end
  local recipe = find.recipe(words[1])
  local rows = table_of(recipe:names(), recipe.params)
  io.stdout:write(recipe.name, "\n", recipe.doc, "\n\n", render({ "parameter", "default", "" }, rows),
    "\n\nexample: perilune run ", words[1], example(rows), "\n")
  return 0
end
