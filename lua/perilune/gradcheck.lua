--- pl.gradcheck(f, inputs..., opts): is the gradient of a function of tensors
--- the one that central differences in f64 give? It knows nothing about ops.
local core = require "perilune.core"
local options = require "perilune.options"
local T = core.tensor

local spec = {
  eps = { 1e-6, doc = "half the distance of the two points", min = 1e-12 },
  rtol = { 1e-4, doc = "tolerated difference relative to the numeric gradient", min = 0 },
  atol = { 1e-6, doc = "tolerated difference in itself", min = 0 },
}

local floats = { f32 = true, f64 = true, bf16 = true }

-- "[2][3]" for the n-th element, row by row.
local function place(shape, n)
  local at, rest = {}, n - 1
  for d = #shape, 1, -1 do
    at[d] = ("[%d]"):format(rest % shape[d] + 1)
    rest = rest // shape[d]
  end
  return table.concat(at)
end

-- One number out of the result; unequal weights, so that no error cancels.
local function scalar(out, where)
  if not T.is_tensor(out) then
    error(("gradcheck: the function must return a tensor, got %s"):format(type(out)), where)
  end
  if out:numel() == 1 then return out:sum() end
  local flat = out:reshape(out:numel())
  local weights = {}
  for i = 1, out:numel() do weights[i] = 0.5 + 1 / (i + 0.5) end
  return (flat * T.tensor(weights, { dtype = out:dtype() })):sum()
end

---Compares the gradient that backward gives with central differences in f64.
---Float inputs are converted to f64 copies; others are passed as they are.
---Returns true or raises, naming the input and the element.
---@param f fun(...: perilune.Tensor): perilune.Tensor
---@param ... perilune.Tensor|table inputs, then optionally { eps = 1e-6, rtol = 1e-4, atol = 1e-6 }
---@return true
return function(f, ...)
  local given = table.pack(...)
  local opts = {}
  if type(given[given.n]) == "table" then
    opts = given[given.n]
    given.n = given.n - 1
  end
  local o = options.resolve("gradcheck", spec, opts)
  if type(f) ~= "function" then
    error("gradcheck: wants a function of tensors, then its inputs; got " .. type(f), 2)
  end
  local inputs = {}
  for i = 1, given.n do
    local x = given[i]
    if not T.is_tensor(x) then
      error(("gradcheck: input %d must be a tensor, got %s"):format(i, type(x)), 2)
    end
    inputs[i] = floats[x:dtype()] and x:detach():to("f64"):clone():requires_grad_() or x
  end
  local out = scalar(f(table.unpack(inputs, 1, given.n)), 3)
  if not out.requires_grad then
    error("gradcheck: the result does not depend on any input in a way that is recorded", 2)
  end
  out:backward()
  local function value()
    return T.no_grad(function() return scalar(f(table.unpack(inputs, 1, given.n)), 3):item() end)
  end
  for i, x in ipairs(inputs) do
    if floats[x:dtype()] then
      local grad = x.grad and x.grad:reshape(x:numel()):tolist()
      local flat = T.no_grad(function() return x:reshape(x:numel()) end)
      for n = 1, x:numel() do
        local here = flat[n]:item()
        T.no_grad(function() flat[n] = here + o.eps end)
        local up = value()
        T.no_grad(function() flat[n] = here - o.eps end)
        local down = value()
        T.no_grad(function() flat[n] = here end)
        local numeric = (up - down) / (2 * o.eps)
        local analytic = grad and grad[n] or 0.0
        local wrong = math.abs(analytic - numeric) > o.atol + o.rtol * math.abs(numeric)
        if wrong or analytic ~= analytic or numeric ~= numeric then
          error(("gradcheck: input %d, element %s: backward gives %.9g, central differences %.9g"):format(
            i, place(x:shape(), n), analytic, numeric), 2)
        end
      end
    end
  end
  return true
end
