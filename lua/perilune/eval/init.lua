--- Evaluation: judged win rates and the statistics that say what they are worth.
local agreement = require "perilune.eval.agreement"
local annotations = require "perilune.eval.annotations"
local stats = require "perilune.eval.stats"

return {
  winrate = require "perilune.eval.winrate",
  interval = stats.interval,
  contrast = stats.contrast,
  verdict = stats.verdict,
  mean = stats.mean,
  rate = stats.rate,
  length_controlled = stats.length_controlled,
  annotations = annotations.rows,
  from_annotations = annotations.read,
  agreement = agreement,
}
