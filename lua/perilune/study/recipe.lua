--- A recipe: a name, a sentence, parameters and a function. This file checks the
--- declaration, turns `key=value` words into typed parameters, and executes.
local base = require("perilune.core").base
local hash = require "perilune.study.hash"
local options = require "perilune.options"
local progress = require "perilune.study.progress"
local Run = require "perilune.study.run"
local stage = require "perilune.study.stage"
local standin = require "perilune.study.standin"

---@class perilune.study.Recipe
---@field name string
---@field doc string
---@field params table
---@field source string|nil the file it came from
---@field bytes string|nil that file's text
local Recipe = {}
Recipe.__index = Recipe
Recipe.__name = "perilune.Recipe"

local recipe = {}

-- A parameter row has a default at [1] or a type; anything else is a group of rows.
local function is_row(row) return row[1] ~= nil or type(row.type) == "string" end

-- Every recipe has it; it is no part of what identifies the study.
local BUDGET = { type = "number", min = 0,
  doc = "most dollars the study may spend on AI services, over all its runs with these parameters" }

local FIELDS = { [1] = true, doc = true, type = true, min = true, max = true, choices = true }

-- Flattens groups: "teacher.weak" -> row. Raises for what is no parameter.
local function flatten(where, params, prefix, out)
  for name, row in pairs(params) do
    local path = prefix .. tostring(name)
    if type(name) ~= "string" or not name:match "^[%a_][%w_-]*$" then
      error(("%s: parameter name %q must be letters, digits and _"):format(where, path), 0)
    end
    if type(row) ~= "table" then
      error(("%s: parameter %s must be a table such as { 0.1, doc = \"...\" }, got a %s"):format(where, path,
        type(row)), 0)
    end
    if is_row(row) then
      for field in pairs(row) do
        if not FIELDS[field] then
          error(("%s: parameter %s: %s"):format(where, path,
            options.unknown("field", field, { "doc", "type", "min", "max", "choices" })), 0)
        end
      end
      out[path] = row
    else
      flatten(where, row, path .. ".", out)
    end
  end
  return out
end

---Declares a recipe: `return pl.recipe { name =, doc =, params =, run = function(p, run) ... end }`.
---@param spec {name: string, doc: string?, params: table?, run: fun(p: table, run: perilune.study.Run): any}
---@return perilune.study.Recipe
function recipe.new(spec)
  if type(spec) ~= "table" then error("pl.recipe: needs a table, got a " .. type(spec), 2) end
  local known = { "name", "doc", "params", "run" }
  for field in pairs(spec) do
    local ok = false
    for _, name in ipairs(known) do ok = ok or name == field end
    if not ok then error("pl.recipe: " .. options.unknown("field", field, known), 2) end
  end
  if type(spec.name) ~= "string" or not spec.name:match "^%w[%w_-]*$" then
    error("pl.recipe: name must be a word of letters, digits, - and _, got " .. tostring(spec.name), 2)
  end
  if type(spec.run) ~= "function" then error("pl.recipe: run must be a function(p, run)", 2) end
  local ok, flat = pcall(flatten, "pl.recipe", spec.params or {}, "", {})
  if not ok then error(flat, 2) end
  flat.budget = flat.budget or BUDGET
  local info = debug.getinfo(spec.run, "S")
  local source = info.source:match "^@(.*)$"
  return setmetatable({
    name = spec.name, doc = spec.doc or "", params = flat, execute_body = spec.run, source = source,
    bytes = source and base.read_file(source) or nil,
  }, Recipe)
end

---@param value any
---@return boolean
function recipe.is(value) return getmetatable(value) == Recipe end

function Recipe:__tostring()
  local names = self:names()
  return ("recipe %s: %s\n  parameters: %s"):format(self.name, self.doc, table.concat(names, ", "))
end

---@return string[] full parameter names, sorted
function Recipe:names()
  local names = {}
  for name in pairs(self.params) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function kind_of(row)
  if row.type then return row.type end
  local default = row[1]
  return math.type(default) == "integer" and "integer" or type(default)
end

local TRUTH = { ["true"] = true, yes = true, on = true, ["false"] = false, no = false, off = false }

