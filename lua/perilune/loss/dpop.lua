--- DPO-positive (Smaug): DPO with a penalty, inside the sigmoid, where the chosen answer lost likelihood.
local pl = require "perilune"

return {
  name = "dpop",
  formula = "-log sigmoid(beta (s_w - s_l - lambda max(0, -s_w)))",
  source = "Pal et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    lambda = { 50.0, min = 0, doc = "weight of the penalty" },
  },
  t0 = function()
    return math.log(2)
  end,
  pairs = function(p, o)
    local penalty = (-p.chosen):clamp(0) * o.lambda
    return pl.softplus((p.chosen - p.rejected - penalty) * -o.beta)
  end,
}
