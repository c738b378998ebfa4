--- SPPO with hard labels: each log-ratio is regressed to plus or minus 1/(2 beta).
return {
  name = "sppo_hard",
  formula = "(s_w - 1/(2 beta))^2 + (s_l + 1/(2 beta))^2",
  source = "Wu et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function(o)
    return 1 / (2 * o.beta ^ 2)
  end,
  pairs = function(p, o)
    local half = 1 / (2 * o.beta)
    return (p.chosen - half) ^ 2 + (p.rejected + half) ^ 2
  end,
}
