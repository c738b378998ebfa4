--- Values that stand for what a stage would return, so that `perilune plan` can
--- run a recipe without computing anything. They can be handed on, indexed and
--- calculated with; asking one for a fact (comparing, calling, counting) ends the
--- plan, for from there the recipe depends on results.
local standin = {}

local root = debug.getinfo(1, "S").source:match "^@(.*)study/standin%.lua$" or ""

-- The user's line: the first one outside perilune's own files (its recipes are users, too).
local function place()
  for level = 3, 60 do
    local info = debug.getinfo(level, "Sl")
    if not info then break end
    local path = info.source:match "^@(.*)$"
    if path and info.currentline > 0 then
      local inside = root ~= "" and path:sub(1, #root) == root and path:sub(#root + 1)
      if not inside or inside:match "^recipes/" then return ("%s:%d"):format(info.short_src, info.currentline) end
    end
  end
  return "?"
end

local End = { __tostring = function(e) return ("%s: from here it depends on results (%s)"):format(e.where, e.what) end }

local function stop(what)
  error(setmetatable({ plan_end = true, where = place(), what = what }, End), 0)
end

---Whether an error value is the end of a plan; library functions that met a stand-in count.
---@param problem any
---@return boolean ended
---@return string where
function standin.ended(problem)
  if getmetatable(problem) == End then return true, problem.where end
  if type(problem) == "string" and problem:find("stand-in", 1, true) then
    return true, problem:match "^(.-:%d+):" or "?"
  end
  return false, ""
end

local Unknown = { __name = "stand-in", __standin = true }
local names = setmetatable({}, { __mode = "k" })
local facts = setmetatable({}, { __mode = "k" })

local function make(name, known)
  local value = setmetatable({}, Unknown)
  names[value], facts[value] = name, known or {}
  return value
end

function Unknown.__index(t, k)
  local known = facts[t][k]
  if known ~= nil then return known end
  if type(k) ~= "string" then
    local rows = facts[t].__rows
    if rows and math.type(k) == "integer" then
      if k < 1 or k > rows then return nil end
      return facts[t].__row(k)
    end
    stop(("%s[%s] is read"):format(names[t], tostring(k)))
  end
  return make(names[t] .. "." .. k)
end

function Unknown.__len(t)
  local rows = facts[t].__rows
  if rows then return rows end
  stop(("the size of %s is read"):format(names[t]))
end

local function result() return make "a result" end
for _, op in ipairs { "add", "sub", "mul", "div", "mod", "pow", "unm", "idiv" } do Unknown["__" .. op] = result end
local ASKED = { eq = "compared", lt = "compared", le = "compared", concat = "made into text", pairs = "listed" }
for op, words in pairs(ASKED) do
  Unknown["__" .. op] = function(a, b)
    stop(("%s is %s"):format(names[a] or names[b] or "a result", words))
  end
end
function Unknown.__call(t) stop(("%s is called"):format(names[t])) end
function Unknown.__tostring(t) return "stand-in for " .. names[t] end

---@param value any
---@return boolean
function standin.is(value) return getmetatable(value) == Unknown end

---@param value any
---@return "model"|"dataset"|nil
function standin.kind(value) return standin.is(value) and facts[value].__kind or nil end

---A value of which nothing is known.
---@param name string
---@return table
function standin.unknown(name) return make(name) end

---A model without weights; `like` may tell what is known of it (config, tokenizer).
---@param name string
---@param like? table
---@return table
function standin.model(name, like)
  local known = { history = {}, __kind = "model" }
  if like then
    known.config, known.tokenizer, known.generation_config = like.config, like.tokenizer, like.generation_config
    known.num_parameters = like.num_parameters
  end
  return make(name, known)
end

---A dataset of the right size.
---@param name string
---@param rows table[] what is known of each row; the rest of a row is unknown
---@return table
function standin.dataset(name, rows)
  local list = {}
  for i, row in ipairs(rows) do list[i] = standin.is(row) and row or make(name .. " row", row) end
  local known = { __rows = #list, __row = function(i) return list[i] end, counts = make(name .. ".counts"),
    __kind = "dataset" }
  function known.rows() return list end
  function known.slice(_, first, last)
    last = math.min(last or #list, #list)
    return standin.dataset(name, table.move(list, first, last, 1, {}))
  end
  function known.filter(_, keep)
    local kept = {}
    for i, row in ipairs(list) do
      if keep(row, i) then kept[#kept + 1] = row end
    end
    return standin.dataset(name, kept)
  end
  function known.shuffle() return standin.dataset(name, list) end
  known.columns = known.shuffle
  function known.map(_, f)
    local out = {}
    for i, row in ipairs(list) do out[i] = f(row, i) end
    return standin.dataset(name, out)
  end
  return make(name, known)
end

---A list of which only the size is known.
---@param name string
---@param size integer
---@param known? table what is known of each entry
---@return table
function standin.list(name, size, known)
  return make(name, { __rows = size, __row = function(i) return make(("%s[%d]"):format(name, i), known) end })
end

return standin
