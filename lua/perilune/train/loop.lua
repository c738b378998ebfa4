--- The one training loop. What is trained on (SFT, preferences, documents) is a task,
--- a small table made by the file of that name; everything else is here: data order,
--- micro-batches, clipping, schedule, metrics, evaluation, checkpoints, aborts.
---
--- A task has
---   where, label        "train.sft", "sft": for errors and the progress line
---   n                   examples
---   weight(i)           what example i counts in the mean: trained tokens, or 1 (a pair)
---   tokens(i)           tokens of example i that go through the model
---   trained(i)          tokens of example i that carry loss
---   shown(i)            {ids, start} of example i, for the line on what is trained
---   row(i)              where example i came from, for errors
---   micro(model, list, total, step) -> loss tensor, sums
---                       the share of the step's loss that these examples have: summed over the
---                       micro-batches it is the mean over `total`, however they were cut
---   metrics(sums, total) -> named numbers of the step; sums were added over micro-batches
---   first(record, sums, total)  optional: checks after the first step's loss, before any update
---   aside()             optional: seconds of the last step that went into what is done once for all
---                       steps (the reference), which its speed and the time left must not count
---   tensors(), restore(tensors) optional: what a checkpoint must keep beside weights and optimizer
---   eval                optional: a task on the evaluation rows
local core = require("perilune.core").base
local checkpoint = require "perilune.train.checkpoint"
local optim = require "perilune.optim"
local pl = require "perilune"
local progress = require "perilune.study.progress"
local schedule = require "perilune.train.schedule"

local loop = {}

-- Inside a run a killed training goes on from at most this many seconds back.
local SCRATCH_SECONDS = 15
local ORDER_STREAM = 0x6f72646572 -- "order": its own stream of random numbers, + epoch

---The options every trainer takes.
---@param defaults {lr: number, epochs: integer, batch_size: integer, lr_scheduler: string}
---@return table spec
function loop.spec(defaults)
  return {
    lr = { defaults.lr, min = 0, doc = "learning rate" },
    optimizer = { "adamw", type = "string|table", doc = "adamw, rmsprop, sgd, or { name = .., its options }" },
    weight_decay = { type = "number", min = 0, doc = "decay, on all parameters; 0 unless given" },
    betas = { type = "table", doc = "AdamW's two decays" },
    epochs = { defaults.epochs, min = 1, doc = "passes over the data" },
    max_steps = { type = "integer", min = 1, doc = "optimizer steps; wins over epochs" },
    batch_size = { defaults.batch_size, min = 1, doc = "examples in one forward pass" },
    gradient_accumulation_steps = { 1, min = 1, doc = "forward passes an optimizer step" },
    max_length = { type = "integer", min = 2, doc = "longer rows are cut; the model's context unless given" },
    lr_scheduler = { defaults.lr_scheduler, choices = schedule.names(), doc = "shape of lr over the steps" },
    min_lr_ratio = { 0.0, min = 0, max = 1, doc = "final fraction of lr" },
    warmup = { type = "number", min = 0, doc = "below 1 a share of all steps, else steps" },
    warmup_steps = { type = "integer", min = 0, doc = "the same, always steps" },
    warmup_ratio = { type = "number", min = 0, max = 1, doc = "the same, always a share" },
    max_grad_norm = { 1.0, min = 0, doc = "clip the global gradient norm; 0 = never" },
    bf16 = { false, doc = "products and kept activations in bf16; weights, gradients and moments stay f32" },
    gradient_checkpointing = { false, doc = "backward computes each layer again: less memory, the same result" },
    eval = { type = "table", doc = "{ data = rows, steps = every so many }" },
    save_dir = { type = "string", doc = "checkpoints go here, and a run found here goes on" },
    save_steps = { 500, min = 1, doc = "optimizer steps between checkpoints in save_dir" },
    save_total_limit = { 2, min = 1, doc = "checkpoints kept" },
    resume = { "auto", choices = { "auto", "never", "any-core" },
      doc = "never: start afresh in place of what is there; any-core: also from another processor type, where bits may differ" },
    seed = { 0, doc = "data order" },
    on_step = { type = "function", doc = "called with each step's record" },
    in_place = { false, doc = "train the argument itself" },
    cache = { false, doc = "remember the result also outside a recipe's run" },
    label = { type = "string", doc = "what the progress line calls it" },
    scratch = { type = "string", doc = "directory for checkpoints that only a killed run needs; those of another training are skipped" },
  }
