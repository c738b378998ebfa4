-- The numbers a study asks for reach what draws and what trains: feedback.sample, a local teacher,
-- eval.winrate, the recipe rlaif.
local T = require "tests.lua.harness"
local lm = require("perilune.core").lm
local pl = require "perilune"
local tiny = require "tests.lua.tiny"

require("perilune.study.progress").quiet(true)
require("perilune.study.store").set_home(T.tmpdir() .. "/home")

local PROMPTS = { "Q: sort: fox cat\nA:", "Q: length of: cat\nA:" }

-- The dtypes of the generators that f makes, and what f returns.
local function drawn_in(f)
  local make, list = lm.generator, {}
  lm.generator = function(decoder, rows, stop_ids, dtype)
    list[#list + 1] = dtype
    return make(decoder, rows, stop_ids, dtype)
  end
  local ok, result = pcall(f)
  lm.generator = make
  if not ok then error(result, 0) end
  return list, result
end

T.test("feedback.sample draws in its dtype; f32 unless given", function()
  local model = tiny(1)
  local function sample(dtype)
    local list, ds = drawn_in(function()
      return pl.feedback.sample(model, PROMPTS, { max_tokens = 4, temperature = 0, dtype = dtype })
    end)
    T.eq(list, { dtype or "f32" })
    return ds[1].completions[1].logprob
  end
  local full = sample(nil)
  T.eq(sample "f32", full)
  for _, dtype in ipairs { "bf16", "int8" } do
    local rounded = sample(dtype)
    T.ok(rounded ~= full)
    T.near(rounded, full, 0.5)
  end
  T.raises(function() pl.feedback.sample(model, PROMPTS, { dtype = "f16" }) end, "dtype: unknown choice")
end)

T.test("a local teacher draws in the dtype of its spec", function()
  local dir = T.tmpdir() .. "/model"
  tiny(2):save(dir)
  for spec, dtype in pairs { [""] = "f32", ["&dtype=bf16"] = "bf16", ["&dtype=int8"] = "int8" } do
    T.eq(drawn_in(function() pl.feedback.demonstrate("local:" .. dir .. "?max_tokens=3" .. spec, PROMPTS) end), { dtype })
  end
end)

T.test("eval.winrate samples both models in its dtype", function()
  local a, b = tiny(1), tiny(2)
  local function rate(dtype)
    return (drawn_in(function()
      pl.eval.winrate(a, { against = b, prompts = PROMPTS, max_tokens = 4, judge = function() return "a" end, dtype = dtype })
    end))
  end
  T.eq(rate(nil), { "f32", "f32" })
  T.eq(rate "bf16", { "bf16", "bf16" })
  T.raises(function() rate "half" end, "dtype: unknown choice")
end)

T.test("rlaif samples and trains as its parameters say", function()
  local recipe = require "perilune.recipes.rlaif"
  local lean, base_dir = {}, T.tmpdir() .. "/base"
  tiny(3):save(base_dir)
  for _, name in ipairs { "sft", "preference" } do
    local train = pl.train[name]
    pl.train[name] = function(model, rows, o)
      lean[#lean + 1] = { name, o.bf16, o.gradient_checkpointing }
      return train(model, rows, o)
    end
  end
  local small = {
    base = base_dir, n_prompts = 20, held_out = 10, seeds = 1, max_tokens = 3, ["sft10.epochs"] = 1, ["dpo.epochs"] = 1,
    arms = { "base", "sft-weak-10", "sft-weak-10+aif" }, batch_size = 1, ["sample.dtype"] = "int8", gradient_checkpointing = true, bf16 = true,
  }
  local list = drawn_in(function() recipe:run(small) end)
  T.eq(#list, 7) -- each arm twice, and the pairs
  for _, dtype in ipairs(list) do T.eq(dtype, "int8") end
  T.eq(lean, { { "sft", true, true }, { "preference", true, true } })

  lean = {}
  small.critic = "local:" .. base_dir .. "?dtype=int8"
  T.raises(function() recipe:run(small) end, "a critic reads in f32 or bf16")
  T.eq(lean, {}, "refused before anything is trained")
end)

T.done()
