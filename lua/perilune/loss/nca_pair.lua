--- NCA on pairs: noise contrast that also holds each answer's likelihood up.
local pl = require "perilune"

return {
  name = "nca_pair",
  formula = "-log sigmoid(beta s_w) - (log sigmoid(-beta s_w) + log sigmoid(-beta s_l)) / 2",
  source = "Chen et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function()
    return 2 * math.log(2)
  end,
  pairs = function(p, o)
    local w, l = p.chosen * o.beta, p.rejected * o.beta
    return pl.softplus(-w) + (pl.softplus(w) + pl.softplus(l)) * 0.5
  end,
}
