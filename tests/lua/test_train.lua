-- Fine-tuning and pre-training: golden curves, normalisation, masks, aborts, metrics.
local T = require "tests.lua.harness"
local pl = require "perilune"
local core = require("perilune.core").base
require("perilune.study.progress").quiet(true)

local golden = assert(pl.json.read "tests/golden/train/losses.json")
local tiny = pl.load "tests/golden/lm/tied"

local function with(t, more)
  local o = {}
  for k, v in pairs(t) do o[k] = v end
  for k, v in pairs(more or {}) do o[k] = v end
  return o
end

-- Weights of two models, largest difference.
local function apart(a, b)
  local worst, pa, pb = 0, a:parameters(), b:parameters()
  for i, p in ipairs(pa) do
    worst = math.max(worst, (p:detach() - pb[i]:detach()):abs():max():item())
  end
  return worst
end

local function column(history, name)
  local out = {}
  for i, r in ipairs(history) do out[i] = r[name] end
  return out
end

local function golden_options(case, n)
  return { lr = case.lr, optimizer = case.optimizer, max_grad_norm = case.max_grad_norm, epochs = 10, batch_size = n,
    lr_scheduler = "constant" }
end

for _, case in ipairs(golden.sft) do
  T.test(("sft_ten_steps_as_pytorch_%s_%g"):format(case.optimizer, case.lr), function()
    local m = pl.train.sft(tiny, golden.rows, golden_options(case, 6))
    T.near(column(m.history, "loss"), case.loss, 1e-4)
    for i, r in ipairs(m.history) do
      T.near(r.grad_norm, case.grad_norm[i], 1e-3 * case.grad_norm[i])
    end
  end)
end

T.test("a_loop_by_hand_as_pytorch_on_stories260K", function()
  local g = assert(pl.json.read "tests/golden/train/stories.json").by_hand
  local m = pl.load(T.need_shared() .. "/data/models/stories260K")
  local opt = pl.optim.adamw(m:parameters(), { lr = 5e-4, betas = { 0.9, 0.95 }, eps = 1e-8, weight_decay = 0 })
  local batch = { m.tokenizer:encode(g.sentences[1]), m.tokenizer:encode(g.sentences[2]) }
  for _, want in ipairs(g.losses) do
    local lp, mask = m:logprobs(batch)
    local loss = -(lp * mask):sum() / mask:sum()
    opt:zero_grad()
    loss:backward()
    opt:step()
    T.near(loss:item(), want, 1e-4)
  end
end)

