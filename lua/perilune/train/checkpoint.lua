--- Checkpoints of a training run: one directory a step, atomic or not at all.
---
---   DIR/step-120/model/                a model directory
---                training.safetensors  optimizer state and what the task keeps
---                state.json            counters and the identity of the run
---                history.jsonl         one record a step
---                manifest.json         size and SHA-256 of each file, written last
---
--- A checkpoint is written as step-N.tmp, synced and renamed, or exchanged with one of the same
--- step. The loader takes the newest valid one and says why it skipped others. Nothing here knows
--- what is trained.
local core = require("perilune.core").base
local format = require("perilune.core").format
local hash = require "perilune.study.hash"
local pl = require "perilune"
local progress = require "perilune.study.progress"

local checkpoint = {}

local FORMAT = 1

---@class perilune.Saver
---@field dir string
local Saver = {}
Saver.__index = Saver

local function must(ok, why)
  if not ok then
    error("checkpoint: " .. tostring(why or "a file operation failed"), 0)
  end
  return ok
end

---@param spec {dir: string, keep: integer, identity: table<string, string>, strict: boolean, any_core: boolean}
---identity: name -> text; a checkpoint of another identity is an error where strict, else skipped, and that is said
---@return perilune.Saver
function checkpoint.new(spec)
  return setmetatable({
    dir = spec.dir, keep = spec.keep, identity = spec.identity, strict = spec.strict, any_core = spec.any_core,
  }, Saver)
end

