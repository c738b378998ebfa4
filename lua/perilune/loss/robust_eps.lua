--- The paper's released `robust_eps`: in spite of its name the conservative form, and divided by beta.
local pl = require "perilune"

return {
  name = "robust_eps",
  formula = "cdpo / beta",
  source = "dpo-rlaif, loss.robust_eps",
  options = {
    beta = { 0.1, min = 0, doc = "strength of the pull towards the reference" },
    label_smoothing = { 0.1, min = 0, max = 0.5, doc = "share of labels taken to be wrong" },
  },
  t0 = function(o)
    return math.log(2) / o.beta
  end,
  pairs = function(p, o)
    local x = (p.chosen - p.rejected) * o.beta
    local e = o.label_smoothing
    return (pl.softplus(-x) * (1 - e) + pl.softplus(x) * e) / o.beta
  end,
}
