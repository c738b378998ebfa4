-- Learning-rate schedules: published values, ends, warm-up.
local T = require "tests.lua.harness"
local schedule = require "perilune.train.schedule"

T.test("schedule_cosine_published_values", function()
  -- warm-up of 7 steps to 1, cosine to .1 at step 21
  local f = schedule.new { name = "cosine", total = 21, warmup = 7, floor = 0.1 }
  for i = 0, 6 do
    T.near(f(i), i / 7, 1e-12)
  end
  T.near({ f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14) },
    { 1, 0.98872, 0.95544, 0.90182, 0.83057, 0.74525, 0.65013, 0.55 }, 6e-6)
  T.near(f(21), 0.1, 1e-12)
  T.near(f(30), 0.1, 1e-12)
end)

T.test("schedule_linear_as_transformers", function()
  local f = schedule.new { name = "linear", total = 10, warmup = 2, floor = 0 }
  T.near({ f(0), f(1), f(2), f(6), f(9), f(10) }, { 0, 0.5, 1, 0.5, 0.125, 0 }, 1e-12)
  local g = schedule.new { name = "linear", total = 10, floor = 0.1 }
  T.near({ g(0), g(5), g(10) }, { 1, 0.55, 0.1 }, 1e-12)
end)

T.test("schedule_constant", function()
  local f = schedule.new { name = "constant", total = 10, warmup = 4 }
  T.near({ f(0), f(1), f(4), f(9) }, { 0, 0.25, 1, 1 }, 1e-12)
end)

T.test("schedule_warmup_options", function()
  T.eq(schedule.warmup_steps("x", { warmup_steps = 7 }, 100), 7)
  T.eq(schedule.warmup_steps("x", { warmup_ratio = 0.1 }, 100), 10)
  T.eq(schedule.warmup_steps("x", { warmup = 0.05 }, 100), 5)
  T.eq(schedule.warmup_steps("x", { warmup = 3 }, 100), 3)
  T.eq(schedule.warmup_steps("x", {}, 100), 0)
  T.raises(function() schedule.warmup_steps("x", { warmup = 1, warmup_steps = 1 }, 100) end, "give one")
end)

T.test("schedule_unknown_name", function()
  T.raises(function() schedule.new { name = "cosin", total = 1 } end, "cosine")
end)

T.done()
