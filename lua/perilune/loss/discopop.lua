--- DiscoPOP: a blend of logistic and exponential loss found by a language model.
local pl = require "perilune"

return {
  name = "discopop",
  formula = "(1-m) (-log sigmoid(x)) + m exp(-x), x = beta (s_w - s_l), m = sigmoid(x / tau)",
  source = "Lu et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    tau = { 0.05, min = 1e-6, doc = "temperature of the blend" },
  },
  t0 = function()
    return 0.5 * math.log(2) + 0.5
  end,
  pairs = function(p, o)
    local x = (p.chosen - p.rejected) * o.beta
    local m = (x / o.tau):sigmoid()
    return (1 - m) * pl.softplus(-x) + m * (-x):exp()
  end,
}
