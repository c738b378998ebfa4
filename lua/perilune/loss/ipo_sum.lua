--- IPO, summed: log-ratios of whole answers, as OpenRLHF, the original DPO repository and the paper's code
--- have it. Not comparable with ipo, the averaged convention.
return {
  name = "ipo_sum",
  formula = "(s_w - s_l - 1/(2 beta))^2",
  source = "Azar et al. 2023; eric-mitchell/direct-preference-optimization",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function(o)
    return 1 / (4 * o.beta ^ 2)
  end,
  pairs = function(p, o)
    return (p.chosen - p.rejected - 1 / (2 * o.beta)) ^ 2
  end,
}
