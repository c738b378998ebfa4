--- pl.train: fine-tuning on completions (sft), training on preferences (preference) and
--- on plain documents (pretrain). Each takes a model, data and one table of options, and
--- returns a new model whose `history` is the list of records, one a step. Inside a
--- recipe's run the result is remembered (study/stage.lua).
local core = require("perilune.core").base
local data = require "perilune.data"
local hash = require "perilune.study.hash"
local loop = require "perilune.train.loop"
local options = require "perilune.options"
local preference = require "perilune.train.preference"
local pretrain = require "perilune.train.pretrain"
local sft = require "perilune.train.sft"
local progress = require "perilune.study.progress"
local stage = require "perilune.study.stage"
local standin = require "perilune.study.standin"

local train = { schedule = require "perilune.train.schedule" }

local function check_model(where, model)
  if type(model) ~= "table" then
    error(("%s: wanted a model (pl.load \"DIR\"), got %s"):format(where, type(model)), 3)
  end
end

-- An option that nothing would read is an error that names what it wants beside it. `given` is what the
-- caller wrote, without defaults.
local function check_partners(where, given, o)
  local function fail(key, why)
    error(("%s: %s = %s has no effect %s"):format(where, key, type(given[key]) == "string" and ("%q"):format(given[key])
      or tostring(given[key]), why), 4)
  end
  given = given or {}
  for _, key in ipairs { "save_steps", "save_total_limit" } do
    if given[key] ~= nil and not o.save_dir then
      fail(key, "without save_dir, the directory for checkpoints")
    end
  end
  -- a run's stages, and remembered ones, have a scratch directory of their own
  local scratch = o.resume ~= "any-core" and (o.scratch or o.cache or stage.current())
  if given.resume ~= nil and not o.save_dir and not scratch then
    fail("resume", "without save_dir, the directory for checkpoints")
  end
  if given.min_lr_ratio ~= nil and o.lr_scheduler == "constant" then
    fail("min_lr_ratio", "with lr_scheduler = \"constant\"; choose another, or leave it out")
  end
end

-- The options that the result depends on, and which weights are frozen, where some are.
local function essential(model, o)
  local out = loop.essential(o)
  local frozen = not standin.is(model) and model.frozen and model:frozen() or {}
  out.frozen = #frozen > 0 and frozen or nil
  return out
end

-- The identity of rows. One that JSON cannot write (a function, a tensor) is no reason to stop a training that
-- asks for no checkpoints of its own; nil and what stands in the way where nothing tells such rows apart.
local function rows_hash(rows, o)
  local set = data.from(rows)
  if o.save_dir then
    return set:hash()
  end
  local ok, hex = pcall(set.hash, set)
  if ok then
    return hex
  end
  return hash.of(set:rows())
end

-- What a checkpoint must match, one text a thing so that an error can name what changed; nil and why.
local function identity_of(name, model, rows, o)
  local out = { trainer = name, model = model:hash() }
  for key, list in pairs { data = rows, eval = o.eval and o.eval.data } do
    local hex, why = rows_hash(list, o)
    if not hex then
      return nil, why
    end
    out[key] = hex
  end
  for key, value in pairs(essential(model, o)) do
    out[key] = hash.of { value } or "cannot be hashed"
  end
  return out
end

local function normal(prompt)
  if type(prompt) ~= "string" then
    return core.json_encode(prompt)
  end
  return (prompt:lower():gsub("%s+", " "):gsub("^ ", ""):gsub(" $", ""))
end

-- Evaluation on what was trained on says nothing; refused, not counted.
local function check_leak(where, rows, eval_rows)
  local seen = {}
  for i, row in ipairs(rows) do
    if row.prompt ~= nil then
      seen[normal(row.prompt)] = i
    end
  end
  for i, row in ipairs(eval_rows) do
    local at = row.prompt ~= nil and seen[normal(row.prompt)]
    if at then
      error(("%s: evaluation row %d has the prompt of training row %d"):format(where, i, at), 0)
    end
  end
end

-- Rows as a dataset, with the trainer's name in the error.
local function dataset(where, what, rows)
  local ok, result = pcall(data.from, rows)
  if not ok then
    error(("%s: %s: %s"):format(where, what, tostring(result):gsub("^.-data%.from: ", "")), 0)
  end
  return result
end

local EVAL = {
  data = { type = "table", doc = "rows" },
  steps = { type = "integer", min = 1, doc = "evaluate every so many steps; an epoch unless given" },
}

