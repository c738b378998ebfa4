--- IPO, averaged: log-ratios per token, as TRL, LLaMA-Factory and mlx-lm-lora have it. Not comparable with
--- ipo_sum, the summed convention.
return {
  name = "ipo",
  aliases = { "ipo_avg" },
  formula = "(s_w/n_w - s_l/n_l - 1/(2 beta))^2",
  source = "Azar et al. 2023; TRL DPOTrainer",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
  },
  t0 = function(o)
    return 1 / (4 * o.beta ^ 2)
  end,
  pairs = function(p, o)
    local d = p.chosen / p.chosen_tokens - p.rejected / p.rejected_tokens
    return (d - 1 / (2 * o.beta)) ^ 2
  end,
}
