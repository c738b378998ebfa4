--- Robust DPO: unbiased under a known share of flipped labels.
local pl = require "perilune"

return {
  name = "robust",
  formula = "(-(1-e) log sigmoid(beta d) + e log sigmoid(-beta d)) / (1 - 2e), d = s_w - s_l",
  source = "Chowdhury et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    label_smoothing = { 0.1, min = 0, max = 0.499, doc = "share of labels taken to be wrong" },
  },
  t0 = function()
    return math.log(2)
  end,
  pairs = function(p, o)
    local x = (p.chosen - p.rejected) * o.beta
    local e = o.label_smoothing
    return (pl.softplus(-x) * (1 - e) - pl.softplus(x) * e) / (1 - 2 * e)
  end,
}
