--- Who a process is, in a way that outlives it: locks and the ledger note it, so that
--- another process can tell "at work right now" from "left behind by a killed one".
local base = require("perilune.core").base

local process = {}

local function read(path)
  local file = io.open(path, "r")
  if not file then return nil end
  local text = file:read "a"
  file:close()
  return text
end

-- Changes at each start of the machine, where ids and start times begin anew.
local boot = (read "/proc/sys/kernel/random/boot_id" or ""):match "^%x+" or "-"

---The mark of a process: its id, its start time (ids are used again) and the boot.
---@param id integer
---@return string|nil mark nil: no such process, or a dead one
function process.mark(id)
  local fields, n = (read(("/proc/%d/stat"):format(id)) or ""):match "^.*%) (.*)$", 0
  if (fields or ""):match "^[ZX]" then return nil end   -- dead, only its parent has not asked yet
  for field in (fields or ""):gmatch "%S+" do
    n = n + 1
    if n == 20 then return ("%d %s %s"):format(id, field, boot) end
  end
  return nil
end

---The mark of this process.
---@return string
function process.mine()
  return process.mark(base.pid()) or tostring(base.pid())
end

---Is the process that a mark was taken of still running?
---@param mark string
---@return boolean
function process.alive(mark)
  local id = math.tointeger(tonumber(mark:match "^%d+"))
  return id ~= nil and process.mark(id) == mark
end

return process