local function quote(model, ids, from, to)
  local text = model.tokenizer:decode(table.move(ids, from, to, 1, {}), { skip_special_tokens = false })
  return (("%q"):format(#text > 60 and text:sub(1, 57) .. "..." or text):gsub("\\\n", "\\n"))
end

-- One line on what is trained and what is only read: a wrong mask has a normal loss curve.
-- A recipe's run has many trainings and its own talk: the line is left out there.
local function show(task, model, o)
  local t = task.n > 0 and task.shown and task.shown(1)
  if not t or not model.tokenizer or stage.current() then
    return
  end
  local trained = 0
  for i = 1, task.n do
    trained = trained + task.trained(i)
  end
  progress.say(("%s: %d examples, %d trained tokens; read: %s, trained: %s"):format(o.label or task.label, task.n, trained,
    quote(model, t.ids, 1, t.start - 1), quote(model, t.ids, t.start, #t.ids)))
end

-- For a plan: how much there is to do, where the rows are known.
local function estimate(rows, o)
  local ok, n = pcall(function()
    return #rows
  end)
  if not ok or n == 0 or o.block_size then
    return {}
  end
  local _, steps = loop.steps(n, o)
  return { note = ("%d rows, %d steps"):format(n, steps) }
end

-- What is the same for all three: the stage around it, the copy of the model, evaluation.
-- spec: name, make(policy, reference, rows, evaluating) -> task.
local function run(spec, model, rows, o)
  local where = "train." .. spec.name
  if o.eval then
    o.eval = options.resolve(where .. ", eval", EVAL, o.eval)
    if not o.eval.data then
      error(where .. ": eval wants { data = rows }", 0)
    end
  end
  local function compute(ctx)
    if not model.parameters then
      error(("%s: wanted a model (pl.load \"DIR\"), got a table without parameters"):format(where), 0)
    end
    model.decoder:release_pack() -- what sampling left would lie there, as large as the model, all the while
    local set = dataset(where, "data", rows)
    local policy = o.in_place and model or model:clone()
    local scratch = o.scratch or ctx.scratch
    local identity, why
    if o.save_dir or scratch then
      identity, why = identity_of(spec.name, model, set, o)
      if not identity then
        progress.say(("  %s: scratch is not used: in the rows %s cannot be hashed"):format(o.label or where, why))
        scratch = nil
      end
    end
    local task = spec.make(policy, not o.in_place and model or nil, set:rows())
    if o.eval then
      local held = dataset(where, "eval.data", o.eval.data)
      check_leak(where, set:rows(), held:rows())
      task.eval = spec.make(policy, not o.in_place and model or nil, held:rows(), true)
      task.eval.where = where .. ", eval"
    end
    show(task, policy, o)
    policy.history = loop.run(policy, task, o, { scratch = scratch, metric = ctx.metric, identity = identity })
    return policy
  end
  if o.scratch then
    return compute { calls = 0 }
  end
  local result = stage.remember {
    name = spec.name, kind = "model", label = o.label, cache = o.cache,
    inputs = { model = model, data = rows, eval = o.eval and o.eval.data or nil },
    options = essential(model, o),
    compute = compute,
    estimate = function()
      return estimate(rows, o)
    end,
    on_hit = function(kept)
      for _, record in ipairs(o.on_step and kept.history or {}) do
        o.on_step(record, kept)
      end
    end,
  }
  local current = stage.current()
  if o.in_place and result ~= model and not (current and current.planning) then -- remembered: the argument becomes it
    model:load_state_dict(result:state_dict())
    model.history = result.history
    return model
  end
  return result
end

local SFT = loop.spec { lr = 2e-5, epochs = 3, batch_size = 8, lr_scheduler = "linear" }

---Fine-tunes on completions: rows { prompt, completion }. Only the answer's tokens and its
---end token are trained; the loss is their mean over the whole optimizer step.
---@param model perilune.Model left as it was, unless in_place
---@param rows perilune.Dataset|table[]
---@param opts table? see pl.train.options "sft"
---@return perilune.Model
function train.sft(model, rows, opts)
  check_model("train.sft", model)
  local o = options.resolve("train.sft", SFT, opts)
  check_partners("train.sft", opts, o)
  return run({
    name = "sft",
    make = function(policy, _, list)
      return sft.make("train.sft", policy, list, o)
    end,
  }, model, rows, o)
end

local PRETRAIN = loop.spec { lr = 1e-3, epochs = 1, batch_size = 16, lr_scheduler = "cosine" }
PRETRAIN.block_size = { 64, min = 2, doc = "tokens of a block" }

---Trains on documents: rows { text }, packed into blocks with an end token after each.
---@param model perilune.Model left as it was, unless in_place
---@param documents perilune.Dataset|table[]
---@param opts table? block_size, and the trainer's options
---@return perilune.Model
function train.pretrain(model, documents, opts)
  check_model("train.pretrain", model)
  local o = options.resolve("train.pretrain", PRETRAIN, opts)
  check_partners("train.pretrain", opts, o)
  return run({
    name = "pretrain",
    make = function(policy, _, list)
      return pretrain.make("train.pretrain", policy, list, o)
    end,
  }, model, documents, o)
end

local PREFERENCE = loop.spec { lr = 1e-6, epochs = 3, batch_size = 8, lr_scheduler = "linear" }

---Trains on preferences: rows { prompt, chosen, rejected }. `loss` is a name (pl.loss.names())
---or a function (p, o) -> tensor of small tensors; the reference is the model as it came.
---@param model perilune.Model left as it was, unless in_place
---@param rows perilune.Dataset|table[]
---@param opts table? loss, the loss's own options, and the trainer's
---@return perilune.Model
function train.preference(model, rows, opts)
  check_model("train.preference", model)
  local o, own, def = preference.options("train.preference", PREFERENCE, opts)
  check_partners("train.preference", opts, o)
  if def.own then
    -- the loss's own options are part of what the result depends on
    o.own = own
  end
  return run({
    name = "preference",
    make = function(policy, reference, list, evaluating)
      return preference.make {
        where = "train.preference", model = policy, reference = reference, rows = list, o = o, own = own,
        def = def, label = o.label,
        batches = function(n)
          return evaluating and loop.in_order(n, o.batch_size) or loop.first_batches(n, o)
        end,
      }
    end,
  }, model, rows, o)
end

---The options of a trainer, one line each.
---@param name string "sft", "pretrain" or "preference"
---@return string[]
function train.options(name)
  local specs = { sft = SFT, pretrain = PRETRAIN, preference = PREFERENCE }
  if not specs[name] then
    error("train.options: " .. options.unknown("trainer", tostring(name), { "sft", "pretrain", "preference" }), 2)
  end
  return options.describe(specs[name])
end

return train
