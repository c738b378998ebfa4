-- Teacher and critic: a stronger model demonstrates, a third one compares, two students are judged.
-- Here all three are one model at different temperatures; services take their place by name.
--   ./perilune examples/06_teacher_critic.lua MODEL_DIRECTORY
local pl = require "perilune"
local dir, small = arg[1] or "../shared/data/models/stories260K", arg[2] == "small"

local all = pl.data.load "examples/story_openings.jsonl"
local prompts, held = all:slice(1, small and 8 or 160), all:slice(-(small and 4 or 60))
local length = { max_tokens = small and 12 or 40, seed = 1 }
local function with(more)
  for k, v in pairs(length) do more[k] = v end
  return more
end

local base = pl.load(dir)
local teacher = pl.ai("local:" .. dir .. "?temperature=0.6")
local critic = pl.ai("local:" .. dir)                     -- prefers the answer that it finds likelier, per token

-- student one: fine-tuning on the teacher's demonstrations
local demos = pl.feedback.demonstrate(teacher, prompts, with {})
local taught = pl.train.sft(base, demos, { lr = 5e-4, epochs = small and 1 or 2, batch_size = 8 })

-- student two: preferences of the critic over the base model's own samples
local samples = pl.feedback.sample(base, prompts, with { n = 2, temperature = 1 })
local prefs = pl.feedback.compare(critic, samples, { order = "both" })
local aligned = pl.train.preference(base, prefs, { loss = "dpo", beta = 0.1, lr = 2e-4, epochs = small and 1 or 2, batch_size = 8 })

for name, student in pairs { taught = taught, aligned = aligned } do
  local w = pl.eval.winrate(student, { against = base, prompts = held, judge = critic, n = 1, max_tokens = length.max_tokens, seed = 2 })
  print(("%-8s win rate against base %.1f %% (%d win, %d tie, %d loss, %d invalid)"):format(name, w.win_rate, w.win, w.tie,
    w.loss, w.invalid))
end
