--- CPO: DPO without a reference, plus the chosen answer's negative log-likelihood (mean over its tokens).
local pl = require "perilune"

return {
  name = "cpo",
  formula = "-log sigmoid(beta (L_w - L_l)) + alpha NLL(chosen)",
  source = "Xu et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "scale of the log-probabilities" },
    alpha = { 1.0, min = 0, doc = "weight of the likelihood term" },
  },
  pairs = function(p, o)
    local loss = pl.softplus((p.chosen_logps - p.rejected_logps) * -o.beta)
    return loss + p.chosen_nll * o.alpha
  end,
}
