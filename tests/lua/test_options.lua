-- perilune.options: defaults, types, ranges, and errors that name the nearest option.
local T = require "tests.lua.harness"
local options = require "perilune.options"

local spec = {
  lr = { 1e-5, doc = "step size", min = 0 },
  epochs = { 1, min = 1, max = 100 },
  loss = { "dpo", type = "string|function", choices = { "dpo", "ipo", "hinge" } },
  on_step = { type = "function" },
  in_place = { false },
  extra = { type = "any" },
}

T.test("defaults are filled in", function()
  local o = options.resolve("f", spec, nil)
  T.eq(o.lr, 1e-5)
  T.eq(o.epochs, 1)
  T.eq(o.loss, "dpo")
  T.eq(o.in_place, false)
  T.eq(o.on_step, nil)
end)

T.test("given values win and the table given stays as it was", function()
  local given = { lr = 1, in_place = true, extra = "x" }
  local o = options.resolve("f", spec, given)
  T.eq(o.lr, 1)
  T.eq(o.in_place, true)
  T.eq(o.extra, "x")
  T.eq(given, { lr = 1, in_place = true, extra = "x" })
end)

local wrong = {
  { { epoch = 1 }, 'f: unknown option "epoch" %(did you mean "epochs"%?%)' },
  { { Lr = 1 }, 'did you mean "lr"' },
  { { on_setp = print }, 'did you mean "on_step"' },
  { { zzzzzz = 1 }, "known: epochs, extra, in_place, loss, lr, on_step" },
  { { lr = "big" }, 'f: option lr must be number, got "big"' },
  { { lr = -1 }, "at least 0, got %-1" },
  { { lr = 0 / 0 }, "NaN" },
  { { epochs = 1.5 }, "must be integer, got 1.5" },
  { { epochs = 1000 }, "at most 100" },
  { { loss = "dpp" }, 'unknown choice "dpp" %(did you mean "dpo"%?%)' },
  { { loss = 3 }, "string or function" },
  { { in_place = 1 }, "must be boolean" },
  { { on_step = {} }, "must be function, got a table" },
  { 7, "options must be a table, got 7" },
}
for i, case in ipairs(wrong) do
  T.test("wrong option " .. i .. " is refused", function()
    T.raises(function() options.resolve("f", spec, case[1]) end, case[2])
  end)
end

T.test("whole floats are integers, callable tables are functions", function()
  T.eq(math.type(options.resolve("f", spec, { epochs = 3.0 }).epochs), "integer")
  local callable = setmetatable({}, { __call = function() end })
  T.eq(options.resolve("f", spec, { on_step = callable }).on_step, callable)
end)

T.test("extra splits unknown keys off", function()
  local o, extra = options.extra("f", spec, { lr = 2, gamma = 0.5 })
  T.eq(o.lr, 2)
  T.eq(extra, { gamma = 0.5 })
end)

T.test("nearest", function()
  T.eq(options.nearest("sede", { "seed", "dtype" }), "seed")
  T.eq(options.nearest("recpies", { "run", "recipes", "runs" }), "recipes")
  T.eq(options.nearest("x", { "y", "zz" }), nil)
  T.eq(options.nearest("quux", { "seed", "dtype" }), nil)
end)

T.test("the error names the user's line", function()
  local _, err = pcall(function()
    options.resolve("f", spec, { lrr = 1 })
  end)
  T.ok(err:find("test_options.lua:%d+: f: unknown option"), err)
end)

T.done()
