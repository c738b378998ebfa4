-- Load a Hugging Face directory, continue a text, score answers.
--   ./perilune examples/02_generate.lua MODEL_DIRECTORY
local pl = require "perilune"
local dir, small = arg[1] or "../shared/data/models/stories260K", arg[2] == "small"

local m = pl.load(dir)
print(m)

local greedy = m:generate({ "Once upon a time" }, { temperature = 0, max_tokens = small and 20 or 100 })
print(greedy[1].prompt .. greedy[1].text)

-- three samples of each prompt; the same seed gives the same texts
local samples = m:generate({ "The dog", "A big" }, { n = 3, max_tokens = small and 10 or 40, temperature = 1, top_p = 0.9, seed = 5 })
for _, s in ipairs(samples) do
  print(("%8.2f  %s%s  (%s)"):format(s.logprob, s.prompt, s.text, s.finish))
end

-- which end of the sentence does the model find likelier?
local rows = {
  { prompt = "The sun was", completion = " hot." },
  { prompt = "The sun was", completion = " a spoon." },
}
for i, score in ipairs(m:score(rows):tolist()) do
  print(rows[i].prompt .. rows[i].completion, score)
end
