-- Optimizers against torch.optim (tests/golden/train/optim.json), states, clipping.
local T = require "tests.lua.harness"
local pl = require "perilune"

local cases = assert(pl.json.read "tests/golden/train/optim.json")

local function run(case)
  local w = pl.tensor({ 0.5, -1.25, 2.0, 0.0, -0.75, 3.0 }, { dtype = case.dtype }):requires_grad_()
  local c = pl.tensor({ 1.0, 0.5, 0.25, 2.0, 1.5, 0.1 }, { dtype = case.dtype })
  local opt = pl.optim[case.optimizer]({ w }, case.options)
  local path = {}
  for step = 1, #case.w do
    opt:zero_grad()
    local loss = (c * w * w):sum() + (w * w * w):sum() * 0.1
    loss:backward()
    opt:step()
    path[step] = w:detach():tolist()
  end
  return path, opt
end

for i, case in ipairs(cases) do
  T.test(("optim_%s_%s_%d"):format(case.optimizer, case.dtype, i), function()
    T.near(run(case), case.w, case.dtype == "f64" and 1e-12 or 3e-6)
  end)
end

T.test("optim_state_is_plain", function()
  local _, opt = run { optimizer = "adamw", dtype = "f32", options = { lr = 0.01 }, w = { 1, 2, 3 } }
  local state = opt.state["param.1"]
  T.eq(state.step, 3)
  T.eq(state.exp_avg:shape(), { 6 })
  T.ok(tostring(opt):find "adamw")
end)

T.test("optim_state_moves_to_another", function()
  local function make()
    return pl.tensor({ 1.0, -2.0 }):requires_grad_()
  end
  local function step(w, opt)
    opt:zero_grad();
    (w * w * w):sum():backward()
    opt:step()
  end
  for _, name in ipairs { "adamw", "rmsprop", "sgd" } do
    local options = name == "adamw" and { lr = 0.1 } or { lr = 0.1, momentum = 0.9 }
    local a = make()
    local opt_a = pl.optim[name]({ a }, options)
    for _ = 1, 3 do step(a, opt_a) end
    local b = a:detach():clone():requires_grad_()
    local opt_b = pl.optim[name]({ b }, options)
    opt_b:load_state_tensors(opt_a:state_tensors())
    -- the state is shared tensors: step a copy on its own
    for _, s in pairs(opt_b.state) do
      for k, v in pairs(s) do
        if k ~= "step" then s[k] = v:clone() end
      end
    end
    step(a, opt_a)
    step(b, opt_b)
    T.ok(a:equal(b), name)
  end
end)

T.test("optim_lr_may_change", function()
  local w = pl.tensor({ 1.0 }):requires_grad_()
  local opt = pl.optim.sgd({ w }, { lr = 1 })
  w:sum():backward()
  opt.lr = 0.25
  opt:step()
  T.near(w:item(), 0.75)
end)

T.test("optim_skips_what_has_no_gradient", function()
  local a, b = pl.tensor({ 1.0 }):requires_grad_(), pl.tensor({ 1.0 }):requires_grad_()
  local opt = pl.optim.adamw({ a, b }, { lr = 0.1, weight_decay = 0.5 })
  a:sum():backward()
  opt:step()
  T.ok(a:item() < 1)
  T.eq(b:item(), 1.0)
  T.eq(opt.state["param.2"], nil)
end)

T.test("optim_clips_the_global_norm", function()
  local a, b = pl.tensor({ 0.0, 0.0 }):requires_grad_(), pl.tensor({ 0.0 }):requires_grad_()
  local y = (a * pl.tensor { 3, 0 }):sum() + b:sum() * 4
  y:backward()
  T.near(pl.optim.grad_norm { a, b }, 5, 1e-6)
  T.near(pl.optim.clip_grad_norm({ a, b }, 1), 5, 1e-6)
  T.near(a.grad:tolist(), { 0.6, 0 }, 1e-5)
  T.near(b.grad:item(), 0.8, 1e-5)
  T.near(pl.optim.clip_grad_norm({ a, b }, 10), 1, 1e-5)
  T.near(b.grad:item(), 0.8, 1e-5)
end)

T.test("optim_clipped_step_equals_scaled_gradient", function()
  local a, b = pl.tensor({ 1.0, 2.0 }):requires_grad_(), pl.tensor({ 1.0, 2.0 }):requires_grad_()
  local one, two = pl.optim.adamw({ a }, { lr = 0.1 }), pl.optim.adamw({ b }, { lr = 0.1 });
  (a * a):sum():backward();
  (b * b * 0.25):sum():backward()
  one:step(0.25)
  two:step()
  T.near(a:tolist(), b:tolist(), 1e-7)
end)

T.test("optim_misuse", function()
  local w = pl.tensor({ 1.0 }):requires_grad_()
  T.raises(function() pl.optim.adamw({ w }, { lrr = 1 }) end, 'did you mean "lr"')
  T.raises(function() pl.optim.adamw({}, {}) end, "empty list")
  T.raises(function() pl.optim.adamw(w, {}) end, "list of parameters")
  T.raises(function() pl.optim.adamw({ w }, { betas = { 0.9, 1 } }) end, "betas")
  T.raises(function() pl.optim.sgd({ w }, { nesterov = true }) end, "momentum")
  T.raises(function() pl.optim.adamw({ w }, { lr = -1 }) end, "lr")
  local core = require("perilune.core").optim
  T.raises(function() core.adamw({ w }, { w }, { w }, { 1 }, 1, 1, 1, 1, 1, 1) end, "no gradient")
  w:sum():backward()
  T.raises(function() core.adamw({ w }, { pl.zeros(2) }, { pl.zeros(1) }, { 1 }, 1, 1, 1, 1, 1, 1) end, "exp_avg[1]")
  T.raises(function() core.adamw({ w }, {}, {}, {}, 1, 1, 1, 1, 1, 1) end, "0 tensors for 1")
  T.raises(function() core.grad_norm { "x" } end, "wanted a tensor")
end)

T.test("optim_raises_the_version", function()
  local w = pl.tensor({ 1.0 }):requires_grad_()
  local y = (w * w):sum()
  w:sum():backward()
  pl.optim.sgd({ w }, { lr = 0.1 }):step()
  T.raises(function() y:backward() end, "in place")
end)

T.done()
