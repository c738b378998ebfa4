--- Stages remember. Inside a recipe's run, `train.*`, `feedback.*` and `eval.*` go
--- through stage.remember: a stage is keyed by the hash of its inputs, its options
--- and the code version, and what is done is not done again. Outside a run it just
--- computes. What a stage computes is not known here.
local base = require("perilune.core").base
local hash = require "perilune.study.hash"
local kinds = require "perilune.study.kinds"
local progress = require "perilune.study.progress"
local standin = require "perilune.study.standin"
local store = require "perilune.study.store"

local stage = {}

local current = nil         -- the run whose recipe is executing
local said = {}             -- unhashable things already told about

---The run whose recipe is executing, or nil.
---@return perilune.study.Run|nil
function stage.current() return current end

---Runs f with `run` as the current run; also when f fails or is interrupted, the one before is
---back afterwards.
---@param run perilune.study.Run|nil
---@param f fun()
---@return boolean ok
---@return any problem
function stage.within(run, f)
  local before = current
  local back <close> = base.finally(function() current = before end)
  current = run
  return xpcall(f, function(e)
    if type(e) ~= "string" then return e end
    return { message = e, trace = debug.traceback(nil, 2) }
  end)
end

---@class perilune.study.StageSpec
---@field name string what is done: "sft", "compare"
---@field kind "model"|"dataset"|"table"
---@field inputs table models, datasets, clients, functions and plain values
---@field options? table resolved options that change the result; no callbacks
---@field compute fun(ctx: perilune.study.Ctx): any
---@field on_hit? fun(value: any) called when a stored value is used
---@field cache? boolean remember also outside a run
---@field label? string shown instead of the name
---@field estimate? fun(): {calls: integer?, tokens: integer?, note: string?} for `plan`; of a service's calls
---  what perilune.ai.plan tells
---@field standin? fun(): any for `plan`: a value of the right size

---@class perilune.study.Ctx
---@field scratch string|nil directory that survives a killed run: checkpoints
---@field calls integer calls made to teachers and critics; the stage sets it
---@field metric fun(row: table) a row for metrics.jsonl, at once
---@field trail table<string, string> lines for files of the run directory, kept with the stage

local function metrics_to(run, spec)
  return function(row) if run then run:metric(spec.name, row) end end
end

local function name_of(run, spec)
  local what = spec.label or spec.name
  local at = run and run:place() or ""
  return at == "" and what or at .. ": " .. what
end

local function tell(run, spec, text)
  if run then progress.say(("  %-38s %s"):format(name_of(run, spec), text)) end
end

local function compute(run, spec, scratch)
  local ctx = { scratch = scratch, calls = 0, trail = {} }
  local streamed = 0
  local write = metrics_to(run, spec)
  function ctx.metric(row)
    streamed = streamed + 1
    write(row)
  end
  local began = base.now()
  local value = spec.compute(ctx)
  local seconds = base.now() - began
  if run and spec.kind == "model" then
    -- steps of a killed run that this one went on from were told to that run's files
    for i = 1, #(value.history or {}) - streamed do write(value.history[i]) end
  end
  return value, seconds, ctx
end

local function key_of(spec)
  return hash.of {
    format = 1, code = hash.code_version(), name = spec.name, kind = spec.kind,
    inputs = spec.inputs or {}, options = spec.options or {},
  }
end

local function book(run, spec, state, facts)
  if run then run:stage(spec, state, facts) end
end

local TRAIL = "/trail"

local function write_trail(dir, trail)
  if not next(trail) then return end
  assert(base.mkdirs(dir .. TRAIL))
  for name, text in pairs(trail) do assert(base.write_file(dir .. TRAIL .. "/" .. name, text)) end
end

local function read_trail(entry)
  local trail = {}
  if base.is_dir(entry.dir .. TRAIL) then
    for _, name in ipairs(assert(base.list_dir(entry.dir .. TRAIL))) do
      trail[name] = assert(base.read_file(entry.dir .. TRAIL .. "/" .. name))
    end
  end
  return trail
end

local function hit(run, spec, entry, key)
  local value = kinds[spec.kind].load(entry)
  tell(run, spec, "kept")
  book(run, spec, "kept", {
    key = key, hash = entry.hash, seconds = entry.seconds, calls = entry.calls, value = value,
    trail = read_trail(entry),
  })
  if run and spec.kind == "model" then
    local write = metrics_to(run, spec)
    for _, row in ipairs(value.history or {}) do write(row) end
  end
  if spec.on_hit then spec.on_hit(value) end
  return value
end

local function find(run, spec, key)
  local entry, damage = store.find(key)
  if damage then
    progress.say(("  %s: the remembered result is damaged (%s); it is computed again"):format(
      name_of(run, spec), damage))
  end
  return entry
end

local function keyed(run, spec, key)
  local entry = find(run, spec, key)
  if entry then return hit(run, spec, entry, key) end
  local lock <close> = store.lock(key, function()
    tell(run, spec, "another run is computing this; waiting for it")
  end)
  entry = store.find(key)
  if entry then return hit(run, spec, entry, key) end
  local value, seconds, ctx = compute(run, spec, store.scratch(key))
  entry = store.put(key, function(dir)
    write_trail(dir, ctx.trail)
    return kinds[spec.kind].save(value, dir)
  end, { name = spec.name, kind = spec.kind, seconds = seconds, calls = ctx.calls })
  store.drop_scratch(key)
  -- A table is used as it was stored, so that the first run and a later one see the same numbers.
  if spec.kind == "table" then value = kinds.table.load(entry) end
  tell(run, spec, "computed in " .. progress.duration(seconds))
  book(run, spec, "computed", {
    key = key, hash = entry.hash, seconds = seconds, calls = ctx.calls, value = value, trail = ctx.trail,
  })
  return value
end

local function planned(run, spec)
  local key = key_of(spec)
  local entry = key and store.find(key)
  if entry then
    run:planned(spec, { cached = true, calls = 0, tokens = 0 })
    return kinds[spec.kind].load(entry)
  end
  local estimate = spec.estimate and spec.estimate() or {}
  run:planned(spec, { cached = false, calls = estimate.calls or 0, tokens = estimate.tokens or 0,
    note = estimate.note, service = estimate.model and estimate or nil })
  if spec.standin then return spec.standin() end
  if spec.kind == "model" then
    local like
    for _, input in pairs(spec.inputs or {}) do
      if type(input) == "table" and (standin.is(input) or input.num_parameters) and input.config then like = input end
    end
    return standin.model(spec.name, like)
  end
  return standin.unknown(spec.name)
end

---Does a stage, or recalls it.
---@param spec perilune.study.StageSpec
---@return any value what spec.compute returned, or an equal value from an earlier run
function stage.remember(spec)
  assert(kinds[spec.kind], "stage.remember: kind must be model, dataset or table")
  local run = current
  if not run and not spec.cache then
    return spec.compute { calls = 0, metric = function() end, trail = {} }
  end
  if run and run.planning then return planned(run, spec) end
  local key, why = key_of(spec)
  if key then return keyed(run, spec, key) end
  if not said[why] then
    said[why] = true
    progress.say(("  %s: not remembered, it is computed in every run: %s cannot be hashed"):format(
      name_of(run, spec), why))
  end
  local value, seconds, ctx = compute(run, spec)
  tell(run, spec, "computed in " .. progress.duration(seconds))
  book(run, spec, "not remembered", {
    seconds = seconds, calls = ctx.calls, value = value, trail = ctx.trail,
  })
  return value
end

return stage
