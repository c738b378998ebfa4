--- EXO on pairs: the reverse divergence between the policy's preference and smoothed labels.
local pl = require "perilune"

return {
  name = "exo_pair",
  formula = "q (log q - log(1-e)) + (1-q) (log(1-q) - log e), q = sigmoid(beta (s_w - s_l))",
  source = "Ji et al. 2024, eq. 16",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    label_smoothing = { 1e-3, min = 1e-9, max = 0.5, doc = "must be above 0" },
  },
  t0 = function(o)
    return 0.5 * (math.log(0.5) - math.log(1 - o.label_smoothing)) + 0.5 * (math.log(0.5) - math.log(o.label_smoothing))
  end,
  pairs = function(p, o)
    local x = (p.chosen - p.rejected) * o.beta
    local e, q = o.label_smoothing, x:sigmoid()
    local log_q, log_not_q = -pl.softplus(-x), -pl.softplus(x)
    return q * (log_q - math.log(1 - e)) + (1 - q) * (log_not_q - math.log(e))
  end,
}
