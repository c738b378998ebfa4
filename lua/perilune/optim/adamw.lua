--- AdamW (Loshchilov & Hutter 2019) with torch.optim.AdamW's semantics and defaults:
--- decay w <- w (1 - lr wd) first, then w <- w - lr m^ / (sqrt(v^) + eps), with
--- m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t). State: exp_avg, exp_avg_sq, step.
local base = require "perilune.optim.base"
local core = require("perilune.core").optim

---ARGS params: list of tensors; opts: lr, betas, eps, weight_decay. RETURN an optimizer.
return base.constructor {
  name = "adamw",
  spec = {
    lr = { 1e-3, min = 0, doc = "learning rate" },
    betas = { { 0.9, 0.999 }, doc = "decay of the running means of gradient and square" },
    eps = { 1e-8, min = 0, doc = "added outside the square root" },
    weight_decay = { 0.01, min = 0, doc = "decoupled decay" },
  },
  check = function(opt)
    for i = 1, 2 do
      local b = opt.betas[i]
      if type(b) ~= "number" or b < 0 or b >= 1 or #opt.betas ~= 2 then
        error("optim.adamw: betas must be two numbers in [0, 1)", 3)
      end
    end
  end,
  update = function(opt, params, states, gscale)
    local m = base.column(params, states, "exp_avg")
    local v = base.column(params, states, "exp_avg_sq")
    local steps = {}
    for i, s in ipairs(states) do
      steps[i] = s.step + 1
    end
    core.adamw(params, m, v, steps, gscale, opt.lr, opt.betas[1], opt.betas[2], opt.eps,
      opt.weight_decay)
  end,
}
