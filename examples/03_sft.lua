-- A tiny model from nothing: train it on raw text, then fine-tune it on a teacher's answers.
-- The texts and tasks are the small world of `perilune run rlaif`; nothing is downloaded.
--   ./perilune examples/03_sft.lua
local pl = require "perilune"
local text, world = require "perilune.world.text", require "perilune.world"
local small = arg[1] == "small"

local tokenizer = text.tokenizer()
local fresh = pl.models.new({
  model_type = "llama", vocab_size = tokenizer:vocab_size(), hidden_size = small and 32 or 128, intermediate_size = small and 64 or 256,
  num_hidden_layers = 2, num_attention_heads = 4, max_position_embeddings = 64, tie_word_embeddings = true,
  eos_token_id = tokenizer:token_to_id "</s>",
}, { tokenizer = tokenizer, seed = 1 })

local base = pl.train.pretrain(fresh, text.documents(0, small and 200 or 28000), {
  block_size = 64, batch_size = 16, lr = 4e-3, lr_scheduler = "cosine", min_lr_ratio = 0.05, warmup_steps = small and 2 or 50,
  betas = { 0.9, 0.98 }, weight_decay = 0.05,
})
print(("raw text: loss %.3f to %.3f"):format(base.history[1].loss, base.history[#base.history].loss))

-- demonstrations: a teacher that is right with probability 0.95 per part
local train, held = world.prompts(0, small and 24 or 2000, small and 4 or 100)
local demos = pl.feedback.demonstrate("oracle:0.95", pl.data.from(train), { seed = 0 })
print(demos)

local sft = pl.train.sft(base, demos, {
  lr = 2e-3, epochs = small and 1 or 4, batch_size = 16, lr_scheduler = "linear", min_lr_ratio = 0.1, warmup_steps = 2,
})
print(("demonstrations: loss %.3f to %.3f"):format(sft.history[1].loss, sft.history[#sft.history].loss))

local prompts = {}
for i, row in ipairs(held) do prompts[i] = row.prompt end
local total = 0
for i, out in ipairs(sft:generate(prompts, { temperature = 0, max_tokens = 8 })) do
  total = total + world.quality(out.prompt, out.text)
  if i <= 4 then print(((out.prompt .. out.text):gsub("\n", " | "))) end
end
print(("true quality on %d held-out prompts: %.3f"):format(#held, total / #held))
