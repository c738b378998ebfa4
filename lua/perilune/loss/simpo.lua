--- SimPO: mean log-probabilities with a target margin; no reference.
local pl = require "perilune"

return {
  name = "simpo",
  formula = "-log sigmoid(beta (a_w - a_l) - gamma), a = mean token log-probability",
  source = "Meng et al. 2024",
  options = {
    beta = { 2.0, min = 0, doc = "scale of the mean log-probabilities" },
    gamma = { 0.5, doc = "target margin, not scaled by beta" },
  },
  rewards = function(p, o)
    return p.chosen_logps / p.chosen_tokens * o.beta, p.rejected_logps / p.rejected_tokens * o.beta
  end,
  pairs = function(p, o)
    local margin = p.chosen_logps / p.chosen_tokens - p.rejected_logps / p.rejected_tokens
    return pl.softplus(-(margin * o.beta - o.gamma))
  end,
}
