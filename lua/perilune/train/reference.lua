--- The reference's log-probabilities of a data set, computed once: a second training on the same
--- reference and rows (a sweep over beta, lr or the loss) finds them here. They are known by all
--- they depend on: the reference's weights, the precision, the kernels, the code, and the rows batch
--- by batch, for a product of another size may round differently. Kept in memory while the process
--- lives, the oldest given up first; inside a recipe's run also on disk, beside its stages.
local core = require("perilune.core").base
local hash = require "perilune.study.hash"
local kinds = require "perilune.study.kinds"
local stage = require "perilune.study.stage"
local store = require "perilune.study.store"

local reference = {}

local MOST = 2000000 -- numbers in memory

local kept, numbers = {}, 0 -- list of { key, value, n }, the last used last

---@class perilune.Reference
---@field chosen number[] a row each; shared, not to be changed
---@field rejected number[]

local function key_of(spec)
  local sum = core.sha256_new()
  sum:add(("reference 1\n%s\n%s\n%s\n%s\n"):format(spec.model:hash(), spec.bf16 and "bf16" or "f32", (core.isa()),
    hash.code_version()))
  for _, list in ipairs(spec.batches) do
    sum:add(("batch %d\n"):format(#list))
    for _, i in ipairs(list) do
      for _, row in ipairs { spec.chosen[i], spec.rejected[i] } do
        sum:add(("%d %d: %s\n"):format(i, row.start, table.concat(row.ids, " ")))
      end
    end
  end
  return sum:hex()
end

local function remember(key, value)
  local n = #value.chosen + #value.rejected
  kept[#kept + 1] = { key = key, value = value, n = n }
  numbers = numbers + n
  while numbers > MOST and #kept > 1 do
    numbers = numbers - table.remove(kept, 1).n
  end
  return value
end

local function in_memory(key)
  for at = #kept, 1, -1 do
    if kept[at].key == key then
      local entry = table.remove(kept, at)
      kept[#kept + 1] = entry
      return entry.value
    end
  end
  return nil
end

-- Beside the stages of a run; a damaged entry counts as none.
local function on_disk(key, compute)
  local entry = store.find(key)
  if not entry then
    local lock <close> = store.lock(key, function() end)
    entry = store.find(key)
    if not entry then
      local began = core.now()
      local value = compute()
      entry = store.put(key, function(dir)
        return kinds.table.save(value, dir)
      end, { name = "reference", kind = "table", seconds = core.now() - began, calls = 0 })
    end
  end
  return kinds.table.load(entry)
end

---@param spec { model: perilune.Model, bf16: boolean, batches: integer[][], chosen: table[], rejected: table[] }
---  chosen, rejected: rows as tokens; batches: the rows that are read, as they are read
---@param compute fun(): perilune.Reference
---@return perilune.Reference
function reference.get(spec, compute)
  local key = key_of(spec)
  local value = in_memory(key)
  if value then
    return value
  end
  return remember(key, stage.current() and on_disk(key, compute) or compute())
end

---Forgets what is in memory.
function reference.forget()
  kept, numbers = {}, 0
end

return reference
