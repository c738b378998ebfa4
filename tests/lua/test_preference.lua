-- Training on preferences: golden curves, first-step checks, every named loss, own losses.
local T = require "tests.lua.harness"
local base = require("perilune.core").base
local pl = require "perilune"
local progress = require "perilune.study.progress"
local reference = require "perilune.train.reference"
local store = require "perilune.study.store"
progress.quiet(true)
store.set_home(T.tmpdir() .. "/home")

local golden = assert(pl.json.read "tests/golden/train/losses.json")
local tiny = pl.load "tests/golden/lm/tied"
local pairs4 = golden.pairs

local function apart(a, b)
  local worst, pb = 0, b:parameters()
  for i, p in ipairs(a:parameters()) do
    worst = math.max(worst, (p:detach() - pb[i]:detach()):abs():max():item())
  end
  return worst
end

local function column(history, name)
  local out = {}
  for i, r in ipairs(history) do out[i] = r[name] end
  return out
end

local function with(t, more)
  local o = {}
  for k, v in pairs(t) do o[k] = v end
  for k, v in pairs(more or {}) do o[k] = v end
  return o
end

local function golden_options(case, n)
  return { lr = case.lr, optimizer = case.optimizer, max_grad_norm = case.max_grad_norm, beta = case.beta, epochs = 10,
    batch_size = n, lr_scheduler = "constant" }
end

for _, case in ipairs(golden.dpo) do
  T.test("dpo_ten_steps_as_pytorch_" .. case.optimizer, function()
    local m = pl.train.preference(tiny, pairs4, golden_options(case, 4))
    T.near(column(m.history, "loss"), case.loss, 1e-4)
    for i, r in ipairs(m.history) do
      T.near(r.grad_norm, case.grad_norm[i], 2e-3 * case.grad_norm[i])
    end
  end)
end

-- PyTorch's curve is f32; the first loss is ln 2 only where the reference is read in bf16 too
T.test("dpo_in_bf16_follows_the_f32_curve", function()
  for _, case in ipairs(golden.dpo) do
    local m = pl.train.preference(tiny, pairs4, with(golden_options(case, 4), { bf16 = true }))
    local loss = column(m.history, "loss")
    T.near(loss, case.loss, 2e-2)
    T.near(loss[1], math.log(2), 1e-6)
    T.eq(m.history[1]["rewards/margins"], 0.0)
    T.ok(m.history[1]["logps/chosen"] ~= pl.train.preference(tiny, pairs4, golden_options(case, 4)).history[1]["logps/chosen"])
  end
end)

