--- Optimizers: pl.optim.adamw, rmsprop, sgd. Each takes a list of parameters and one
--- table of options, and has zero_grad(), step(), lr and state. One file an optimizer:
--- a new one is a file beside this one and its name in the list.
local options = require "perilune.options"
local core = require("perilune.core").optim

local optim = { names = { "adamw", "rmsprop", "sgd" } }

for _, name in ipairs(optim.names) do
  optim[name] = require("perilune.optim." .. name)
end

---The constructor of a name, or an error that suggests the nearest one.
---@param where string what the error starts with
---@param name string
---@return fun(params: perilune.Tensor[], opts: table?): perilune.Optimizer
function optim.find(where, name)
  for _, known in ipairs(optim.names) do
    if known == name then
      return optim[name]
    end
  end
  local near = options.nearest(tostring(name), optim.names)
  error(("%s: no optimizer %q%s; there are %s"):format(where, tostring(name),
    near and (" (did you mean %q?)"):format(near) or "", table.concat(optim.names, ", ")), 0)
end

---The Euclidean norm of the gradients of a list of parameters together.
---@param params perilune.Tensor[]
---@return number
function optim.grad_norm(params)
  return core.grad_norm(params)
end

---Scales the gradients in place so that their global norm is at most max_norm
---(torch.nn.utils.clip_grad_norm_: the factor is max_norm / (norm + 1e-6)).
---@param params perilune.Tensor[]
---@param max_norm number
---@return number norm before clipping
function optim.clip_grad_norm(params, max_norm)
  local norm = core.grad_norm(params)
  local factor = optim.clip_factor(norm, max_norm)
  if factor < 1 then
    for _, i in ipairs(core.with_grad(params)) do
      params[i].grad:mul_(factor)
    end
  end
  return norm
end

---Forgets the gradients of a list of parameters.
---@param params perilune.Tensor[]
function optim.forget(params)
  core.zero_grad(params)
end

---The factor that brings gradients of global norm `norm` to at most max_norm.
---@param norm number
---@param max_norm number? nil or 0: no limit
---@return number at most 1
function optim.clip_factor(norm, max_norm)
  if not max_norm or max_norm <= 0 then
    return 1
  end
  return math.min(1, max_norm / (norm + 1e-6))
end

return optim
