--- Learning-rate schedules: a factor on lr as a function of the step, counted from 0.
--- As in the transformers library the first step of a warm-up has factor 0.
--- Pure functions; nothing here knows an optimizer.
local options = require "perilune.options"

local schedule = {}

---Named shapes after the warm-up: progress 0..1 and the floor -> factor.
schedule.shapes = {
  constant = function()
    return 1
  end,
  linear = function(progress, floor)
    return floor + (1 - floor) * (1 - progress)
  end,
  cosine = function(progress, floor)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2
  end,
}

---The names, sorted.
---@return string[]
function schedule.names()
  local names = {}
  for name in pairs(schedule.shapes) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

---@class perilune.ScheduleOptions
---@field name string constant, linear or cosine
---@field total integer steps in all
---@field warmup integer steps of linear warm-up from 0
---@field floor number final fraction of lr (min_lr_ratio)

---A function step (from 0) -> factor.
---@param o perilune.ScheduleOptions
---@return fun(step: integer): number
function schedule.new(o)
  local shape = schedule.shapes[o.name]
  if not shape then
    local names = schedule.names()
    local near = options.nearest(tostring(o.name), names)
    error(("lr_scheduler: no schedule %q%s; there are %s"):format(tostring(o.name),
      near and (" (did you mean %q?)"):format(near) or "", table.concat(names, ", ")), 0)
  end
  local total, warmup, floor = o.total, o.warmup or 0, o.floor or 0
  return function(step)
    if step < warmup then
      return step / warmup
    end
    local span = math.max(1, total - warmup)
    return shape(math.min(1, (step - warmup) / span), floor)
  end
end

---Warm-up steps from the trainer's options: warmup_steps, warmup_ratio, or warmup
---(below 1 a share of all steps, else a number of steps).
---@param where string
---@param o {warmup: number?, warmup_steps: integer?, warmup_ratio: number?}
---@param total integer
---@return integer
function schedule.warmup_steps(where, o, total)
  local given = {}
  for _, key in ipairs { "warmup", "warmup_steps", "warmup_ratio" } do
    if o[key] ~= nil then
      given[#given + 1] = key
    end
  end
  if #given > 1 then
    error(("%s: %s say the same thing twice; give one"):format(where, table.concat(given, " and ")), 0)
  end
  if o.warmup_steps then
    return o.warmup_steps
  end
  local w = o.warmup_ratio or o.warmup or 0
  if o.warmup and w >= 1 then
    return math.floor(w)
  end
  return math.ceil(w * total)
end

return schedule
