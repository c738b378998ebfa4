--- The study of "A Critical Evaluation of AI Feedback for Aligning Large
--- Language Models" (arXiv 2402.12366): supervised fine-tuning on a teacher's
--- demonstrations, then preference training on a critic's verdicts, against
--- plain fine-tuning on a stronger teacher. With the defaults it runs on the
--- built-in world, where true quality can be computed; with base=, teacher.*=,
--- critic=, judge= and prompts= it asks the same question of other models.
local pl = require "perilune"

-- The arms, in the order of the table. `data` is the share of the prompts whose
-- demonstrations are fine-tuned on; `aif` continues with AI feedback on the rest.
local ARMS = {
  { name = "base" },
  { name = "sft-weak", teacher = "weak", data = "all" },
  { name = "sft-weak-10", teacher = "weak", data = "first" },
  { name = "sft-weak-10+aif", teacher = "weak", data = "first", aif = true },
  { name = "sft-strong", teacher = "strong", data = "all" },
  { name = "sft-strong-10", teacher = "strong", data = "first" },
  { name = "sft-strong-10+aif", teacher = "strong", data = "first", aif = true },
}

local ARM_NAMES = {}
for i, arm in ipairs(ARMS) do ARM_NAMES[i] = arm.name end

-- The arms of a run, in the order of the table; one that continues another needs it.
local function chosen_arms(names)
  local wanted, out = {}, {}
  for _, name in ipairs(names) do
    wanted[name] = true
    local known = false
    for _, arm in ipairs(ARMS) do known = known or arm.name == name end
    if not known then error("rlaif: " .. pl.options.unknown("arm", name, ARM_NAMES), 0) end
  end
  for _, arm in ipairs(ARMS) do
    if wanted[arm.name] then
      local first = arm.aif and arm.name:gsub("%+aif$", "")
      if first and not wanted[first] then
        error(("rlaif: arm %s goes on from %s: list both in arms="):format(arm.name, first), 0)
      end
      out[#out + 1] = arm
    end
  end
  if #out == 0 then error("rlaif: arms= names no arm", 0) end
  return out
end

-- A service answers a bare prompt with a text of its own, which no base model would go on with.
local function format_of(p, teachers)
  if p.format ~= "auto" then return p.format end
  for _, teacher in pairs(teachers) do
    if teacher.provider.whole then return "paper" end
  end
  return "plain"
end

-- The paper's claims as contrasts of arms, and the gains they are made of.
local GAIN_WEAK = { ["sft-weak-10+aif"] = 1, ["sft-weak-10"] = -1 }
local GAIN_STRONG = { ["sft-strong-10+aif"] = 1, ["sft-strong-10"] = -1 }
local CLAIMS = {
  { text = "AI feedback beats SFT on the weak teacher", kind = "above",
    weights = { ["sft-weak-10+aif"] = 1, ["sft-weak"] = -1 } },
  { text = "SFT on the strong teacher matches or beats AI feedback", kind = "not below",
    weights = { ["sft-strong"] = 1, ["sft-weak-10+aif"] = -1 } },
  { text = "the gain of AI feedback shrinks when teacher = critic", kind = "above",
    weights = { ["sft-weak-10+aif"] = 1, ["sft-weak-10"] = -1, ["sft-strong-10+aif"] = -1, ["sft-strong-10"] = 1 } },
}
local GAINS = {
  { text = "gain of AI feedback over SFT 10 %, weak teacher", weights = GAIN_WEAK },
  { text = "gain of AI feedback over SFT 10 %, strong teacher", weights = GAIN_STRONG },
  { text = "SFT on the strong teacher over its own AI feedback",
    weights = { ["sft-strong"] = 1, ["sft-strong-10+aif"] = -1 } },
}
local MARGIN = 2 -- points: smaller differences do not count as "beats"

-- What a parameter left empty means: for the embedded base, for a real model of up to
-- SMALL parameters, and for a larger one (close to the paper's own settings).
local SMALL = 100e6
local PRESETS = {
  tiny = {
    max_tokens = 8, sft = { lr = 2e-3, epochs = 4 }, sft10 = { lr = 1e-3, epochs = 8 },
    dpo = { lr = 3e-4, epochs = 2, beta = 0.5 },
  },
  small = {
    max_tokens = 64, sft = { lr = 5e-4, epochs = 3 }, sft10 = { lr = 5e-4, epochs = 9 },
    dpo = { lr = 1e-4, epochs = 3, beta = 0.1 },
  },
  large = {
    max_tokens = 128, sft = { lr = 1e-5, epochs = 3 }, sft10 = { lr = 1e-5, epochs = 9 },
    dpo = { lr = 5e-7, epochs = 3, beta = 0.05 },
  },
}

-- A parameter whose default depends on the base: presets are listed in its help.
local function by_base(doc, group, field, kind)
  local values = {}
  for i, size in ipairs { "tiny", "small", "large" } do
    values[i] = ("%s %g"):format(size, group and PRESETS[size][group][field] or PRESETS[size][field])
  end
  local least = kind == "integer" and 1 or 0
  return { type = kind or "number", min = least, doc = ("%s (%s)"):format(doc, table.concat(values, ", ")) }
end

local params = {
  base = { "tiny", doc = "base model: a Hugging Face directory, or tiny (made here, one for each seed)" },
  teacher = {
    weak = { "oracle:0.55", doc = "writes the demonstrations of the weak arms" },
    strong = { "oracle:0.95", doc = "writes the demonstrations of the strong arms" },
  },
  critic = { "oracle:0.95", doc = "compares the pairs that preference training learns from" },
  judge = { type = "string", doc = "compares each arm with the reference (world: oracle:0.95, else the critic)" },
  reference = { type = "string",
    doc = "whose answers the arms are judged against: a teacher, or base (world: the weak teacher, else base)" },
  prompts = { "world", doc = "world, or a JSONL file with a prompt in each row; its last rows are held out" },
  format = { "auto", choices = { "auto", "plain", "paper" }, doc = "how the base sees prompts: as they are, or as \\n\\nHuman: "
    .. "PROMPT\\n\\nAssistant: ANSWER (auto: paper where a teacher is a service)" },
  n_prompts = { 6000, min = 20, doc = "training prompts" },
  held_out = { 400, min = 10, doc = "prompts that no arm trains on (of a file: at most 2/5 of its rows)" },
  sft_fraction = { 0.1, min = 0.001, max = 0.9,
    doc = "share of the training prompts in the 10 % arms; AI feedback takes the rest" },
  pairs = { "teacher", choices = { "teacher", "policy" },
    doc = "pair a policy sample with the teacher's answer, or with another sample" },
  order = { "both", choices = { "both", "coin", "given" }, doc = "orders in which a critic or judge sees a pair" },
  arms = { ARM_NAMES, doc = "the arms to run, of " .. table.concat(ARM_NAMES, ", ") },
  probe = { "warn", choices = { "warn", "stop", "off" },
    doc = "try a critic that is a service on known pairs before it is paid for many; stop where it fails them" },
  seeds = { 3, min = 1, doc = "repetitions with their own base, data order and samples" },
  seed = { 0, min = 0, doc = "where the seeds start" },
  batch_size = { 16, min = 1, doc = "examples (or pairs) a step" },
  optimizer = { "adamw", choices = { "adamw", "rmsprop", "sgd" }, doc = "for fine-tuning and preference training" },
  max_grad_norm = { 1.0, min = 0, doc = "clip the gradient's global norm (the paper: 10)" },
  bf16 = { false, doc = "train in bf16 (weights and moments stay f32)" },
  gradient_checkpointing = { false, doc = "train with less memory: layers are computed again, the result is the same" },
  sft = {
    lr = by_base("SFT on all prompts: learning rate", "sft", "lr"),
    epochs = by_base("SFT on all prompts: epochs", "sft", "epochs", "integer"),
  },
  sft10 = {
    lr = by_base("SFT on 10 %: learning rate", "sft10", "lr"),
    epochs = by_base("SFT on 10 %: epochs", "sft10", "epochs", "integer"),
  },
  dpo = {
    lr = by_base("learning rate", "dpo", "lr"),
    epochs = by_base("epochs", "dpo", "epochs", "integer"),
    beta = by_base("strength of the pull towards the reference", "dpo", "beta"),
    sft_reg = { 0, min = 0, doc = "weight of the chosen answer's negative log-likelihood beside the preference loss" },
  },
  sample = {
    temperature = { 1.0, min = 0, doc = "of the policy's answers in the pairs" },
    top_p = { 0.9, min = 0, max = 1, doc = "nucleus of all sampling" },
    dtype = { "f32", choices = { "f32", "bf16", "int8" },
      doc = "numbers of the weights in all sampling of base and policies; bf16 and int8 are faster and rounded" },
  },
  eval = { temperature = { 0.7, min = 0, doc = "of the answers that are judged" } },
  max_tokens = by_base("longest answer", nil, "max_tokens", "integer"),
  tiny = {
    tokens = { 3000000, min = 1000, doc = "raw text the embedded base is trained on" },
    hidden_size = { 128, min = 8, doc = "its width" },
    layers = { 2, min = 1, doc = "its depth" },
    lr = { 4e-3, min = 0, doc = "its learning rate" },
  },
}

-- Fills what was left empty from the preset of the base (nil: the embedded one).
local function with_preset(p, base)
  local preset = not base and PRESETS.tiny or base:num_parameters() <= SMALL and PRESETS.small or PRESETS.large
  local function pick(name, field)
    local v = p[name][field]
    if v == nil then return preset[name][field] end
    return v
  end
  local out = { max_tokens = p.max_tokens or preset.max_tokens, sft = {}, sft10 = {}, dpo = {} }
  for _, field in ipairs { "lr", "epochs" } do
    for _, name in ipairs { "sft", "sft10", "dpo" } do out[name][field] = pick(name, field) end
  end
  out.dpo.beta = pick("dpo", "beta")
  return out
end

-- ---------------------------------------------------------------- the pieces

local CONTEXT = 64 -- the embedded base's context and the length of its training blocks

-- The embedded base: a small Llama trained on the world's raw text, which the first
-- seed that has to be trained writes into `raw_text`.
local function tiny_base(p, run, seed, raw_text)
  local steps = math.max(1, p.tiny.tokens // (p.batch_size * CONTEXT))
  return run:remember {
    name = "base", kind = "model",
    options = { seed = seed, steps = steps, batch_size = p.batch_size, tiny = p.tiny, context = CONTEXT,
      bf16 = p.bf16 },
    compute = function(ctx)
      local text = require "perilune.world.text"
      local tokenizer = text.tokenizer()
      local model = pl.models.new({
        model_type = "llama", vocab_size = tokenizer:vocab_size(), hidden_size = p.tiny.hidden_size,
        intermediate_size = 2 * p.tiny.hidden_size, num_hidden_layers = p.tiny.layers,
        num_attention_heads = math.max(1, p.tiny.hidden_size // 32), max_position_embeddings = CONTEXT,
        tie_word_embeddings = true, rms_norm_eps = 1e-5, rope_theta = 10000.0,
        eos_token_id = tokenizer:token_to_id "</s>",
      }, { tokenizer = tokenizer, seed = seed })
      -- about 36 tokens a document; one text for all seeds, in another order each
      raw_text.rows = raw_text.rows or pl.data.from(text.documents(0, p.tiny.tokens // 36))
      return pl.train.pretrain(model, raw_text.rows, {
        block_size = CONTEXT, batch_size = p.batch_size, max_steps = steps, lr = p.tiny.lr, betas = { 0.9, 0.98 },
        weight_decay = 0.05, lr_scheduler = "cosine", min_lr_ratio = 0.05, warmup_steps = math.min(50, steps // 10),
        max_grad_norm = 1.0, seed = seed, bf16 = p.bf16, gradient_checkpointing = p.gradient_checkpointing, in_place = true,
        label = "base", scratch = ctx.scratch,
      })
    end,
  }
end

local function normalised(prompt) return prompt:lower():gsub("%s+", " ") end

-- Training and held-out prompts: no prompt twice, none in both.
local function load_prompts(p, run)
  if p.prompts == "world" then
    local train, held = require("perilune.world").prompts(0, p.n_prompts, p.held_out)
    return pl.data.from(train), pl.data.from(held)
  end
  local rows, seen = {}, {}
  for _, row in ipairs(pl.data.load(p.prompts):rows()) do
    if type(row.prompt) ~= "string" then error(p.prompts .. ": a row has no text column \"prompt\"", 0) end
    local id = normalised(row.prompt)
    if not seen[id] then
      seen[id] = true
      rows[#rows + 1] = { prompt = row.prompt }
    end
  end
  local n_held = math.min(p.held_out, #rows * 2 // 5)
  local n_train = math.min(p.n_prompts, #rows - n_held)
  if n_held < 10 or n_train < 20 then
    error(("%s: %d different prompts are too few: at least 50 are needed"):format(p.prompts, #rows), 0)
  end
  if n_held < p.held_out then
    run:note(("%s holds %d different prompts: %d train, %d are held out."):format(p.prompts, #rows, n_train, n_held))
  end
  return pl.data.from(table.move(rows, 1, n_train, 1, {})),
    pl.data.from(table.move(rows, #rows - n_held + 1, #rows, 1, {}))
end

-- SFT on a teacher's demonstrations.
local function fine_tune(p, base, demos, o, seed)
  return pl.train.sft(base, demos, {
    lr = o.lr, epochs = o.epochs, batch_size = p.batch_size, optimizer = p.optimizer, lr_scheduler = "linear",
    min_lr_ratio = 0.1, warmup_steps = 10, max_grad_norm = p.max_grad_norm, seed = seed, bf16 = p.bf16,
    gradient_checkpointing = p.gradient_checkpointing,
  })
end

-- AI feedback: sample from the policy, let the critic compare, train on what it preferred.
local function ai_feedback(p, policy, critic, demos, prompts, preset, seed)
  local sampling = {
    n = p.pairs == "policy" and 2 or 1, max_tokens = preset.max_tokens, temperature = p.sample.temperature,
    top_p = p.sample.top_p, dtype = p.sample.dtype, seed = seed,
  }
  local candidates = preset.sample(policy, prompts, sampling)
  if p.pairs == "teacher" then
    candidates = pl.feedback.join(demos, candidates, { names = { "teacher", "policy" } })
  end
  local preferences = pl.feedback.compare(critic, candidates, { order = p.order, seed = seed })
  return pl.train.preference(policy, pl.feedback.wrap(preferences, preset.wrapping), {
    loss = "dpo", beta = preset.dpo.beta, sft_reg = p.dpo.sft_reg > 0 and p.dpo.sft_reg or nil, lr = preset.dpo.lr,
    epochs = preset.dpo.epochs, batch_size = p.batch_size, optimizer = p.optimizer, lr_scheduler = "linear",
    min_lr_ratio = 0.1, warmup_steps = 10, max_grad_norm = p.max_grad_norm, seed = seed, bf16 = p.bf16,
    gradient_checkpointing = p.gradient_checkpointing,
  })
end

-- True quality of sampled answers, 0..100 a prompt.
local function qualities(samples)
  local world, out = require "perilune.world", {}
  for i, row in ipairs(samples:rows()) do out[i] = 100 * world.quality(row.prompt, row.completions[1].text) end
  return out
end

-- What the table says about the shape of the answers.
local function shape(samples)
  local words, cut = 0, 0
  for _, row in ipairs(samples:rows()) do
    local answer = row.completions[1]
    words = words + select(2, answer.text:gsub("%S+", ""))
    if answer.finish == "length" then cut = cut + 1 end
  end
  return words / #samples, 100 * cut / #samples
end

-- ------------------------------------------------------------------ the tables

-- Each contrast whose arms were run, with its interval and, where it is a claim, whether it holds.
local function contrasts(list, cells)
  local out = {}
  for _, item in ipairs(list) do
    local complete = true
    for name in pairs(item.weights) do complete = complete and cells[name] ~= nil end
    if complete then
      local interval = pl.eval.interval(pl.eval.contrast(cells, item.weights), { prompts = "shared" })
      out[#out + 1] = {
        text = item.text, effect = interval.mean, ci_low = interval.ci_low, ci_high = interval.ci_high,
        holds = item.kind and pl.eval.verdict(interval, MARGIN, item.kind) or nil,
      }
    end
  end
  return out
end

local function per_seed(values)
  local out = {}
  for i, list in ipairs(values) do out[i] = pl.eval.mean(list) end
  return out
end

local function arm_rows(list, results, cells, n)
  local arms = {}
  for i, arm in ipairs(list) do
    local name = arm.name
    local win = pl.eval.interval(cells.win[name], { prompts = "shared" })
    local row = {
      name = name, win_rate = win.mean, ci_low = win.ci_low, ci_high = win.ci_high, n = n,
      win_seeds = per_seed(cells.win[name]), words = pl.eval.mean(results[name].words),
      no_stop = pl.eval.mean(results[name].no_stop),
    }
    if cells.quality then
      local quality = pl.eval.interval(cells.quality[name], { prompts = "shared" })
      row.true_quality, row.quality_low, row.quality_high = quality.mean, quality.ci_low, quality.ci_high
      row.quality_seeds = per_seed(cells.quality[name])
      row.greedy_quality = pl.eval.interval(cells.greedy[name], { prompts = "shared" }).mean
    end
    arms[i] = row
  end
  return arms
end

-- A dozen held-out prompts with every arm's answer, from the first seed.
local function show_samples(run, list, results, has_truth)
  local rows = {}
  for i = 1, math.min(12, #results[list[1].name].samples[1]) do
    local answers, prompt = {}, nil
    for _, arm in ipairs(list) do
      local r = results[arm.name]
      local row = r.samples[1]:rows()[i]
      prompt = row.prompt
      local score = r.judged[1].scores[i]
      answers[#answers + 1] = {
        label = arm.name, text = row.completions[1].text, score = has_truth and r.quality[1][i] or nil,
        verdict = score == 1 and "win" or score == 0 and "loss" or score and "tie" or "invalid",
      }
    end
    rows[i] = { prompt = prompt, answers = answers }
  end
  run:samples {
    title = "Held-out prompts: each arm's answer and its verdict against the reference (seed 1)", rows = rows,
  }
end

return pl.recipe {
  name = "rlaif",
  doc = "Is AI feedback worth it, or would fine-tuning on a stronger teacher do? Seven arms, judged head to head.",
  params = params,
  run = function(p, run)
    local given_base = p.base ~= "tiny" and pl.load(p.base) or nil
    local preset, arms = with_preset(p, given_base), chosen_arms(p.arms)
    local teachers, with_aif = {}, false
    for _, arm in ipairs(arms) do
      if arm.teacher then teachers[arm.teacher] = teachers[arm.teacher] or pl.ai(p.teacher[arm.teacher]) end
      with_aif = with_aif or arm.aif or false
    end
    preset.wrapping = { format = format_of(p, teachers) }
    -- a model's answers to bare prompts, which it sees in the format it is trained on
    function preset.sample(model, prompts, options)
      local wrapped = pl.feedback.wrap(prompts, preset.wrapping)
      return pl.feedback.unwrap(pl.feedback.sample(model, wrapped, options), preset.wrapping)
    end
    local train, held = load_prompts(p, run)
    local has_truth = p.prompts == "world"
    local n_first = math.max(1, math.floor(#train * p.sft_fraction))
    local first, rest = train:slice(1, n_first), train:slice(n_first + 1, #train)
    local in_first = {}
    for _, row in ipairs(first:rows()) do in_first[row.prompt] = true end

    local judge_spec = p.judge or (has_truth and "oracle:0.95" or p.critic)
    local reference_spec = p.reference or (has_truth and p.teacher.weak or "base")
    local critic, judge = pl.ai(p.critic), pl.ai(judge_spec)
    judge:check("compare", {}) -- before anything is trained
    if with_aif then critic:check("compare", {}) end
    local answer = { max_tokens = preset.max_tokens, top_p = p.sample.top_p, dtype = p.sample.dtype }
    local function with(extra)
      for k, v in pairs(answer) do extra[k] = v end
      return extra
    end

    -- A judge that position or a bare ":" can sway makes no preferences worth training on.
    if p.probe ~= "off" and with_aif and critic.provider.whole then
      run:at { arm = "critic" }
      local probe = pl.feedback.probe(critic)
      if not run.planning then
        run:note("Probe of the critic: " .. tostring(probe))
        for _, problem in ipairs(probe.problems) do run:warn("the critic: " .. problem) end
        if p.probe == "stop" and #probe.problems > 0 then error("rlaif: the critic fails its probe (probe=stop)", 0) end
      end
    end

    -- Teachers and the reference answer once, for all seeds.
    local demos = {}
    for _, name in ipairs { "weak", "strong" } do
      if teachers[name] then
        run:at { arm = "teacher." .. name }
        local all = pl.feedback.demonstrate(teachers[name], train, { max_tokens = preset.max_tokens, seed = 0 })
        demos[name] = {
          all = all,
          first = all:filter(function(row) return in_first[row.prompt] end),
          rest = all:filter(function(row) return not in_first[row.prompt] end),
        }
      end
    end
    local reference
    if reference_spec ~= "base" then
      run:at { arm = "reference" }
      reference = pl.feedback.demonstrate(pl.ai(reference_spec), held, { max_tokens = preset.max_tokens, seed = 1 })
    end

    local results, raw_text = {}, {}
    for _, arm in ipairs(arms) do
      results[arm.name] = {
        samples = {}, judged = {}, greedy = {}, quality = {}, greedy_quality = {}, words = {}, no_stop = {},
      }
    end
    for s = 1, p.seeds do
      local seed, models = p.seed + s, {}
      run:at { arm = "base", seed = s }
      models.base = given_base or tiny_base(p, run, seed, raw_text)
      if not reference then -- the first seed's base, for all seeds
        reference = preset.sample(models.base, held, with { temperature = p.eval.temperature, seed = p.seed })
      end
      for _, arm in ipairs(arms) do
        run:at { arm = arm.name, seed = s }
        local r, d = results[arm.name], arm.teacher and demos[arm.teacher]
        if arm.aif then
          models[arm.name] = ai_feedback(p, models[arm.name:gsub("%+aif$", "")], critic, d.rest, rest, preset, seed)
        elseif arm.teacher then
          local o = arm.data == "all" and preset.sft or preset.sft10
          models[arm.name] = fine_tune(p, models.base, pl.feedback.wrap(d[arm.data], preset.wrapping), o, seed)
        end
        local model = models[arm.name]
        r.samples[s] = preset.sample(model, held, with { temperature = p.eval.temperature, seed = seed })
        r.judged[s] = pl.eval.winrate(r.samples[s], {
          against = reference, prompts = held, judge = judge, order = p.order, seed = seed })
        if has_truth then r.greedy[s] = preset.sample(model, held, with { temperature = 0, seed = seed }) end
      end
    end
    run:at {}
    if run.planning then return nil end -- what follows only counts what is there

    local unanswered = 0
    local cells = { win = {}, quality = has_truth and {} or nil, greedy = has_truth and {} or nil }
    for _, arm in ipairs(arms) do
      local r = results[arm.name]
      cells.win[arm.name] = {}
      for s = 1, p.seeds do
        local scores = {}
        for i, score in ipairs(r.judged[s].scores) do scores[i] = score and 100 * score end
        unanswered = math.max(unanswered, r.judged[s].unanswered)
        cells.win[arm.name][s] = scores
        r.words[s], r.no_stop[s] = shape(r.samples[s])
        if has_truth then
          r.quality[s] = qualities(r.samples[s])
          r.greedy_quality[s] = qualities(r.greedy[s])
        end
      end
      if has_truth then cells.quality[arm.name], cells.greedy[arm.name] = r.quality, r.greedy_quality end
    end
    show_samples(run, arms, results, has_truth)

    local measured = cells.quality or cells.win
    local result = {
      metric = has_truth and "true quality" or "win rate", margin = MARGIN, seeds = p.seeds,
      arms = arm_rows(arms, results, cells, #held),
      claims = contrasts(CLAIMS, measured),
      gains = contrasts(GAINS, measured),
      notes = {
        ("Claims are read from %s (points of 100, sampled at temperature %g) against a margin of %d points; "
          .. "intervals are 95 %%, resampling seeds and prompts, paired between arms."):format(
          has_truth and "true quality" or "the judged win rate", p.eval.temperature, MARGIN),
        ("Win rates are against the answers of %s to the held-out prompts, judged by %s."):format(
          reference_spec, judge_spec),
      },
    }
    if unanswered > 0 then
      table.insert(result.notes, ("Up to %d of an arm's %d comparisons lack an answer (the reference refused, or its answer "
        .. "was empty): they count as invalid."):format(unanswered, #held))
    end
    if has_truth then
      result.claims_by_win_rate = contrasts(CLAIMS, cells.win)
      result.claims_greedy = contrasts(CLAIMS, cells.greedy)
    end
    return result
  end,
}
