--- DPO on log-ratios per token (Tulu 3, OLMo 2). beta must grow with the length: their 5 stands for DPO's .1 or so.
local pl = require "perilune"

return {
  name = "sigmoid_norm",
  formula = "-log sigmoid(beta (s_w/n_w - s_l/n_l))",
  source = "Lambert et al. 2024 (Tulu 3)",
  options = {
    beta = { 5.0, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function()
    return math.log(2)
  end,
  pairs = function(p, o)
    local d = p.chosen / p.chosen_tokens - p.rejected / p.rejected_tokens
    return pl.softplus(d * -o.beta)
  end,
}