end

-- Options that do not change what comes out.
local SILENT = {
  on_step = true, label = true, scratch = true, cache = true, save_dir = true, save_steps = true,
  save_total_limit = true, resume = true, in_place = true, eval = true, gradient_checkpointing = true,
}

---The options that the result depends on, for keys and checkpoints.
---@param o table
---@return table
function loop.essential(o)
  local out = {}
  for k, v in pairs(o) do
    if not SILENT[k] then
      out[k] = v
    end
  end
  if o.eval then
    out.eval_steps = o.eval.steps
  end
  return out
end

local function make_optimizer(where, params, o)
  local name, given = o.optimizer, {}
  if type(name) == "table" then
    for k, v in pairs(name) do
      given[k] = v
    end
    name, given.name = given.name, nil
  end
  local make = optim.find(where, name)
  given.lr = given.lr or o.lr
  given.betas = given.betas or o.betas
  given.weight_decay = given.weight_decay or o.weight_decay or 0.0
  return make(params, given)
end

---Steps per epoch and in all.
---@param n integer examples
---@param o table
---@return integer per_epoch
---@return integer total
function loop.steps(n, o)
  local rows = o.batch_size * o.gradient_accumulation_steps
  local per_epoch = (n + rows - 1) // rows
  return per_epoch, o.max_steps or per_epoch * o.epochs
end

---The examples of optimizer step k (from 0). The order is a pure function of (seed, epoch);
---an epoch's last step may hold fewer examples.
---@param n integer
---@param o table batch_size, gradient_accumulation_steps, seed
---@return fun(k: integer): integer[] rows, number epoch
function loop.order(n, o)
  local rows = o.batch_size * o.gradient_accumulation_steps
  local per_epoch = (n + rows - 1) // rows
  local epoch, order
  return function(k)
    local e, at = k // per_epoch, k % per_epoch
    if e ~= epoch then
      epoch, order = e, core.permutation(o.seed, ORDER_STREAM + e, n)
    end
    local list = table.move(order, at * rows + 1, math.min((at + 1) * rows, n), 1, {})
    return list, (k + 1) / per_epoch
  end
end

