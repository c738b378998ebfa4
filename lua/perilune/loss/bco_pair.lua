--- BCO on pairs: a classifier of chosen against rejected. Older versions subtract a running mean of the
--- rewards; this one, like TRL's pair form, does not.
local pl = require "perilune"

return {
  name = "bco_pair",
  formula = "-log sigmoid(beta s_w) - log sigmoid(-beta s_l)",
  source = "Jung et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function()
    return 2 * math.log(2)
  end,
  pairs = function(p, o)
    return pl.softplus(p.chosen * -o.beta) + pl.softplus(p.rejected * o.beta)
  end,
}