T.test("dpo_ten_steps_as_pytorch_on_stories260K", function()
  local dir = T.need_shared() .. "/data/models/stories260K"
  local g = assert(pl.json.read "tests/golden/train/stories.json")
  for _, case in ipairs(g.dpo) do
    local m = pl.train.preference(pl.load(dir), g.pairs, golden_options(case, #g.pairs))
    T.near(column(m.history, "loss"), case.loss, 1e-4)
  end
end)

T.test("preference_first_step_and_metrics", function()
  local m = pl.train.preference(tiny, pairs4, { beta = 0.2, lr = 1e-2, batch_size = 4, epochs = 3, lr_scheduler = "constant" })
  local first, last = m.history[1], m.history[3]
  T.near(first.loss, math.log(2), 1e-6)
  T.eq(first["rewards/margins"], 0.0)
  T.eq(first["rewards/chosen"], 0.0)
  T.eq(first["rewards/accuracies"], 0.0)
  T.ok(last["rewards/margins"] > 0 and last["rewards/accuracies"] > 0.5)
  T.near(last["rewards/margins"], last["rewards/chosen"] - last["rewards/rejected"], 1e-6)
  T.near(last["rewards/chosen"], 0.2 * (last["logps/chosen"] - last["logps/reference_chosen"]), 1e-5)
  local rows = tiny:tokenize_rows(pl.data.from(pairs4):columns { "prompt", completion = "chosen" })
  local sums, n = tiny:completion_sums(rows)
  T.near(first["logps/chosen"], sums:mean():item(), 1e-4)
  T.near(first["ppl/chosen"], math.exp(-sums:sum():item() / n:sum():item()), 1e-3)
  T.eq(first["counters/examples"], 4)
  T.near(last["rewards/beta_normalized_margin"], last["rewards/margins"] / 0.2, 1e-4)
  T.near(last["rewards/chosen_logprob_ratio"], last["logps/chosen"] - last["logps/reference_chosen"], 1e-4)
  T.near(last["rewards/rejected_logprob_ratio"], last["logps/rejected"] - last["logps/reference_rejected"], 1e-4)
  T.eq(last["importance_weights/rejected"], nil)
  local corrected = pl.train.preference(tiny, pairs4, { importance_correction = true, batch_size = 4, max_steps = 2, lr = 1e-2,
    lr_scheduler = "constant" }).history
  T.near(corrected[1]["importance_weights/rejected"], 1, 1e-6)
  T.ok(corrected[2]["importance_weights/rejected"] ~= 1)
end)

T.test("preference_normalises_over_the_pairs_of_the_step", function()
  for _, name in ipairs { "dpo", "ipo", "simpo", "orpo" } do
    local first
    for _, cut in ipairs { { 4, 1 }, { 2, 2 }, { 1, 4 }, { 3, 2 } } do
      local m = pl.train.preference(tiny, pairs4, { loss = name, lr = 1e-3, epochs = 2, batch_size = cut[1], optimizer = "sgd",
        gradient_accumulation_steps = cut[2], lr_scheduler = "constant" })
      first = first or m
      T.ok(apart(first, m) < 1e-5, name)
    end
  end
end)

T.test("preference_own_scalar_loss_is_normalised_alike", function()
  local function own(p, o) return pl.softplus((p.chosen - p.rejected) * -o.beta):mean() end
  local a = pl.train.preference(tiny, pairs4, { loss = own, beta = 0.3, lr = 1e-2, epochs = 2, batch_size = 4, optimizer = "sgd" })
  local b = pl.train.preference(tiny, pairs4, { loss = own, beta = 0.3, lr = 1e-2, epochs = 2, batch_size = 3, optimizer = "sgd",
    gradient_accumulation_steps = 2 })
  local c = pl.train.preference(tiny, pairs4, { loss = "dpo", beta = 0.3, lr = 1e-2, epochs = 2, batch_size = 4, optimizer = "sgd" })
  T.ok(apart(a, b) < 1e-5)
  T.ok(apart(a, c) < 1e-6)
end)

-- Each named loss trains, begins at its known value, and its gradient is that of its own value.
for _, name in ipairs(pl.loss.names()) do
  T.test("preference_trains_with_" .. name, function()
    local def = pl.loss.find(name)
    local m = pl.train.preference(tiny, pairs4, { loss = name, lr = 1e-4, epochs = 4, batch_size = 4, optimizer = "sgd",
      lr_scheduler = "constant", max_grad_norm = 1 })
    local h = m.history
    if def.t0 then
      local o = require("perilune.options").resolve("x", def.options, {})
      T.near(h[1].loss, def.t0(o), 1e-5 * math.max(1, def.t0(o)))
    end
    T.ok(h[1].grad_norm > 0)
    T.ok(h[4].loss < h[1].loss, ("%g to %g"):format(h[1].loss, h[4].loss))
    if name ~= "dpop" then -- which has a corner where policy equals reference
      -- the first step moves the loss by -lr * |clipped gradient|^2 to first order
      local scale = math.min(1, 1 / h[1].grad_norm)
      local want = -1e-4 * scale * h[1].grad_norm ^ 2
      T.near((h[2].loss - h[1].loss) / want, 1, 0.1)
    end
  end)
end

T.test("preference_prompt_tokens_get_no_gradient_of_their_own", function()
  -- the same prompt on both sides: at a loss linear in L_w - L_l the prompt's own log-probabilities would cancel,
  -- so look at one side: the sum over the answer's tokens one at a time equals what the loss sees
  local row = pairs4[2]
  local rows = tiny:tokenize_rows { { prompt = row.prompt, completion = row.chosen } }
  local ids = rows[1].ids
  local one_by_one = 0
  for t = #row.prompt + 1, #ids do
    local part = table.move(ids, 1, t, 1, {})
    one_by_one = one_by_one + (tiny:completion_logprobs { { ids = part, start = t } }):item()
  end
  T.near((tiny:completion_sums(rows)):item(), one_by_one, 1e-4)
end)

T.test("preference_reference_is_read_once_and_only_if_needed", function()
  local calls = 0
  local m = tiny:clone()
  local plain = m.pair_sums
  m.pair_sums = function(self, list)
    calls = calls + 1
    return plain(self, list)
  end
  reference.forget()
  local no_reference = pl.train.preference(m, pairs4, { loss = "simpo", lr = 1e-4, epochs = 3, batch_size = 2 })
  T.eq(calls, 0)                                   -- the policy is a clone: its calls are not counted
  T.eq(no_reference.history[1]["logps/reference_chosen"], nil)
  local dpo = pl.train.preference(m, pairs4, { loss = "dpo", lr = 1e-4, epochs = 3, batch_size = 2 })
  T.eq(calls, 2)
  T.ok(dpo.history[1]["logps/reference_chosen"])
end)

-- A model whose passes as a reference are counted; a training's policy is a clone, which is not.
local function counted_model()
  local m, passes = tiny:clone(), { n = 0 }
  local plain = m.pair_sums
  m.pair_sums = function(self, list)
    passes.n = passes.n + (pl.grad_enabled() and 0 or 1)
    return plain(self, list)
  end
  return m, passes
end

local SWEPT = { batch_size = 2, lr = 1e-3, max_steps = 4 }
local SWEEP = { { beta = 0.3 }, { lr = 1e-2 }, { loss = "ipo" }, { max_steps = 7 }, { sft_reg = 0.1 },
  { eval = { data = { { prompt = { 3, 4 }, chosen = { 5, 2 }, rejected = { 6, 2 } } } } } }

T.test("preference_reference_is_kept_for_the_next_training", function()
  local m, passes = counted_model()
  reference.forget()
  pl.train.preference(m, pairs4, SWEPT)
  T.eq(passes.n, 2)
  pl.train.preference(m, pairs4, with(SWEPT, SWEEP[#SWEEP])) -- its evaluation rows are new
  T.eq(passes.n, 3)
  local kept = {}
  for i, more in ipairs(SWEEP) do kept[i] = pl.train.preference(m, pairs4, with(SWEPT, more)):hash() end
  T.eq(passes.n, 3)
  for i, more in ipairs(SWEEP) do
    reference.forget()
    T.eq(pl.train.preference(tiny, pairs4, with(SWEPT, more)):hash(), kept[i])
  end
end)

T.test("preference_reference_is_read_again_where_it_may_differ", function()
  local m, passes = counted_model()
  reference.forget()
  pl.train.preference(m, pairs4, SWEPT)
  local before = passes.n
  local function reads(rows, more)
    pl.train.preference(m, rows, with(SWEPT, more))
    local n = passes.n - before
    before = passes.n
    return n
  end
  T.eq(reads(pairs4), 0)
  T.eq(reads(pairs4, { bf16 = true }), 2)
  T.eq(reads(pairs4, { bf16 = true }), 0)
  T.eq(reads(pairs4, { batch_size = 4 }), 1)
  T.eq(reads(pairs4, { max_length = 8 }), 2)
  T.eq(reads({ pairs4[1], pairs4[2], pairs4[3], with(pairs4[4], { chosen = { 7, 2 } }) }), 2)
  pl.no_grad(function() m:parameters()[1]:mul_(1.01) end)
  T.eq(reads(pairs4), 2)
end)

T.test("preference_reference_lies_on_disk_in_a_run", function()
  local m, passes = counted_model()
  local function trained(beta)
    local out
    reference.forget() -- as in another process
    pl.recipe({ name = "sweep", run = function()
      out = pl.train.preference(m, pairs4, with(SWEPT, { beta = beta })):hash()
      return {}
    end }):run()
    return out
  end
  trained(0.1)
  T.eq(passes.n, 2)
  local kept = trained(0.2)
  T.eq(passes.n, 2)
  reference.forget()
  T.eq(pl.train.preference(tiny, pairs4, with(SWEPT, { beta = 0.2 })):hash(), kept)
end)

T.test("preference_reference_tells_its_progress_and_is_no_part_of_a_steps_speed", function()
  local SLOW = 0.25 -- seconds a pass of the reference
  local m = tiny:clone()
  local plain = m.pair_sums
  m.pair_sums = function(self, list)
    base.sleep(SLOW)
    return plain(self, list)
  end
  reference.forget()
  local bars, start = {}, progress.start
  progress.start = function(spec)
    local bar = start(spec)
    bars[#bars + 1] = { label = spec.label, unit = spec.unit, total = spec.total, bar = bar, began = bar.began, seen = 0 }
    local update, kept = bar.update, bars[#bars]
    function bar:update(...)
      kept.seen = kept.seen + 1
      return update(self, ...)
    end
    return bar
  end
  local ok, trained = pcall(pl.train.preference, m, pairs4, SWEPT)
  progress.start = start
  T.ok(ok, trained)
  local training, read = bars[1], bars[2]
  T.eq({ #bars, read.label, read.unit, read.total, read.seen }, { 2, "reference", "batch", 2, 2 })
  T.ok(trained.history[1].examples_per_second > 2 / (2 * SLOW), trained.history[1].examples_per_second)
  T.ok(training.bar.began - training.began >= 2 * SLOW, "nor of the time left")
  T.ok(trained.history.summary.seconds >= 2 * SLOW, "but of the whole")
  T.eq(trained:hash(), pl.train.preference(tiny, pairs4, SWEPT):hash())
end)

T.test("preference_in_place_equals_not_in_place", function()
  local o = { lr = 1e-2, epochs = 3, batch_size = 2, beta = 0.1, sft_reg = 0.1 }
  local a = pl.train.preference(tiny, pairs4, o)
  local m = tiny:clone()
  local b = pl.train.preference(m, pairs4, with(o, { in_place = true }))
  T.ok(rawequal(b, m))
  T.eq(a:hash(), b:hash())
end)

T.test("preference_sft_reg_adds_the_chosen_likelihood", function()
  local m = pl.train.preference(tiny, pairs4, { beta = 0.1, sft_reg = 0.5, lr = 1e-9, max_steps = 1, batch_size = 4 })
  local r = m.history[1]
  T.near(r.loss, math.log(2) - 0.5 * r["logps/chosen"], 1e-4)
end)

T.test("preference_reference_free", function()
  local m = pl.train.preference(tiny, pairs4, { beta = 0.1, reference_free = true, lr = 1e-9, max_steps = 1, batch_size = 4 })
  local sums = 0
  for _, row in ipairs(pairs4) do
    local s = tiny:completion_sums(tiny:tokenize_rows {
      { prompt = row.prompt, completion = row.chosen }, { prompt = row.prompt, completion = row.rejected } }):tolist()
    sums = sums + math.log(1 + math.exp(-0.1 * (s[1] - s[2]))) / 4
  end
  T.near(m.history[1].loss, sums, 1e-5)
  T.near(m.history[1]["rewards/margins"], 0, 1e-6)      -- rewards stay against the reference
end)

T.test("preference_own_loss_sees_all_fields", function()
  local seen = {}
  pl.train.preference(tiny, pairs4, { max_steps = 1, batch_size = 4, lr = 1e-3, a = 1, b = "x",
    loss = function(p, o)
      for _, name in ipairs { "chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps", "chosen_tokens",
        "rejected_tokens", "chosen_nll", "chosen", "rejected" } do
        seen[name] = p[name]:detach():tolist()
      end
      seen.o = { o.a, o.b, o.missing }
      return p.chosen_nll:mean()
    end })
  T.eq(seen.o, { 1, "x" })
  T.eq(seen.chosen, { 0.0, 0.0, 0.0, 0.0 })
  for i = 1, 4 do
    T.near(seen.chosen_nll[i], -seen.chosen_logps[i] / seen.chosen_tokens[i], 1e-5)
  end
end)

local function mean_loss(p) return p.chosen_nll:mean() end

local BAD = {
  { "option of another loss", { loss = "dpo", gamma = 1 }, "the loss dpo does not read the option gamma (simpo does)" },
  { "unknown option", { loss = "dpo", margin = 1 }, "unknown option" },
  { "typo", { loss = "dpo", bta = 1 }, 'did you mean "beta"' },
  { "smoothing on dpo", { loss = "dpo", label_smoothing = 0.1 }, "does not read the option label_smoothing" },
  { "reference_free without reference", { loss = "simpo", reference_free = true }, "reference_free" },
  { "loss name", { loss = "dop" }, 'did you mean "dpo"' },
  { "loss type", { loss = 3 }, "option loss" },
  { "unread option", { loss = mean_loss, bta = 0.1 }, "did not read the option bta" },
  { "no tensor", { loss = function() return 1 end }, "the loss returned number" },
  { "wrong size", { loss = function() return pl.zeros(3) end }, "returned 3 numbers for 2 pairs" },
  { "field", { loss = function(p) return p.chosn end }, 'did you mean "chosen"' },
  { "nan", { loss = function(p) return p.chosen_logps * (0 / 0) end }, "the loss is .*nan on rows" },
  { "options changed", { loss = function(p, o) o.x = 1 return p.chosen end }, "must not change" },
  { "aot of one", { loss = "aot", batch_size = 1 }, "batch_size above 1" },
  { "error in loss", { loss = function() error "mine" end }, "mine" },
}
for _, bad in ipairs(BAD) do
  T.test("preference_refuses_" .. bad[1]:gsub(" ", "_"), function()
    T.raises(function() pl.train.preference(tiny, pairs4, with({ batch_size = 2, max_steps = 1 }, bad[2])) end, bad[3])
  end)
end

T.test("preference_refuses_bad_rows", function()
  T.raises(function() pl.train.preference(tiny, { { prompt = { 1 }, chosen = {}, rejected = { 2 } } }, {}) end, "row 1: chosen is empty")
  T.raises(function() pl.train.preference(tiny, { { prompt = { 1 }, completion = { 2 } } }, {}) end, "row 1 has no chosen")
end)

T.test("preference_first_step_catches_another_reference", function()
  local m = tiny:clone()
  local other = tiny:clone()
  reference.forget()
  pl.no_grad(function() other:parameters()[1]:mul_(1.01) end)
  m.pair_sums = function(_, list) return other:pair_sums(list) end    -- the reference is not the policy
  T.raises(function() pl.train.preference(m, pairs4, { lr = 1e-4, max_steps = 1 }) end, "same model")
end)

T.test("preference_cuts_both_prompts_alike", function()
  local rows = { { prompt = { 5, 6, 7, 8 }, chosen = { 9, 10, 11, 2 }, rejected = { 12, 2 } } }
  local got
  pl.train.preference(tiny, rows, { max_length = 6, max_steps = 1, batch_size = 1, lr = 1e-4, loss = function(p)
    got = { p.chosen_tokens:item(), p.rejected_tokens:item(), p.ref_rejected_logps:item() }
    return p.chosen - p.rejected
  end })
  local same = tiny:completion_sums { { ids = { 7, 8, 12, 2 }, start = 3 } }
  T.near(got, { 4, 2, same:item() }, 1e-5)
end)

T.test("preference_counts_a_cut_pair_once", function()
  local long, short, prompt = { 9, 8, 7, 2 }, { 3, 2 }, { 5, 6, 7, 8, 9, 10, 11, 12 }
  local function counted(p, chosen, rejected, max_length)
    local counts = pl.train.preference(tiny, { { prompt = p, chosen = chosen, rejected = rejected } },
      { max_steps = 1, batch_size = 1, lr = 1e-4, max_length = max_length }).history.summary.counts
    return { counts.cut_prompt, counts.cut_completion }
  end
  T.eq(counted(prompt, short, short, 10), { 0, 0 })
  T.eq(counted(prompt, long, short, 10), { 1, 0 })
  T.eq(counted(prompt, short, long, 10), { 1, 0 })  -- the chosen side is shortened after the rejected one
  T.eq(counted(prompt, short, long, 9), { 1, 0 })   -- both are cut
  T.eq(counted(prompt, short, long, 3), { 1, 0 })   -- the rejected answer too: the pair counts as its chosen side
  T.eq(counted({ 5 }, short, long, 3), { 0, 1 })
end)

T.test("preference_evaluates_against_the_reference", function()
  local ds = pl.data.from(pairs4)
  local m = pl.train.preference(tiny, ds:slice(1, 3), { lr = 1e-2, epochs = 3, batch_size = 3, eval = { data = ds:slice(4, 4) },
    lr_scheduler = "constant" })
  local r = m.history[3]
  T.ok(r["eval/loss"] and r["eval/rewards/margins"] and r["eval/ppl/chosen"])
  local row = pairs4[4]
  local both = { { prompt = row.prompt, completion = row.chosen }, { prompt = row.prompt, completion = row.rejected } }
  local a, b = m:completion_sums(m:tokenize_rows(both)):tolist(), tiny:completion_sums(tiny:tokenize_rows(both)):tolist()
  T.near(r["eval/rewards/margins"], 0.1 * ((a[1] - b[1]) - (a[2] - b[2])), 1e-5)
end)

T.done()