---The micro-batches of the first epoch, or of all steps where there are fewer.
---@param n integer
---@param o table
---@return integer[][]
function loop.first_batches(n, o)
  local per_epoch, total = loop.steps(n, o)
  local rows, out = loop.order(n, o), {}
  for k = 0, math.min(per_epoch, total) - 1 do
    local list = rows(k)
    for at = 1, #list, o.batch_size do
      out[#out + 1] = table.move(list, at, math.min(at + o.batch_size - 1, #list), 1, {})
    end
  end
  return out
end

---All examples in order, in micro-batches.
---@param n integer
---@param size integer
---@return integer[][]
function loop.in_order(n, size)
  local out = {}
  for at = 1, n, size do
    local list = {}
    for i = at, math.min(at + size - 1, n) do
      list[#list + 1] = i
    end
    out[#out + 1] = list
  end
  return out
end

local function finite(x)
  return x == x and x ~= math.huge and x ~= -math.huge
end

local function name_rows(task, list)
  local names = {}
  for i = 1, math.min(#list, 8) do
    names[i] = tostring(task.row(list[i]))
  end
  return table.concat(names, ", ") .. (#list > 8 and ", ..." or "")
end

-- Adds b's numbers into a.
local function add(a, b)
  for k, v in pairs(b) do
    a[k] = (a[k] or 0) + v
  end
end

-- A task's forward pass in the precision asked for; backward follows what forward kept. Whatever else
-- the task reads meanwhile (a reference) is read in that precision too.
local function forward(o, task, ...)
  return pl.autocast(o.bf16 and "bf16" or "f32", task.micro, ...)
end

-- Runs examples in micro-batches; with `learn` gradients are accumulated.
local function pass(o, task, model, list, step, learn)
  local total = 0
  for _, i in ipairs(list) do
    total = total + task.weight(i)
  end
  local loss, sums = 0, {}
  for at = 1, #list, o.batch_size do
    local part = table.move(list, at, math.min(at + o.batch_size - 1, #list), 1, {})
    local share, more = forward(o, task, model, part, total, step)
    local value = share:item()
    if not finite(value) then
      error(("%s: step %d: the loss is %s on rows %s; try a lower lr, more warmup or a smaller max_grad_norm, "
        .. "and look at these rows"):format(task.where, step + 1, tostring(value), name_rows(task, part)), 0)
    end
    if learn then
      share:backward()
    end
    loss = loss + value
    add(sums, more)
  end
  return loss, sums, total
end

local function evaluate(o, task, model, step)
  local list = {}
  for i = 1, task.n do
    list[i] = i
  end
  local loss, sums, total
  pl.no_grad(function()
    loss, sums, total = pass(o, task, model, list, step, false)
  end)
  local out = { ["eval/loss"] = loss }
  for k, v in pairs(task.metrics(sums, total)) do
    out["eval/" .. k] = v
  end
  return out
end

-- The places checkpoints go to, each with its own moment to save.
local function savers(o, scratch, identity)
  local list = {}
  if o.save_dir then
    local saver = checkpoint.new { dir = o.save_dir, keep = o.save_total_limit, identity = identity, strict = true,
      any_core = o.resume == "any-core" }
    saver.due = function(step, last)
      return last or step % o.save_steps == 0
    end
    list[#list + 1] = saver
  end
  if scratch then
    local saver = checkpoint.new { dir = scratch, keep = 2, identity = identity, strict = false,
      any_core = false }
    local saved_at = core.now()
    saver.due = function()
      if core.now() - saved_at < SCRATCH_SECONDS then
        return false
      end
      saved_at = core.now()
      return true
    end
    list[#list + 1] = saver
  end
  return list
end

local function resume(run)
  local best
  for _, saver in ipairs(run.savers) do
    local found = run.o.resume ~= "never" and saver:newest()
    if found and (not best or found.step > best.step) then
      best = found
    end
  end
  if not best then
    return 0
  end
  best:restore(run.model, run.opt, run.task)
  run.history = best.history
  progress.say(("  %s: goes on after step %d of %d (%s)"):format(run.label, best.step, run.total, best.dir))
  return best.step
end

local function save(run, step, saver)
  if saver.saved ~= step then
    saver:save { step = step, model = run.model, opt = run.opt, task = run.task, history = run.history }
    saver.saved = step
  end
end

-- Loss, gradients, update: on return weights, moments and history are those after step k + 1. Returns
-- the step's record and the seconds that it does not count.
local function one_step(run, k)
  local o, task, model, opt = run.o, run.task, run.model, run.opt
  local began = core.now()
  local list, epoch = run.rows(k)
  model.decoder:release_pack() -- of samples drawn since the last update, which the next one makes stale
  opt:zero_grad()
  local loss, sums, total = pass(o, task, model, list, k, true)
  local norm = opt:grad_norm()
  if not finite(norm) then
    error(("%s: step %d: the gradient norm is %s on rows %s; try a lower lr or more warmup, and look at these rows")
      :format(task.where, k + 1, tostring(norm), name_rows(task, list)), 0)
  end
  local tokens, trained = 0, 0
  for _, i in ipairs(list) do
    tokens, trained = tokens + task.tokens(i), trained + task.trained(i)
  end
  local record = task.metrics(sums, total)
  record.loss, record.grad_norm, record.trained_tokens = loss, norm, trained
  if k == 0 and task.first then
    task.first(record, sums, total)
  end
  opt.lr = run.lr * run.factor(k)
  run.dirty = true
  opt:step(optim.clip_factor(norm, o.max_grad_norm))
  opt:zero_grad()
  local aside = task.aside and task.aside() or 0
  local seconds = math.max(core.now() - began - aside, 1e-9)
  record.step, record.epoch, record.lr = k + 1, epoch, opt.lr
  record.examples_per_second, record.tokens_per_second = #list / seconds, tokens / seconds
  local before = run.history[k]
  record["counters/examples"] = (before and before["counters/examples"] or 0) + #list
  record["counters/updates"] = k + 1
  run.history[k + 1] = record
  run.dirty = false
  return record, aside
end

-- Adds the evaluation to the record of a step where it is due: also to one that Ctrl-C kept without it.
local function evaluate_if_due(run, step, record)
  local o, task = run.o, run.task
  local due = step == run.total or step % (o.eval and o.eval.steps or run.per_epoch) == 0
  if task.eval and due and record["eval/loss"] == nil then
    add(record, evaluate(o, task.eval, run.model, step))
  end
end

local function steps(run, first)
  local o = run.o
  if first > 0 then
    evaluate_if_due(run, first, run.history[first])
  end
  local bar = progress.start { label = run.label, total = run.total, unit = "step" }
  for k = first, run.total - 1 do
    local record, aside = one_step(run, k)
    bar:leave_out(aside)
    local last = k + 1 == run.total
    evaluate_if_due(run, k + 1, record)
    if run.metric then
      run.metric(record)
    end
    if o.on_step then
      o.on_step(record, run.model)
    end
    bar:update(k + 1, { loss = record.loss, ["tokens/s"] = math.floor(record.tokens_per_second) })
    for _, saver in ipairs(run.savers) do
      if saver.due(k + 1, last) then
        save(run, k + 1, saver)
      end
    end
  end
  bar:done()
end

-- After Ctrl-C between two updates what was done is kept; inside an update it is not whole.
local function keep_interrupted(run)
  local done = #run.history
  if run.dirty or done == 0 or done == run.started_at then
    return
  end
  for _, saver in ipairs(run.savers) do
    local ok, problem = pcall(save, run, done, saver)
    progress.say(ok and ("  %s: stopped after step %d of %d; the same call goes on from %s"):format(run.label, done,
      run.total, saver.dir) or ("  %s: step %d is not kept: %s"):format(run.label, done, tostring(problem)))
  end
end

---@class perilune.LoopContext
---@field scratch string? directory for checkpoints that only a killed run needs
---@field metric fun(record: table)? gets every record at once
---@field identity table? what a checkpoint must match, where any is kept: name -> plain value

---Trains `model` itself on a task and returns its history.
---@param model perilune.Model
---@param task table
---@param o table resolved options
---@param ctx perilune.LoopContext
---@return table history list of records; history.summary holds the totals
function loop.run(model, task, o, ctx)
  if task.n == 0 then
    error(task.where .. ": no rows to train on", 0)
  end
  if task.eval and task.eval.n == 0 then
    error(task.eval.where .. ": no rows to evaluate on", 0)
  end
  local params = model:parameters()
  local wanted = 0
  for _, p in ipairs(params) do
    wanted = wanted + (p.requires_grad and 1 or 0)
  end
  if wanted == 0 then
    error(task.where .. ": all weights are frozen; model:freeze {} frees them", 0)
  end
  local per_epoch, total = loop.steps(task.n, o)
  local run = {
    model = model, task = task, o = o, history = {}, total = total, per_epoch = per_epoch, dirty = false,
    label = o.label or task.label, lr = o.lr, metric = ctx.metric,
    opt = make_optimizer(task.where, params, o),
    rows = loop.order(task.n, o),
    savers = savers(o, ctx.scratch, ctx.identity),
  }
  run.factor = schedule.new {
    name = o.lr_scheduler, total = total, floor = o.min_lr_ratio,
    warmup = schedule.warmup_steps(task.where, o, total),
  }
  run.lr = run.opt.lr
  local began = core.now()
  run.started_at = resume(run)
  do
    local tidy <close> = core.finally(function(_, interrupted)
      optim.forget(params)
      model.decoder:checkpoint(false)
      if interrupted then
        keep_interrupted(run)
      end
    end)
    model.decoder:checkpoint(o.gradient_checkpointing)
    steps(run, run.started_at)
  end
  local summary = { steps = total, epochs = total / per_epoch, rows = task.n, seconds = core.now() - began,
    resumed_after = run.started_at, counts = task.counts }
  return setmetatable(run.history, { __index = { summary = summary } })
end

return loop
