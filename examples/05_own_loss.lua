-- A loss of one's own is a Lua function of small tensors; gradients flow into the C core.
--   ./perilune examples/05_own_loss.lua MODEL_DIRECTORY
local pl = require "perilune"
local dir, small = arg[1] or "../shared/data/models/stories260K", arg[2] == "small"

local sft = pl.load(dir)
local prefs = pl.data.from {
  { prompt = "Tim saw a cat.", chosen = " The cat was happy.", rejected = " The cat was sad." },
  { prompt = "Lily had a ball.", chosen = " She was happy.", rejected = " She was sad." },
  { prompt = "The old man", chosen = " smiled at the little girl.", rejected = " was mean." },
}

-- p.chosen and p.rejected are [pairs]: log-probability of policy minus reference. o holds the options
-- that the trainer does not know; one that the loss never reads is an error.
local function ratio_with_floor(p, o)
  local margin = pl.softplus((p.chosen - p.rejected) * -o.beta)
  local fallen = (-p.chosen):clamp(0)                     -- how far the chosen answer fell below the reference
  return (margin + fallen * o.floor):mean()
end

for _, floor in ipairs { 0, 0.5 } do
  local m = pl.train.preference(sft, prefs, {
    loss = ratio_with_floor, beta = 0.1, floor = floor, lr = 5e-4, epochs = small and 3 or 10, batch_size = 3, seed = 1,
  })
  local last = m.history[#m.history]
  print(("floor %.1f: loss %.4f, chosen %+.3f, rejected %+.3f"):format(floor, last.loss, last["rewards/chosen"],
    last["rewards/rejected"]))
end

-- the losses that come with perilune, and what one of them is
print(table.concat(pl.loss.names(), " "))
print(pl.loss.simpo)

-- or leave the trainer: the loop by hand
local m = sft:clone()
local opt = pl.optim.rmsprop(m:parameters(), { lr = 1e-4 })
local rows = prefs:columns { "prompt", completion = "chosen" }
for step = 1, 5 do
  local loss = -m:score(rows):mean()
  opt:zero_grad()
  loss:backward()
  pl.optim.clip_grad_norm(m:parameters(), 10)
  opt:step()
  print("by hand", step, loss:item())
end
