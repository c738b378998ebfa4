--- Evaluation: judged win rates and the statistics that say what they are worth.
local stats = require "perilune.eval.stats"

return {
  winrate = require "perilune.eval.winrate",
  interval = stats.interval,
  contrast = stats.contrast,
  verdict = stats.verdict,
  mean = stats.mean,
  rate = stats.rate,
  length_controlled = stats.length_controlled,
}
