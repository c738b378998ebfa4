--- RMSprop (Hinton 2012) with torch.optim.RMSprop's semantics and defaults, the
--- optimizer of the paper: sq <- alpha sq + (1 - alpha) g^2, w <- w - lr g / (sqrt(sq) + eps).
--- State: square_avg, grad_avg (centered), momentum_buffer (momentum), step.
local base = require "perilune.optim.base"
local core = require("perilune.core").optim

---ARGS params: list of tensors; opts: lr, alpha, eps, weight_decay, momentum, centered. RETURN an optimizer.
return base.constructor {
  name = "rmsprop",
  spec = {
    lr = { 1e-2, min = 0, doc = "learning rate" },
    alpha = { 0.99, min = 0, max = 1, doc = "decay of the running mean of squares" },
    eps = { 1e-8, min = 0, doc = "added outside the square root" },
    weight_decay = { 0.0, min = 0, doc = "added to the gradient (not decoupled)" },
    momentum = { 0.0, min = 0, doc = "momentum on the scaled gradient" },
    centered = { false, doc = "divide by the deviation instead of the root mean square" },
  },
  update = function(opt, params, states, gscale)
    local sq = base.column(params, states, "square_avg")
    local avg = opt.centered and base.column(params, states, "grad_avg") or nil
    local mom = opt.momentum > 0 and base.column(params, states, "momentum_buffer") or nil
    core.rmsprop(params, sq, avg, mom, gscale, opt.lr, opt.alpha, opt.eps, opt.weight_decay,
      opt.momentum)
  end,
}
