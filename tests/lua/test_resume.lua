-- Checkpoints: a run that was cut anywhere ends with the bytes of an undisturbed one; damage is found.
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

local function strip(history)
  local out = {}
  for i, r in ipairs(history) do
    out[i] = {}
    for k, v in pairs(r) do
      if not k:find "per_second" then out[i][k] = v end
    end
  end
  return out
end

local count = 0
local function fresh()
  count = count + 1
  return T.tmpdir() .. "/save" .. count
end

local RUNS = {
  sft_adamw = function(o) return pl.train.sft(tiny, golden.rows, with({ lr = 1e-2, epochs = 4, batch_size = 4, seed = 3,
    warmup_steps = 2, lr_scheduler = "cosine" }, o)) end,
  sft_rmsprop_accumulated = function(o) return pl.train.sft(tiny, golden.rows, with({ lr = 1e-3, epochs = 4, batch_size = 1,
    gradient_accumulation_steps = 4, optimizer = { name = "rmsprop", momentum = 0.9 } }, o)) end,
  sft_bf16 = function(o) return pl.train.sft(tiny, golden.rows, with({ lr = 1e-2, epochs = 4, batch_size = 4, seed = 3,
    bf16 = true }, o)) end,
  dpo = function(o) return pl.train.preference(tiny, golden.pairs, with({ lr = 1e-2, epochs = 4, batch_size = 3, beta = 0.1 }, o)) end,
  dpo_in_place = function(o) return pl.train.preference(tiny:clone(), golden.pairs, with({ lr = 1e-2, epochs = 4, batch_size = 3,
    beta = 0.1, in_place = true }, o)) end,
}

