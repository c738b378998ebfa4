--- AOT: conservative DPO on batch-sorted differences. It mixes the pairs of a batch, so it needs
--- batch_size above 1 and sorts each micro-batch by itself under accumulation.
local pl = require "perilune"

return {
  name = "aot",
  formula = "cdpo on sort(L_w - L_l) - sort(ref_w - ref_l)",
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
    local policy = (p.chosen_logps - p.rejected_logps):sort(1)
    local reference = (p.ref_chosen_logps - p.ref_rejected_logps):sort(1)
    local x = (policy - reference) * o.beta
    local e = o.label_smoothing
    return pl.softplus(-x) * (1 - e) + pl.softplus(x) * e
  end,
}
