-- Tensors and automatic differentiation: fit a curve, check a gradient.
--   ./perilune examples/01_tensors.lua
local pl = require "perilune"
local small = arg[1] == "small"

-- 200 noisy points of y = 2 x^2 - x + 0.5
local x = pl.linspace(-1, 1, 200)
local y = x * x * 2 - x + 0.5 + pl.randn(200, { seed = 1 }) * 0.05

local w = pl.zeros(3):requires_grad_()
local features = pl.stack({ x * x, x, pl.ones(200) }, 2)          -- [200, 3]
local opt = pl.optim.adamw({ w }, { lr = 0.05, weight_decay = 0 })
for step = 1, small and 200 or 1000 do
  local loss = ((features:matmul(w) - y) ^ 2):mean()
  opt:zero_grad()
  loss:backward()
  opt:step()
  if step % 100 == 0 then print(step, loss:item()) end
end
print("fitted", w)

-- a function of tensors checks its own gradient against finite differences, in f64
assert(pl.gradcheck(function(a, b)
  return a:matmul(b):softmax(-1):log():sum()
end, pl.randn(3, 4, { seed = 1 }), pl.randn(4, 5, { seed = 2 })))

-- the same seed is the same numbers, on any number of threads
assert(pl.randn(1000, { seed = 7 }):equal(pl.randn(1000, { seed = 7 })))
