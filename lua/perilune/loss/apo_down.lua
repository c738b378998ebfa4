--- APO-down: lowers both, the rejected more; for chosen answers worse than the model's own.
return {
  name = "apo_down",
  formula = "sigmoid(beta s_w) + 1 - sigmoid(beta (s_w - s_l))",
  source = "D'Oosterlinck et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function()
    return 1
  end,
  pairs = function(p, o)
    return (p.chosen * o.beta):sigmoid() + 1 - ((p.chosen - p.rejected) * o.beta):sigmoid()
  end,
}
