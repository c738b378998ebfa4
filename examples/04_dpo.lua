-- Preferences: sample twice, let a critic choose, train with DPO, look at what moved.
--   ./perilune examples/04_dpo.lua MODEL_DIRECTORY
local pl = require "perilune"
local dir, small = arg[1] or "../shared/data/models/stories260K", arg[2] == "small"

local base = pl.load(dir)
local rows = {}
for i, opening in ipairs { "Tim saw a", "Lily had a", "The big dog", "One day, a bird", "Sue and Ben", "A little fish" } do
  rows[i] = { prompt = opening }
end
local prompts = pl.data.from(rows)

-- a critic can be any Lua function; this one likes happy stories
local critic = pl.ai(function(request)
  local function happy(s) return select(2, s:gsub("happy", "")) end
  local a, b = happy(request.a), happy(request.b)
  return a > b and "a" or b > a and "b" or "tie"
end)
local samples = pl.feedback.sample(base, prompts, { n = small and 16 or 64, max_tokens = 40, temperature = 1, seed = 1 })
local prefs = pl.feedback.compare(critic, samples, { order = "both" })
print(prefs)
if #prefs == 0 then
  print "the critic saw only ties"
  return
end

local dpo = pl.train.preference(base, prefs, {
  loss = "dpo", beta = 0.1, lr = 5e-4, epochs = small and 1 or 3, batch_size = 8, lr_scheduler = "linear", warmup = 0.1,
  on_step = function(s)
    print(("step %2d  loss %.4f  margin %+.3f  accuracy %.2f  chosen %.1f  rejected %.1f"):format(s.step, s.loss,
      s["rewards/margins"], s["rewards/accuracies"], s["logps/chosen"], s["logps/rejected"]))
  end,
})
print(pl.eval.winrate(dpo, { against = base, prompts = prompts, judge = critic, n = small and 2 or 8, max_tokens = 40, seed = 2 }))
