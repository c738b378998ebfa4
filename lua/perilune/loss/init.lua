--- Preference losses by name: pl.loss.dpo, pl.loss.ipo, ... One loss a file, named as the
--- file; a new file beside this one is a new loss. A definition is
---
---   { name =, aliases =, formula =, source =, options =, t0 = function(o) .. end,
---     pairs = function(p, o) return tensor [pairs] end }
---
--- and can be called: pl.loss.dpo(p, { beta = 0.1 }), with p as in loss/pairs.lua or a
--- table of its fields. t0 is the value where policy equals reference, nil where
--- the loss reads no reference.
local base = require("perilune.core").base
local options = require "perilune.options"

local loss = {}

local NOT_LOSSES = { init = true, pairs = true }

local function directory()
  return (assert(package.searchpath("perilune.loss", package.path)):gsub("[^/]*$", ""))
end

-- Name and aliases of every loss -> file name; read from the directory once.
local index

local function names_index()
  if not index then
    index = {}
    for _, file in ipairs(assert(base.list_dir(directory()))) do
      local name = file:match "^([%w_]+)%.lua$"
      if name and not NOT_LOSSES[name] then
        index[name] = name
        for _, alias in ipairs(require("perilune.loss." .. name).aliases or {}) do
          index[alias] = name
        end
      end
    end
  end
  return index
end

local definition = {}

-- The mean is the trainer's; a definition gives one number a pair.
function definition.__call(def, p, given)
  local o = options.resolve("loss." .. def.name, def.options, given or {})
  if getmetatable(p) == nil then
    p = require("perilune.loss.pairs").new(p)
  end
  return def.pairs(p, o)
end

function definition.__tostring(def)
  local out = { ("loss %s: %s   (%s)"):format(def.name, def.formula, def.source) }
  for _, line in ipairs(options.describe(def.options)) do
    out[#out + 1] = "  " .. line
  end
  return table.concat(out, "\n")
end

---The definition of a name or alias; an error suggests the nearest.
---@param name string
---@param where string? what the error starts with
---@return table definition
function loss.find(name, where)
  local file
  if type(name) == "string" and name:find "^[%w_]+$" and not NOT_LOSSES[name] then
    file = package.searchpath("perilune.loss." .. name, package.path) and name or names_index()[name]
  end
  if not file then
    local names = {}
    for known in pairs(names_index()) do
      names[#names + 1] = known
    end
    error(("%s: %s"):format(where or "loss", options.unknown("loss", tostring(name), names)), 0)
  end
  local def = require("perilune.loss." .. file)
  return getmetatable(def) and def or setmetatable(def, definition)
end

---All names, without aliases, sorted.
---@return string[]
function loss.names()
  local names = {}
  for name, file in pairs(names_index()) do
    if name == file then
      names[#names + 1] = name
    end
  end
  table.sort(names)
  return names
end

return setmetatable(loss, {
  __index = function(_, name)
    return loss.find(name)
  end,
})
