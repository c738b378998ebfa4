-- Runs a program and reads the one JSON object of its last line. A workload has a process of
-- its own, so that its peak memory is its own.
local base = require("perilune.core").base

local M = {}

function M.quote(word) return "'" .. tostring(word):gsub("'", "'\\''") .. "'" end

---@param command string for the shell; its standard error goes through
---@return table|nil
---@return string|nil what went wrong
function M.json(command)
  local pipe = assert(io.popen(command))
  local last = nil
  for line in pipe:lines() do last = line end
  local ok, _, status = pipe:close()
  local result = last and base.json_decode(last)
  if type(result) ~= "table" then return nil, ("ended with status %s and no result"):format(ok and 0 or status) end
  return result
end

---@param name string of a workload
---@param seconds number
function M.workload(name, seconds)
  local exe = assert(base.exe_dir()) .. "/perilune"
  local r, problem = M.json(("%s scripts/bench.lua workload %s %g"):format(M.quote(exe), M.quote(name), seconds))
  return r or { name = name, failed = problem }
end

return M
