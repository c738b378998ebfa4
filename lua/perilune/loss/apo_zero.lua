--- APO-zero: raises the chosen and lowers the rejected; for chosen answers better than the model's own.
return {
  name = "apo_zero",
  formula = "1 - sigmoid(beta s_w) + sigmoid(beta s_l)",
  source = "D'Oosterlinck et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function()
    return 1
  end,
  pairs = function(p, o)
    return 1 - (p.chosen * o.beta):sigmoid() + (p.rejected * o.beta):sigmoid()
  end,
}
