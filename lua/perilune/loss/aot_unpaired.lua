--- AOT, unpaired: conservative DPO on sorted chosen against sorted rejected log-ratios. It mixes the pairs
--- of a batch, so it needs batch_size above 1 and sorts each micro-batch by itself under accumulation.
local pl = require "perilune"

return {
  name = "aot_unpaired",
  formula = "cdpo on sort(s_w) - sort(s_l)",
  source = "Melnyk et al. 2024",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    label_smoothing = { 0.0, min = 0, max = 0.5, doc = "share of labels taken to be wrong" },
  },
  mixes_pairs = true,
  t0 = function()
    return math.log(2)
  end,
  pairs = function(p, o)
    local chosen, rejected = p.chosen:sort(1), p.rejected:sort(1)
    local x = (chosen - rejected) * o.beta
    local e = o.label_smoothing
    return pl.softplus(-x) * (1 - e) + pl.softplus(x) * e
  end,
}
