--- Finds a recipe by name (those that come with perilune) or by file.
local base = require("perilune.core").base
local cli = require "perilune.cli"
local options = require "perilune.options"
local study = require "perilune.study"

local find = {}

local folder = debug.getinfo(1, "S").source:match "^@(.*)cli/find%.lua$" .. "recipes"

---@return string[] names, sorted
function find.names()
  local names = {}
  for _, file in ipairs(base.list_dir(folder) or {}) do
    local name = file:match "^(.*)%.lua$"
    if name then names[#names + 1] = name end
  end
  return names
end

-- Makes a recipe out of a file; an error in it names file and line.
local function load_file(path)
  local chunk, message = loadfile(path, "t")
  if not chunk then error(message, 0) end
  local ok, value = xpcall(chunk, function(problem)
    return type(problem) == "string" and problem or tostring(problem)
  end)
  if not ok then
    -- `return pl.recipe { ... }` is a tail call: its errors have no line to tell
    error(value:find(path, 1, true) and value or ("%s: %s"):format(path, value), 0)
  end
  if not study.is_recipe(value) then
    error(("%s: is no recipe: the file must end with `return pl.recipe { ... }`, it returned a %s"):format(path,
      type(value)), 0)
  end
  return value
end

---@param what string|nil a name or a path
---@return perilune.study.Recipe
function find.recipe(what)
  if not what then cli.misuse "which recipe? a name (see `perilune recipes`) or a file" end
  if what:match "%.lua$" or what:find("/", 1, true) then
    if not base.exists(what) then error(what .. ": no such file", 0) end
    return load_file(what)
  end
  for _, name in ipairs(find.names()) do
    if name == what then return load_file(folder .. "/" .. name .. ".lua") end
  end
  cli.misuse(options.unknown("recipe", what, find.names()))
end

---A recipe and its parameters from the words of a command. Misspelt ones are a wrong call.
---@param words string[]
---@return perilune.study.Recipe
---@return table<string, any> given
function find.call(words)
  local recipe = find.recipe(words[1])
  local ok, given = pcall(recipe.parse, recipe, table.move(words, 2, #words, 1, {}))
  if not ok then cli.misuse(given) end
  local fine, message = pcall(recipe.resolve, recipe, given)
  if not fine then cli.misuse(message) end
  return recipe, given
end

return find
