--- What all optimizers share: a list of parameters, a learning rate that may be
--- changed between steps, and a state that is a plain table keyed by parameter
--- name. It knows no update rule; each rule is one file beside this one.
local options = require "perilune.options"
local core = require("perilune.core").optim
local pl = require "perilune"

local base = {}

---@class perilune.Optimizer
---@field name string
---@field params perilune.Tensor[]
---@field names string[] one unique name a parameter
---@field lr number may be set between steps
---@field state table<string, table> parameter name -> its moments (tensors) and counters
local Optimizer = {}
Optimizer.__index = Optimizer
base.Optimizer = Optimizer

local function unique_names(params)
  local names, seen = {}, {}
  for i, p in ipairs(params) do
    local name = p.name or ("param." .. i)
    if seen[name] then
      name = name .. "#" .. i
    end
    seen[name] = true
    names[i] = name
  end
  return names
end

---Makes the constructor of one optimizer.
---@param rule {name: string, spec: table, update: fun(opt, params, states, gscale), check: fun(opt)?}
---@return fun(params: perilune.Tensor[], opts: table?): perilune.Optimizer
function base.constructor(rule)
  local class = setmetatable({ name = rule.name, update = rule.update }, Optimizer)
  class.__index = class
  class.__tostring = Optimizer.__tostring
  return function(params, opts)
    local where = "optim." .. rule.name
    if type(params) ~= "table" or #params == 0 then
      error(where .. ": wanted a list of parameters such as m:parameters(), got "
        .. (type(params) == "table" and "an empty list" or type(params)), 2)
    end
    local opt = options.resolve(where, rule.spec, opts or {})
    opt.params, opt.names, opt.state = params, unique_names(params), {}
    if rule.check then
      rule.check(opt)
    end
    return setmetatable(opt, class)
  end
end

---Forgets all gradients.
function Optimizer:zero_grad()
  core.zero_grad(self.params)
end

---The global Euclidean norm of the gradients.
---@return number
function Optimizer:grad_norm()
  return core.grad_norm(self.params)
end

---One update of every parameter that has a gradient, in place.
---@param gscale number? factor on every gradient first (clipping); default 1
function Optimizer:step(gscale)
  local params, states = {}, {}
  for k, i in ipairs(core.with_grad(self.params)) do
    local name = self.names[i]
    local state = self.state[name]
    if not state then
      state = { step = 0 }
      self.state[name] = state
    end
    params[k], states[k] = self.params[i], state
  end
  self:update(params, states, gscale or 1)
  for _, state in ipairs(states) do
    state.step = state.step + 1
  end
end

---One column of the states as a list, made of zeros where it is not there yet.
---@param params perilune.Tensor[]
---@param states table[]
---@param key string
---@return perilune.Tensor[]
function base.column(params, states, key)
  local list = {}
  for i, state in ipairs(states) do
    if not state[key] then
      state[key] = pl.zeros(params[i]:shape(), { dtype = params[i]:dtype() })
    end
    list[i] = state[key]
  end
  return list
end

---Splits the state for saving: tensors under "NAME/KEY", counters apart.
---@return table<string, perilune.Tensor> tensors
---@return table<string, integer> steps parameter name -> updates it has had
function Optimizer:state_tensors()
  local tensors, steps = {}, {}
  for name, state in pairs(self.state) do
    for key, value in pairs(state) do
      if key == "step" then
        steps[name] = value
      else
        tensors[name .. "/" .. key] = value
      end
    end
  end
  return tensors, steps
end

---Puts back what state_tensors gave.
---@param tensors table<string, perilune.Tensor>
---@param steps table<string, integer>
function Optimizer:load_state_tensors(tensors, steps)
  local state = {}
  local known = {}
  for _, name in ipairs(self.names) do
    known[name] = true
  end
  for name, step in pairs(steps) do
    if not known[name] then
      error(("optim.%s: the saved state has %q, which is no parameter here"):format(self.name, name), 2)
    end
    state[name] = { step = step }
  end
  for full, tensor in pairs(tensors) do
    local name, key = full:match("^(.*)/([^/]+)$")
    if not name or not state[name] then
      error(("optim.%s: the saved tensor %q belongs to no saved parameter"):format(self.name, full), 2)
    end
    state[name][key] = tensor
  end
  self.state = state
end

function Optimizer:__tostring()
  local n = 0
  for _, p in ipairs(self.params) do
    n = n + p:numel()
  end
  return ("optim.%s(lr %g, %d tensors, %d numbers)"):format(self.name, self.lr, #self.params, n)
end

return base
