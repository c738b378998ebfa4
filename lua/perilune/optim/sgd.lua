--- Gradient descent with torch.optim.SGD's semantics and defaults. The first step
--- with momentum sets the buffer to the gradient itself, without dampening.
--- State: momentum_buffer (momentum), step.
local base = require "perilune.optim.base"
local core = require("perilune.core").optim

---ARGS params: list of tensors; opts: lr, momentum, dampening, weight_decay, nesterov. RETURN an optimizer.
return base.constructor {
  name = "sgd",
  spec = {
    lr = { 1e-3, min = 0, doc = "learning rate" },
    momentum = { 0.0, min = 0, doc = "share of the last step kept" },
    dampening = { 0.0, doc = "1 - weight of the gradient in the buffer" },
    weight_decay = { 0.0, min = 0, doc = "added to the gradient (not decoupled)" },
    nesterov = { false, doc = "look ahead along the momentum" },
  },
  check = function(opt)
    if opt.nesterov and (opt.momentum <= 0 or opt.dampening ~= 0) then
      error("optim.sgd: nesterov needs momentum above 0 and dampening 0", 3)
    end
  end,
  update = function(opt, params, states, gscale)
    local mom, first = nil, {}
    if opt.momentum > 0 then
      mom = base.column(params, states, "momentum_buffer")
    end
    for i, s in ipairs(states) do
      first[i] = s.step == 0
    end
    core.sgd(params, mom, first, gscale, opt.lr, opt.momentum, opt.dampening, opt.weight_decay,
      opt.nesterov)
  end,
}