for name, run in pairs(RUNS) do
  T.test("resume_" .. name, function()
    local whole = run {}
    for _, stop in ipairs { 1, 3, 4, 7 } do
      local dir = fresh()
      local o = { save_dir = dir, save_steps = 2 }
      T.raises(function()
        run(with(o, { on_step = function(r) if r.step == stop then error "stopped here" end end }))
      end, "stopped here")
      local again = run(o)
      T.eq(again:hash(), whole:hash(), "stopped at " .. stop)
      T.eq(strip(again.history), strip(whole.history))
      T.eq(again.history.summary.resumed_after, (stop - 1) // 2 * 2)
      -- a finished run is taken as it is
      local steps = 0
      T.eq(run(with(o, { on_step = function() steps = steps + 1 end })):hash(), whole:hash())
      T.eq(steps, 0)
    end
  end)
end

T.test("resume_keeps_two_and_no_leftovers", function()
  local dir = fresh()
  RUNS.sft_adamw { save_dir = dir, save_steps = 1 }
  T.eq(core.list_dir(dir), { "step-7", "step-8" })
  T.ok(pl.load(dir .. "/step-8/model"):num_parameters() == tiny:num_parameters())
end)

-- Every file of the newest checkpoint, cut short, changed or gone: the one before is taken.
T.test("resume_skips_damage", function()
  local whole = RUNS.dpo {}
  local files = { "state.json", "history.jsonl", "training.safetensors", "manifest.json", "model/model.safetensors",
    "model/config.json" }
  for _, file in ipairs(files) do
    for how, damage in pairs {
      cut = function(s) return s:sub(1, #s // 2) end,
      flipped = function(s) return s:sub(1, #s // 2) .. string.char(s:byte(#s // 2 + 1) ~ 1) .. s:sub(#s // 2 + 2) end,
      gone = function() return nil end,
    } do
      local dir = fresh()
      RUNS.dpo { save_dir = dir, save_steps = 4 }
      local path = dir .. "/step-8/" .. file
      local s = damage(assert(core.read_file(path)))
      os.remove(path)
      if s then assert(core.write_file(path, s)) end
      if not (file == "manifest.json" and how == "flipped") then
        local again = RUNS.dpo { save_dir = dir, save_steps = 4 }
        T.eq(again.history.summary.resumed_after, 4, file .. " " .. how)
        T.eq(again:hash(), whole:hash(), file .. " " .. how)
      end
      if T.quick() then break end
    end
  end
end)

-- A step that is saved again takes the place of the one that is there in one go.
T.test("resume_after_a_stop_while_a_step_is_saved_again", function()
  local dir = fresh()
  RUNS.sft_adamw { save_dir = dir, max_steps = 2 }
  local remove = core.remove_tree
  core.remove_tree = function(path)
    local ok, why = remove(path)
    if path == dir .. "/step-2" then error "stopped here" end
    return ok, why
  end
  pcall(RUNS.sft_adamw, { save_dir = dir, max_steps = 2, resume = "never" })
  core.remove_tree = remove
  T.eq(core.list_dir(dir), { "step-2" })
  T.eq(RUNS.sft_adamw({ save_dir = dir, max_steps = 2 }).history.summary.resumed_after, 2)
end)

T.test("resume_ignores_an_unfinished_save", function()
  local dir = fresh()
  local whole = RUNS.sft_adamw { save_dir = dir, save_steps = 2 }
  assert(core.rename(dir .. "/step-8", dir .. "/step-8.tmp"))
  T.eq(RUNS.sft_adamw({ save_dir = dir, save_steps = 2 }):hash(), whole:hash())
  T.eq(core.list_dir(dir), { "step-6", "step-8" })
end)

T.test("resume_refuses_another_run", function()
  local dir = fresh()
  RUNS.sft_adamw { save_dir = dir, max_steps = 2 }
  T.raises(function() RUNS.sft_adamw { save_dir = dir, max_steps = 2, lr = 2e-2 } end, "another run: lr changed")
  T.raises(function() RUNS.sft_adamw { save_dir = dir, max_steps = 2, seed = 4 } end, "seed changed")
  T.raises(function() pl.train.sft(tiny, pl.data.from(golden.rows):slice(1, 5), { save_dir = dir, lr = 1e-2, epochs = 4,
    batch_size = 4, seed = 3, warmup_steps = 2, lr_scheduler = "cosine", max_steps = 2 }) end, "data changed")
  local other = RUNS.sft_adamw { save_dir = dir, max_steps = 2, lr = 2e-2, resume = "never" }
  T.eq(#other.history, 2)
end)

-- What an earlier run left has later steps: it neither stays nor wins.
T.test("resume_afresh_takes_the_place_of_an_earlier_run", function()
  local dir = fresh()
  RUNS.sft_adamw { save_dir = dir, save_steps = 4 }
  local o = { save_dir = dir, save_steps = 2, lr = 2e-2 }
  local whole = RUNS.sft_adamw { lr = 2e-2 }
  T.raises(function()
    RUNS.sft_adamw(with(o, { resume = "never", on_step = function(r) if r.step == 3 then error "stopped here" end end }))
  end, "stopped here")
  T.eq(core.list_dir(dir), { "step-2" })
  local again = RUNS.sft_adamw(o)
  T.eq(again.history.summary.resumed_after, 2)
  T.eq(again:hash(), whole:hash())
  -- two runs in one directory: the newer one of the other is not removed without a word
  local others = fresh()
  RUNS.sft_adamw { save_dir = others, save_steps = 4 }
  assert(core.remove_tree(dir .. "/step-8"))
  assert(core.rename(others .. "/step-8", dir .. "/step-8"))
  T.raises(function() RUNS.sft_adamw(o) end, "another run: lr changed")
  T.eq(core.list_dir(dir), { "step-6", "step-8" })
end)

T.test("resume_with_other_evaluation_rows", function()
  local dir = fresh()
  local o = { save_dir = dir, max_steps = 2, save_steps = 1 }
  local function eval(first) return { data = pl.data.from(golden.pairs):slice(first, first) } end
  local function run(more)
    return pl.train.preference(tiny, pl.data.from(golden.pairs):slice(3), with(o, with({ lr = 1e-2, beta = 0.1 }, more)))
  end
  T.raises(function()
    run { eval = eval(1), on_step = function(r) if r.step == 2 then error "stopped here" end end }
  end, "stopped here")
  T.raises(function() run { eval = eval(2) } end, "another run: eval changed")
  T.eq(run({ eval = eval(1) }).history.summary.resumed_after, 1)
end)

T.test("resume_refuses_another_processor_unless_asked", function()
  local dir = fresh()
  local whole = RUNS.sft_adamw { save_dir = dir }
  local path = dir .. "/step-8/state.json"
  local state = assert(pl.json.read(path))
  state.kernels = "Other"
  assert(pl.json.write(path, state))
  local manifest = assert(pl.json.read(dir .. "/step-8/manifest.json"))
  for _, f in ipairs(manifest.files) do
    if f.name == "state.json" then f.sha256 = core.sha256(core.read_file(path)) end
  end
  assert(pl.json.write(dir .. "/step-8/manifest.json", manifest))
  T.raises(function() RUNS.sft_adamw { save_dir = dir } end, "kernels for Other")
  T.eq(RUNS.sft_adamw({ save_dir = dir, resume = "any-core" }):hash(), whole:hash())
end)

T.test("resume_failed_save_is_said", function()
  T.raises(function() RUNS.sft_adamw { save_dir = "/proc/nowhere", save_steps = 1 } end, "/proc")
end)

-- Runs f with a clock on which each look takes longer than the pause between two saves in a scratch directory.
local function saving_each_step(f)
  local now, t = core.now, 0
  local back <close> = core.finally(function() core.now = now end)
  core.now = function()
    t = t + 20
    return t
  end
  return f()
end

T.test("resume_scratch_of_the_same_training_only", function()
  local whole, dir = RUNS.dpo {}, fresh()
  T.eq(RUNS.dpo({ scratch = dir }):hash(), whole:hash())
  local o = { scratch = dir }
  T.raises(function()
    saving_each_step(function()
      RUNS.dpo(with(o, { on_step = function(r) if r.step == 4 then error "stopped here" end end }))
    end)
  end, "stopped here")
  T.eq(core.list_dir(dir), { "step-2", "step-3" })
  local said = {}
  local progress = require "perilune.study.progress"
  local say = progress.say
  do
    local back <close> = core.finally(function() progress.say = say end)
    progress.say = function(text) said[#said + 1] = text end
    local other = RUNS.sft_adamw(o)
    T.eq(other.history.summary.resumed_after, 0)
    T.eq(other:hash(), RUNS.sft_adamw({}):hash())
    T.eq(RUNS.dpo(with(o, { lr = 2e-2 })).history.summary.resumed_after, 0)
  end
  T.ok(table.concat(said, "\n"):find("step%-3 holds a checkpoint of another run: .*data.*trainer.* changed since; it is skipped"))
  T.ok(table.concat(said, "\n"):find("step-3 holds a checkpoint of another run: lr changed since; it is skipped", 1, true))
  local again = RUNS.dpo(o)
  T.eq(again.history.summary.resumed_after, 3)
  T.eq(again:hash(), whole:hash())
end)

T.test("resume_scratch_with_rows_that_json_cannot_write", function()
  local function training(extra, o)
    local rows = {}
    for i, row in ipairs(golden.rows) do rows[i] = with(row, { extra = extra }) end
    return pl.train.sft(tiny, rows, with({ lr = 1e-2, epochs = 4, batch_size = 4 }, o))
  end
  local whole = training(nil, {}):hash()
  local function resumed_after(extra, other)
    local o = { scratch = fresh() }
    T.raises(function()
      saving_each_step(function()
        training(extra, with(o, { on_step = function(r) if r.step == 4 then error "stopped here" end end }))
      end)
    end, "stopped here")
    local again = training(other or extra, o)
    T.eq(again:hash(), whole)
    return again.history.summary.resumed_after
  end
  T.eq(resumed_after(function(r) return r end), 3)
  T.eq(resumed_after(pl.tensor { 1, 2 }), 3)
  T.eq(resumed_after { 1, 2, a = 3 }, 3)
  T.eq(resumed_after(pl.tensor { 1, 2 }, pl.tensor { 1, 3 }), 0, "other rows")
  local progress, said = require "perilune.study.progress", {}
  local say = progress.say
  local back <close> = core.finally(function() progress.say = say end)
  progress.say = function(text) said[#said + 1] = text end
  T.eq(resumed_after(coroutine.create(print)), 0)
  T.ok(table.concat(said, "\n"):find("scratch is not used: in the rows a coroutine (at 1.extra) cannot be hashed", 1, true))
end)

T.done()