-- A word of the command line as the parameter's type.
local function typed(where, name, row, word)
  local kind = kind_of(row)
  if kind == "number" or kind == "integer" then
    local value = tonumber(word)
    if not value then error(("%s: %s must be a number, got %q"):format(where, name, word), 0) end
    return value
  elseif kind == "boolean" then
    if TRUTH[word] == nil then error(("%s: %s must be true or false, got %q"):format(where, name, word), 0) end
    return TRUTH[word]
  elseif kind == "table" then
    local list = {}
    for item in word:gmatch "[^,]+" do list[#list + 1] = tonumber(item) or item end
    return list
  end
  return word
end

-- The nearest name, also where only the group was left out ("bta" is near "dpo.beta").
function Recipe:unknown(name)
  local names = self:names()
  if not options.nearest(name, names) then
    local full = {}
    for _, known in ipairs(names) do full[known:match "[^.]+$"] = known end
    local last = {}
    for part in pairs(full) do last[#last + 1] = part end
    local near = options.nearest(name, last)
    if near then return ("unknown parameter %q (did you mean %q?)"):format(name, full[near]) end
  end
  return options.unknown("parameter", name, names)
end

---Typed parameters from `key=value` words.
---@param words string[]
---@return table<string, any> given flat: "teacher.weak" -> value
function Recipe:parse(words)
  local given = {}
  for _, word in ipairs(words) do
    local name, value = word:match "^([^=]+)=(.*)$"
    if not name then error(("%s: %q is no parameter; write key=value"):format(self.name, word), 0) end
    local row = self.params[name]
    if not row then error(("%s: %s"):format(self.name, self:unknown(name)), 0) end
    if given[name] ~= nil then error(("%s: parameter %s is given twice"):format(self.name, name), 0) end
    given[name] = typed(self.name, name, row, value)
  end
  return given
end

---Checks parameters and fills in defaults.
---@param given table<string, any> flat
---@return table nested p.teacher.weak
---@return table<string, any> flat
function Recipe:resolve(given)
  local spec = {}
  for name, row in pairs(self.params) do
    spec[name] = { row[1], type = row.type, doc = row.doc, min = row.min, max = row.max, choices = row.choices }
  end
  local flat = options.resolve(self.name, spec, given)
  local nested = {}
  for name in pairs(self.params) do               -- groups are there also where all in them is left empty
    local at, last = nested, nil
    for part in name:gmatch "[^.]+" do
      if last then
        at[last] = at[last] or {}
        at = at[last]
      end
      last = part
    end
    at[last] = flat[name]
  end
  return nested, flat
end

-- An error of the recipe: its own text, which names file and line.
local function raise(problem)
  if type(problem) == "table" and problem.message then error(problem.message, 0) end
  error(problem, 0)
end

---Runs the recipe.
---@param given? table<string, any> flat parameters ("teacher.weak")
---@return any result what the recipe's function returned
---@return perilune.study.Run run
function Recipe:run(given)
  local params, flat = self:resolve(given or {})
  hash.refresh()
  local run = Run.new(self, flat, {})
  local closing <close> = base.finally(function() run:close() end)
  local result
  local ok, problem = stage.within(run, function() result = self.execute_body(params, run) end)
  if ok then
    -- As it is stored, so that printing it does not depend on which run computed it.
    ok, problem = pcall(function()
      result = assert(base.json_decode(base.json_encode { value = result }, "result")).value
      run:finish(result)
    end)
  end
  if not ok then raise(problem) end
  if run.bill then
    progress.say(("  services: %d answers, %.4f dollars (%.4f possibly paid); perilune ledger shows more"):format(
      run.bill.answered, run.bill.paid, run.bill.possibly))
  end
  progress.say(("  report: %s/report.html"):format(run.dir))
  return result, run
end

---Runs the recipe on stand-ins: nothing is computed that is not already remembered.
---@param given? table<string, any>
---@return perilune.study.Run run its .plan lists the stages
---@return string|nil ended where the plan had to stop, and why
function Recipe:plan(given)
  local params, flat = self:resolve(given or {})
  hash.refresh()
  local run = Run.new(self, flat, { planning = true })
  local ok, problem = stage.within(run, function() self.execute_body(params, run) end)
  if ok then return run, nil end
  local cause = type(problem) == "table" and problem.message or problem
  local ended, where = standin.ended(cause)
  if not ended then raise(problem) end
  return run, ("%s: from here it depends on results"):format(where)
end

return recipe
