--- Hinge loss on the scaled difference of log-ratios (RSO, SLiC).
return {
  name = "hinge",
  formula = "max(0, 1 - beta (s_w - s_l))",
  source = "Liu et al. 2023 (RSO)",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function()
    return 1
  end,
  pairs = function(p, o)
    return ((p.chosen - p.rejected) * -o.beta + 1):clamp(0)
  end,
}