local function files_of(dir, prefix, out)
  for _, name in ipairs(must(core.list_dir(dir))) do
    local path = dir .. "/" .. name
    if core.is_dir(path) then
      files_of(path, prefix .. name .. "/", out)
    elseif prefix .. name ~= "manifest.json" then
      out[#out + 1] = { name = prefix .. name, sha256 = must(hash.file(path)) }
    end
  end
  return out
end

local function lines(rows)
  local out = {}
  for i, row in ipairs(rows) do
    out[i] = core.json_encode(row)
  end
  out[#out + 1] = ""
  return table.concat(out, "\n")
end

-- The steps that have a directory, newest first.
local function steps_in(dir)
  local found = {}
  if core.is_dir(dir) then
    for _, name in ipairs(must(core.list_dir(dir))) do
      local step = math.tointeger(tonumber(name:match "^step%-(%d+)$"))
      if step then
        found[#found + 1] = step
      end
    end
  end
  table.sort(found, function(a, b)
    return a > b
  end)
  return found
end

---Writes the checkpoint of a step and drops the oldest ones. Those of later steps are of a run that
---was started afresh since: they go too, or they would outlive and outrank this one.
---@param s {step: integer, model: perilune.Model, opt: perilune.Optimizer, task: table, history: table}
function Saver:save(s)
  local final = ("%s/step-%d"):format(self.dir, s.step)
  local dir = final .. ".tmp"
  must(core.remove_tree(dir))
  must(core.mkdirs(dir))
  must(s.model:save(dir .. "/model"))
  local tensors, counters = {}, nil
  local moments
  moments, counters = s.opt:state_tensors()
  for name, t in pairs(moments) do
    tensors["optimizer/" .. name] = t
  end
  for name, t in pairs(s.task.tensors and s.task.tensors() or {}) do
    tensors["task/" .. name] = t
  end
  must(format.safetensors_write(dir .. "/training.safetensors", tensors, { format = "perilune-training" }))
  must(core.write_file(dir .. "/history.jsonl", lines(s.history)))
  must(core.write_file(dir .. "/state.json", core.json_encode({
    format = FORMAT, step = s.step, optimizer = s.opt.name, optimizer_steps = counters,
    identity = self.identity, kernels = core.isa(),
  }, { indent = 2 }) .. "\n"))
  must(core.write_file(dir .. "/manifest.json", core.json_encode({
    format = FORMAT, files = files_of(dir, "", {}),
  }, { indent = 2 }) .. "\n"))
  must(core.replace(dir, final))
  must(core.remove_tree(dir)) -- what was there before, if anything
  local kept = 0
  for _, step in ipairs(steps_in(self.dir)) do
    kept = kept + (step <= s.step and 1 or 0)
    if step > s.step or kept > self.keep then
      must(core.remove_tree(("%s/step-%d"):format(self.dir, step)))
    end
  end
end

-- Why a directory is not a whole checkpoint, or nil.
local function damage(dir)
  local manifest, why = core.json_read(dir .. "/manifest.json")
  if not manifest then
    return why
  end
  for _, file in ipairs(manifest.files or {}) do
    local sum, missing = hash.file(dir .. "/" .. file.name)
    if sum ~= file.sha256 then
      return ("%s: %s"):format(file.name, sum and "its bytes have changed" or missing or "missing")
    end
  end
  return nil
end

local function read_history(path)
  local rows = {}
  for line in must(core.read_file(path)):gmatch "[^\n]+" do
    rows[#rows + 1] = must(core.json_decode(line, path))
  end
  return rows
end

---@class perilune.Checkpoint
---@field dir string
---@field step integer
---@field history table[]
local Checkpoint = {}
Checkpoint.__index = Checkpoint

-- Another run's checkpoint is the user's mistake, not damage: say what differs.
local function differences(state, identity)
  local out = {}
  for name, value in pairs(identity) do
    if (state.identity or {})[name] ~= value then
      out[#out + 1] = name
    end
  end
  for name in pairs(state.identity or {}) do
    if identity[name] == nil then
      out[#out + 1] = name
    end
  end
  table.sort(out)
  return out
end

---The newest valid checkpoint of this run, or nil. Damaged ones are skipped, and that is said. A newer
---one of another run is an error where strict: the next save would remove it.
---@return perilune.Checkpoint|nil
function Saver:newest()
  for _, step in ipairs(steps_in(self.dir)) do
    local dir = ("%s/step-%d"):format(self.dir, step)
    local bad = damage(dir)
    local state = not bad and must(core.json_read(dir .. "/state.json"))
    local other = state and differences(state, self.identity)
    if bad then
      progress.say(("  checkpoint %s is skipped: %s"):format(dir, bad))
    elseif #other > 0 then
      local text = ("%s holds a checkpoint of another run: %s changed since"):format(dir, table.concat(other, ", "))
      if self.strict then
        error(text .. "; choose another save_dir, or resume = \"never\" to start afresh in its place", 0)
      end
      progress.say("  " .. text .. "; it is skipped")
    elseif state.kernels ~= core.isa() and not self.any_core then
      local text = ("%s was written with the kernels for %s, these are %s: the bits would differ"):format(dir,
        tostring(state.kernels), core.isa())
      if self.strict then
        error(text .. "; pass resume = \"any-core\" to go on all the same", 0)
      end
      progress.say("  " .. text .. "; started afresh")
    else
      return setmetatable({ dir = dir, step = state.step, state = state,
        history = read_history(dir .. "/history.jsonl") }, Checkpoint)
    end
  end
  return nil
end

-- All tensors of a file by name.
local function tensors_of(path)
  local st, why = format.safetensors_open(path)
  must(st, why)
  local out = {}
  for _, name in ipairs(st:names()) do
    out[name] = st:tensor(name)
  end
  st:close()
  return out
end

---Puts weights, optimizer state and the task's tensors back.
---@param model perilune.Model
---@param opt perilune.Optimizer
---@param task table
function Checkpoint:restore(model, opt, task)
  if self.state.optimizer ~= opt.name then
    error(("%s was written with the optimizer %s, this run has %s"):format(self.dir, self.state.optimizer, opt.name), 0)
  end
  model:load_state_dict(pl.load(self.dir .. "/model"):state_dict())
  local moments, kept = {}, {}
  for name, t in pairs(tensors_of(self.dir .. "/training.safetensors")) do
    local owner, rest = name:match "^(%l+)/(.*)$"
    if owner == "optimizer" then
      moments[rest] = t
    else
      kept[rest] = t
    end
  end
  opt:load_state_tensors(moments, self.state.optimizer_steps)
  if task.restore then
    task.restore(kept)
  end
end

return checkpoint
