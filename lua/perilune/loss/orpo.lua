--- ORPO: likelihood of the chosen answer plus the log odds ratio; no reference. The likelihood is that of the
--- answer's tokens alone (TRL's includes the prompt).
local pl = require "perilune"

return {
  name = "orpo",
  formula = "NLL(chosen) - beta log sigmoid(LO), LO = a_w - a_l - (log(1-exp a_w) - log(1-exp a_l))",
  source = "Hong et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "weight of the odds ratio" },
  },
  rewards = function(p, o)
    return p.chosen_logps / p.chosen_tokens * o.beta, p.rejected_logps / p.rejected_tokens * o.beta
  end,
  pairs = function(p, o)
    -- a is below 0 by a hair at least, or an answer of probability 1 would have infinite odds
    local w = (p.chosen_logps / p.chosen_tokens):clamp(-math.huge, -1e-6)
    local l = (p.rejected_logps / p.rejected_tokens):clamp(-math.huge, -1e-6)
    local odds = w - l - ((1 - w:exp()):log() - (1 - l:exp()):log())
    return p.chosen_nll + pl.softplus(-odds) * o.beta
  end,
}