T.test("sft_ten_steps_as_pytorch_on_stories260K", function()
  local dir = T.need_shared() .. "/data/models/stories260K"
  local g = assert(pl.json.read "tests/golden/train/stories.json")
  for _, case in ipairs(g.sft) do
    local m = pl.train.sft(pl.load(dir), g.rows, golden_options(case, #g.rows))
    T.near(column(m.history, "loss"), case.loss, 1e-4)
  end
end)

-- Within 2e-2 of PyTorch's f32 curve at every step, except what bf16 itself costs RMSprop at lr 1e-3: its first step moves
-- every weight by lr / sqrt(1 - alpha) = 0.01 whatever the size of its gradient, so that a sign lost to rounding is a weight
-- 0.02 off, and the curve is steep. Of 64 runs from weights 1e-4 apart, f32 leaves 2e-2 in none, f32 with nothing but the
-- weights rounded for the products in 34, torch.autocast in 56 (by up to 5.1e-2), ours in 53; the root mean square at steps
-- 5 and 10 is 1.7e-2 and 2.2e-2, 2.5e-2 and 2.5e-2, 1.7e-2 and 3.0e-2. From step 5 on the limit is the farthest torch went
-- there. At half the lr rounding does not grow: in 64 runs torch is within 7.9e-3, ours within 6.8e-3, the limit is 1e-2.
T.test("sft_in_bf16_follows_the_f32_curve", function()
  for _, case in ipairs(golden.sft) do
    local m = pl.train.sft(tiny, golden.rows, with(golden_options(case, 6), { bf16 = true }))
    local loss = column(m.history, "loss")
    T.ok(math.abs(loss[1] - case.loss[1]) > 1e-6, "nothing was rounded")
    local calm = case.optimizer == "rmsprop" and case.lr < 1e-3
    for i = 1, 10 do
      local limit = calm and 1e-2 or i <= 4 and 2e-2 or math.max(2e-2, case.bf16_apart[i])
      T.near(loss[i], case.loss[i], limit * case.loss[i], ("%s, lr %g, step %d"):format(case.optimizer, case.lr, i))
    end
  end
end)

-- Curves forgive noise, gradients do not: one more bit rounded off more than doubles this. Ours is 2.5e-2 off, torch.autocast
-- 2.9e-2; the weights and activations of forward account for nearly all of it, backward in f32 would take off 0.1e-2. A
-- single start is off by 2.1e-2 to 3.0e-2, so the mean of eight is taken.
T.test("gradients_in_bf16_are_no_noisier_than_pytorchs", function()
  local function gradient(m, dtype)
    for _, p in ipairs(m:parameters()) do p:zero_grad() end
    pl.autocast(dtype, function() m:score(golden.rows):sum():backward() end)
    local all = {}
    for i, p in ipairs(m:parameters()) do all[i] = p.grad:reshape(-1) end
    return pl.cat(all, 1)
  end
  local mean = 0
  for draw = 1, 8 do
    local m = tiny:clone()
    pl.no_grad(function()
      for i, p in ipairs(m:parameters()) do
        p:mul_((pl.rand(p:shape(), { seed = 100 * draw + i }) - 0.5) * 2e-4 + 1)
      end
    end)
    local exact = gradient(m, "f32")
    local apart = gradient(m, "bf16") - exact
    mean = mean + math.sqrt((apart * apart):sum():item() / (exact * exact):sum():item()) / 8
  end
  T.ok(mean > 1e-3, "nothing was rounded")
  T.ok(mean < golden.bf16_gradient_apart, ("%g of the gradient"):format(mean))
end)

T.test("gradient_checkpointing_changes_no_byte", function()
  local o = { lr = 1e-2, max_steps = 3, batch_size = 3 }
  for _, half in ipairs { false, true } do
    local m = tiny:clone()
    local plain = pl.train.sft(tiny, golden.rows, with(o, { bf16 = half }))
    local lean = pl.train.sft(m, golden.rows, with(o, { bf16 = half, gradient_checkpointing = true, in_place = true }))
    T.eq(lean:hash(), plain:hash())
  end
end)

T.test("bf16_holds_for_the_trainers_own_passes_only", function()
  local o = { lr = 1e-2, max_steps = 2, batch_size = 3 }
  local exact = pl.train.sft(tiny, golden.rows, o)
  local inside = pl.autocast("bf16", pl.train.sft, tiny, golden.rows, o)
  T.eq(inside:hash(), exact:hash())             -- what the option says holds, whatever is around it
  local rows = exact:tokenize_rows(golden.rows)
  local before = exact:completion_sums(rows):tolist()
  pl.train.sft(tiny, golden.rows, with(o, { bf16 = true, on_step = function()
    T.eq(exact:completion_sums(rows):tolist(), before)
  end }))
end)

T.test("sft_normalises_over_the_tokens_of_the_step", function()
  local runs = {}
  for _, cut in ipairs { { 6, 1 }, { 3, 2 }, { 2, 3 }, { 1, 6 }, { 4, 2 } } do
    runs[#runs + 1] = pl.train.sft(tiny, golden.rows, { lr = 1e-2, epochs = 3, batch_size = cut[1], optimizer = "sgd",
      gradient_accumulation_steps = cut[2], lr_scheduler = "constant", max_grad_norm = 0 })
  end
  for i = 2, 5 do
    T.ok(apart(runs[1], runs[i]) < 1e-5, ("cut %d: %g"):format(i, apart(runs[1], runs[i])))
    T.near(runs[i].history[1].loss, runs[1].history[1].loss, 1e-5)
  end
end)

T.test("sft_keeps_the_last_short_batch", function()
  local m = pl.train.sft(tiny, golden.rows, { lr = 1e-3, epochs = 2, batch_size = 4 })
  T.eq(#m.history, 4)
  T.eq(column(m.history, "counters/examples"), { 4, 6, 10, 12 })
  T.near(column(m.history, "epoch"), { 0.5, 1, 1.5, 2 }, 1e-12)
  local trained = 0
  for i = 1, 2 do trained = trained + m.history[i].trained_tokens end
  T.eq(trained, 4 + 10 + 2 + 6 + 3 + 21)
end)

T.test("sft_order_is_of_seed_and_epoch", function()
  local order = require("perilune.train.loop").order
  local function list(seed, from, to)
    local rows, out = order(10, { batch_size = 3, gradient_accumulation_steps = 1, seed = seed }), {}
    for k = from, to do
      for _, i in ipairs((rows(k))) do out[#out + 1] = i end
    end
    return out
  end
  local first, second = list(1, 0, 3), list(1, 4, 7)
  T.ok(table.concat(first, " ") ~= table.concat(second, " "), "epochs differ")
  T.eq(list(1, 4, 7), second)
  T.ok(table.concat(list(2, 0, 3), " ") ~= table.concat(first, " "), "seeds differ")
  table.sort(first)
  T.eq(first, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 })
end)

T.test("sft_trains_no_prompt_token", function()
  -- the gradient of the loss reaches a prompt token's embedding only through attention: a completion of
  -- one token after a prompt of one must train exactly log p(completion | prompt)
  local m = tiny:clone()
  local rows = m:tokenize_rows { { prompt = { 5 }, completion = { 9, 2 } } }
  local full = m:logprobs { { 5, 9, 2 } }
  T.near((m:completion_logprobs(rows)):sum():item(), full:sum():item(), 1e-5)
  T.eq(rows[1].start, 2)
end)

T.test("sft_leaves_its_argument_unless_in_place", function()
  local m = tiny:clone()
  local before = m:hash()
  local out = pl.train.sft(m, golden.rows, { lr = 1e-2, max_steps = 2 })
  T.eq(m:hash(), before)
  T.ok(out:hash() ~= before)
  for _, p in ipairs(m:parameters()) do T.eq(p.grad, nil) end
  local same = pl.train.sft(m, golden.rows, { lr = 1e-2, max_steps = 2, in_place = true })
  T.ok(rawequal(same, m))
  T.eq(m:hash(), out:hash())
end)

T.test("sft_every_parameter_changes", function()
  local m = pl.train.sft(tiny, golden.rows, { lr = 1e-2, max_steps = 1, lr_scheduler = "constant" })
  for i, p in ipairs(m:parameters()) do
    T.ok(not p:equal(tiny:parameters()[i]), p.name)
  end
end)

T.test("sft_frozen_parameters_stay", function()
  local m = tiny:clone()
  for i, p in ipairs(m:parameters()) do p:requires_grad_(i > 3) end
  local frozen = m:frozen()
  T.eq(#frozen, 3)
  for _, in_place in ipairs { false, true } do
    local out = pl.train.sft(m, golden.rows, { lr = 1e-2, max_steps = 2, lr_scheduler = "constant", in_place = in_place })
    for i, p in ipairs(out:parameters()) do
      T.eq(p:equal(tiny:parameters()[i]), i <= 3, p.name)
    end
    T.eq(out:frozen(), frozen)
  end
  for _, p in ipairs(m:parameters()) do p:requires_grad_(false) end
  T.raises(function() pl.train.sft(m, golden.rows, { max_steps = 1 }) end, "all weights are frozen")
  T.eq(#m:freeze({}):frozen(), 0)
end)

T.test("train_refuses_options_without_effect", function()
  local function sft(o) return pl.train.sft(tiny, golden.rows, with({ max_steps = 1 }, o)) end
  local nowhere = T.tmpdir() .. "/partners"
  T.raises(function() sft { save_steps = 1 } end, "train.sft: save_steps = 1 has no effect without save_dir")
  T.raises(function() sft { save_steps = 1, scratch = nowhere } end, "without save_dir") -- scratch is saved by the clock
  T.raises(function() sft { save_total_limit = 5 } end, "save_total_limit = 5 has no effect without save_dir")
  T.raises(function() sft { resume = "auto" } end, 'resume = "auto" has no effect without save_dir')
  T.raises(function() sft { resume = "any-core", scratch = nowhere } end, 'resume = "any-core" has no effect')
  T.raises(function() sft { lr_scheduler = "constant", min_lr_ratio = 0.5 } end,
    'min_lr_ratio = 0.5 has no effect with lr_scheduler = "constant"')
  T.raises(function() pl.train.pretrain(tiny, golden.rows, { save_steps = 1 }) end, "train.pretrain: save_steps")
  T.raises(function() pl.train.preference(tiny, golden.pairs, { resume = "never" }) end, "train.preference: resume")
  local ok, message = pcall(function() return (pl.train.sft(tiny, golden.rows, { save_steps = 1 })) end)
  T.ok(not ok and message:find "test_train%.lua:%d+: train%.sft", message) -- where the user wrote it
  for _, o in ipairs { { resume = "never", scratch = nowhere }, { lr_scheduler = "constant" }, { min_lr_ratio = 0.5 },
    { save_dir = nowhere, save_steps = 1, save_total_limit = 1, resume = "any-core" } } do
    T.eq(#sft(o).history, 1)
  end
end)

T.test("train_without_rows_to_evaluate_on", function()
  T.raises(function() pl.train.sft(tiny, golden.rows, { max_steps = 1, eval = { data = {} } }) end,
    "eval: no rows to evaluate on")
end)

T.test("sft_schedule_and_clipping_reach_the_optimizer", function()
  local m = pl.train.sft(tiny, golden.rows, { lr = 1e-3, max_steps = 5, warmup_steps = 2, lr_scheduler = "linear", batch_size = 6 })
  T.near(column(m.history, "lr"), { 0, 5e-4, 1e-3, 1e-3 * 2 / 3, 1e-3 / 3 }, 1e-12)
  -- with a norm far below the gradient's, the first SGD step has length lr * max_grad_norm
  local c = pl.train.sft(tiny, golden.rows, { lr = 1, max_steps = 1, optimizer = "sgd", max_grad_norm = 1e-3, batch_size = 6 })
  local sq = 0
  for i, p in ipairs(c:parameters()) do
    sq = sq + ((p:detach() - tiny:parameters()[i]:detach()) ^ 2):sum():item()
  end
  T.near(math.sqrt(sq), 1e-3, 2e-5)
end)

T.test("sft_metrics_have_the_papers_names", function()
  local seen
  local m = pl.train.sft(tiny, golden.rows, { max_steps = 2, on_step = function(r, model)
    seen = r
    T.ok(model.parameters)
  end })
  for _, name in ipairs { "loss", "grad_norm", "lr", "epoch", "step", "trained_tokens", "examples_per_second",
    "tokens_per_second", "counters/examples", "counters/updates" } do
    T.ok(type(seen[name]) == "number", name)
  end
  T.eq(seen["counters/updates"], 2)
  T.near(seen["ppl/chosen"], math.exp(seen.loss), 1e-9)
  T.eq(m.history.summary.steps, 2)
  T.eq(m.history.summary.counts.used, 6)
  T.ok(pl.json.encode(m.history))
end)

T.test("sft_evaluates_on_other_prompts", function()
  local m = pl.train.sft(tiny, pl.data.from(golden.rows):slice(1, 4), { lr = 1e-2, epochs = 3, batch_size = 2,
    eval = { data = pl.data.from(golden.rows):slice(5, 6), steps = 3 } })
  local got = column(m.history, "eval/loss")
  T.ok(not got[1] and got[3] and got[6])
  local rows = m:tokenize_rows(pl.data.from(golden.rows):slice(5, 6))
  T.near(got[6], -(m:completion_logprobs(rows)):mean():item(), 1e-5)
  T.raises(function()
    pl.train.sft(tiny, golden.rows, { eval = { data = { golden.rows[2] } } })
  end, "evaluation row 1 has the prompt of training row 2")
end)

T.test("sft_cuts_long_rows_and_counts_them", function()
  local rows = { { prompt = { 5, 6 }, completion = { 7, 8, 9, 10, 2 } }, { prompt = { 5 }, completion = { 6, 2 } } }
  local m = pl.train.sft(tiny, rows, { max_length = 4, max_steps = 1 })
  T.eq(m.history.summary.counts.cut_completion, 1)
  T.raises(function()
    pl.train.sft(tiny, { { prompt = { 5 }, completion = (function()
      local l = {}
      for i = 1, 70 do l[i] = 7 end
      return l
    end)() } }, {})
  end, "row 1: 71 tokens")
end)

local BAD = {
  { "no model", function() pl.train.sft("x", {}, {}) end, "wanted a model" },
  { "not a model", function() pl.train.sft({}, golden.rows, {}) end, "wanted a model" },
  { "no rows", function() pl.train.sft(tiny, {}, {}) end, "no rows" },
  { "empty completion", function() pl.train.sft(tiny, { { prompt = "a", completion = "" } }, {}) end, "row 1: completion is empty" },
  { "empty ids", function() pl.train.sft(tiny, { { prompt = { 1 }, completion = {} } }, {}) end, "row 1: completion is empty" },
  { "no completion", function() pl.train.sft(tiny, { { prompt = { 1 } } }, {}) end, "row 1 has no completion" },
  { "messages", function() pl.train.sft(tiny, { { messages = { { role = "user", content = "x" } } } }, {}) end, "chat templates" },
  { "id out of range", function() pl.train.sft(tiny, { { prompt = { 1 }, completion = { 61 } } }, {}) end, "61" },
  { "option", function() pl.train.sft(tiny, golden.rows, { learning_rate = 1 }) end, "unknown option" },
  { "typo", function() pl.train.sft(tiny, golden.rows, { batchsize = 1 }) end, 'did you mean "batch_size"' },
  { "optimizer", function() pl.train.sft(tiny, golden.rows, { optimizer = "adam" }) end, "adamw" },
  { "optimizer option", function() pl.train.sft(tiny, golden.rows, { optimizer = "sgd", betas = { 0.9, 0.9 } }) end, "betas" },
  { "schedule", function() pl.train.sft(tiny, golden.rows, { lr_scheduler = "cosin" }) end, "cosine" },
  { "row type", function() pl.train.sft(tiny, { 3 }, {}) end, "row 1" },
}
for _, bad in ipairs(BAD) do
  T.test("sft_refuses_" .. bad[1]:gsub(" ", "_"), function() T.raises(bad[2], bad[3]) end)
end

T.test("sft_stops_at_a_nan_and_names_step_and_rows", function()
  local m = tiny:clone()
  pl.no_grad(function() m:parameters()[1]:mul_(0 / 0) end)
  T.raises(function() pl.train.sft(m, golden.rows, { batch_size = 2 }) end, "step 1: the loss is .*nan on rows %d, %d; try")
  local before = tiny:hash()
  local message = T.raises(function()
    pl.train.sft(tiny, golden.rows, { batch_size = 6, lr = 1e30, optimizer = "sgd", max_grad_norm = 0, epochs = 9, lr_scheduler = "constant" })
  end, "try a lower lr")
  T.ok(message:find "step [2-9]", message)
  T.eq(tiny:hash(), before)
end)

-- Large enough that its products, updates and sums are cut into blocks.
local function large()
  return pl.models.new({ vocab_size = 500, max_position_embeddings = 128, hidden_size = 128, num_hidden_layers = 2,
    num_attention_heads = 4, intermediate_size = 256 }, { seed = 1 })
end

local function ids(n, seed)
  local out = {}
  for i = 1, n do out[i] = math.floor(500 * core.uniform(seed, 0, i)) end
  return out
end

local SAME = { rows = {}, pairs = {} }
for i = 1, 8 do
  SAME.rows[i] = { prompt = ids(20 + i, i), completion = ids(60, i + 10) }
  SAME.pairs[i] = { prompt = ids(20, i), chosen = ids(30 + i, i + 20), rejected = ids(40, i + 30) }
end
SAME.runs = {
  sft = function(m) return pl.train.sft(m, SAME.rows, { lr = 1e-3, epochs = 2, batch_size = 4, seed = 5 }) end,
  sft_bf16_checkpointed = function(m)
    return pl.train.sft(m, SAME.rows, { lr = 1e-3, epochs = 2, batch_size = 4, seed = 5, bf16 = true,
      gradient_checkpointing = true })
  end,
  dpo = function(m) return pl.train.preference(m, SAME.pairs, { lr = 1e-3, epochs = 2, batch_size = 4, beta = 0.1 }) end,
}
for name, run in pairs(SAME.runs) do
  T.test(name .. "_same_bytes_on_any_number_of_threads", function()
    local n, m = pl.threads(), large()
    local hashes = {}
    for i, t in ipairs { 1, 2, 3, 7 } do
      pl.threads(t)
      hashes[i] = run(m):hash()
    end
    pl.threads(n)
    T.ok(hashes[1] ~= m:hash())
    for i = 2, #hashes do T.eq(hashes[i], hashes[1]) end
  end)
end

T.test("sft_end_token_is_trained", function()
  local dir = T.need_shared() .. "/data/models/stories260K"
  local m = pl.load(dir)
  local rows = { { prompt = "Tim saw a cat.", completion = " The end." } }
  local out = pl.train.sft(m, rows, { lr = 1e-3, epochs = 15, batch_size = 1, lr_scheduler = "constant" })
  local g = out:generate({ "Tim saw a cat." }, { temperature = 0, max_tokens = 12 })
  T.eq(g[1].finish, "stop")
  T.eq(g[1].text, " The end.")
  -- an answer that ran into a limit gets none
  local cut = m:tokenize_rows { { prompt = "Tim saw a cat.", completion = { text = " The end.", finish = "length" } } }
  T.ok(cut[1].ids[#cut[1].ids] ~= m:end_token())
end)

-- tokenizer_config.json may name another end token than config.json: what is trained as the end ends.
T.test("sft_end_token_of_the_tokenizer_ends_an_answer", function()
  local made = require "tests.lua.tiny"(1)
  local dir, eos = T.tmpdir() .. "/other-end", made:end_token()
  local other = made.tokenizer:token_to_id "<unk>"
  made.files["tokenizer_config.json"] = pl.json.encode { eos_token = "<unk>" }
  made:save(dir)
  local m = pl.load(dir)
  T.eq(m:end_token(), other)
  T.eq(m:stop_ids(), { eos, other })
  local rows = { { prompt = " red", completion = " blue" } }
  local out = pl.train.sft(m, rows, { lr = 3e-2, epochs = 20, batch_size = 1, lr_scheduler = "constant" })
  local g = out:generate({ " red" }, { temperature = 0, max_tokens = 8 })[1]
  T.eq(g.finish, "stop")
  T.eq(g.ids, { made.tokenizer:token_to_id " blue", other })
  T.eq(g.text, " blue")
end)

T.test("pretrain_packs_documents", function()
  local pack = require("perilune.train.pretrain").pack
  local blocks = pack({ { 1, 2, 3, 0 }, { 4, 5, 6, 7, 0 }, { 8, 0 } }, 5)
  T.eq(blocks, { -- one token alone predicts nothing: left out
    { { ids = { 1, 2, 3, 0 }, start = 2 } },
    { { ids = { 5, 6, 7, 0 }, start = 2 } },
  })
  blocks = pack({ { 1, 2, 3, 0 }, { 4, 5, 6, 7, 0 }, { 8, 0 } }, 6)
  T.eq(blocks, {
    { { ids = { 1, 2, 3, 0 }, start = 2 }, { ids = { 4, 5 }, start = 2 } },
    { { ids = { 6, 7, 0 }, start = 2 }, { ids = { 8, 0 }, start = 2 } },
  })
end)

-- The rows that scoring and fine-tuning read: a post-processor may add tokens of its own to the tokenizer's.
T.test("pretrain_has_one_bos_and_one_end_token", function()
  local core = require "perilune.core"
  local plain = require("perilune.world.text").tokenizer()
  local eos, bos = plain:token_to_id "</s>", plain:token_to_id "<unk>" -- any special token can be the BOS
  local words = plain:encode " red blue"
  local function special(id, name) return { id = name, ids = { id }, tokens = { name } } end
  local function with_processor(front, back)
    local t = core.base.json_decode(plain:json())
    local function template(...)
      local out = { ... }
      if front then table.insert(out, 1, { SpecialToken = { id = "<unk>", type_id = 0 } }) end
      if back then table.insert(out, { SpecialToken = { id = "</s>", type_id = 0 } }) end
      return out
    end
    local a, b = { Sequence = { id = "A", type_id = 0 } }, { Sequence = { id = "B", type_id = 0 } }
    t.post_processor = { type = "TemplateProcessing", single = template(a), pair = template(a, b),
      special_tokens = { ["</s>"] = special(eos, "</s>"), ["<unk>"] = special(bos, "<unk>") } }
    return core.text.from_json(core.base.json_encode(t))
  end
  local function ids_of(tokenizer, text)
    local m = pl.models.new({ vocab_size = plain:vocab_size(), hidden_size = 8, intermediate_size = 8, num_hidden_layers = 1,
      num_attention_heads = 1, max_position_embeddings = 32, eos_token_id = eos }, { tokenizer = tokenizer })
    local task = require("perilune.train.pretrain").make("x", m, { { text = text } }, { block_size = 32 })
    return task.shown(1).ids, m
  end
  for _, case in ipairs {
    { false, true, " red blue", { words[1], words[2], eos } },
    { true, false, " red blue", { bos, words[1], words[2], eos } },
    { true, true, " red blue", { bos, words[1], words[2], eos } },
    { true, false, "<unk> red blue", { bos, words[1], words[2], eos } },
  } do
    local got, m = ids_of(with_processor(case[1], case[2]), case[3])
    T.eq(got, case[4])
    T.eq(got, m:tokenize_rows({ { text = case[3] } })[1].ids)
  end
  T.eq((ids_of(plain, " red blue</s>")), { words[1], words[2], eos })
  T.eq((ids_of(plain, { 5, 6, eos })), { 5, 6, eos })
  T.raises(function() pl.train.pretrain(tiny, { { text = "red" } }, { block_size = 16 }) end,
    "train.pretrain: row 1 is a text, and this model has no tokenizer")
end)

T.test("pretrain_documents_do_not_see_each_other", function()
  local m = tiny:clone()
  local one = m:completion_logprobs { { ids = { 5, 6, 7 }, start = 2 }, { ids = { 8, 9 }, start = 2 } }
  local two = m:completion_logprobs { { ids = { 15, 16, 17 }, start = 2 }, { ids = { 8, 9 }, start = 2 } }
  T.eq(one:tolist()[3], two:tolist()[3])
end)

T.test("pretrain_learns", function()
  local docs = {}
  for i = 1, 24 do docs[i] = { text = { 3 + i % 3, 10, 11, 12, 13, 14 } } end
  local m = pl.train.pretrain(tiny, docs, { block_size = 16, batch_size = 3, epochs = 6, lr = 1e-2 })
  local h = m.history
  T.ok(h[#h].loss < h[1].loss * 0.5, ("%g to %g"):format(h[1].loss, h[#h].loss))
  T.eq(h.summary.counts.tokens, 24 * 7)
  T.raises(function() pl.train.pretrain(tiny, { { prompt = "x" } }, {}) end, "row 1 has no text")
  T.raises(function() pl.train.pretrain(tiny, docs, { block_size = 1000 }) end, "context of 64")
end)

T.done()
