--- DPO: the logistic loss on the difference of summed log-ratios. With importance_correction each
--- pair is weighted by the detached likelihood ratio of its rejected answer (an option of the paper's code).
local pl = require "perilune"

return {
  name = "dpo",
  aliases = { "sigmoid" },
  formula = "-log sigmoid(beta (s_w - s_l))",
  source = "Rafailov et al. 2023, eq. 7",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    importance_correction = { false, doc = "weight each pair by exp(s_l), detached" },
  },
  t0 = function()
    return math.log(2)
  end,
  pairs = function(p, o)
    local loss = pl.softplus((p.chosen - p.rejected) * -o.beta)
    if o.importance_correction then
      loss = loss * p.rejected:detach():exp()
    end
    return loss
  end,
}
