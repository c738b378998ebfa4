--- Conservative DPO: cross-entropy against labels of which a share is wrong.
local pl = require "perilune"

return {
  name = "cdpo",
  formula = "-(1-e) log sigmoid(beta d) - e log sigmoid(-beta d), d = s_w - s_l",
  source = "Mitchell 2023, a note on DPO with noisy preferences",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    label_smoothing = { 0.1, min = 0, max = 0.5, doc = "share of labels taken to be wrong" },
  },
  t0 = function()
    return math.log(2)
  end,
  pairs = function(p, o)
    local x = (p.chosen - p.rejected) * o.beta
    local e = o.label_smoothing
    return pl.softplus(-x) * (1 - e) + pl.softplus(x) * e
  end,
}
