--- Where the time goes, by op: pl.profile(f) and the flag --profile. The counting is the
--- core's (src/base/profile.h); this file makes differences, shares and tables of it. Rows in
--- brackets are no ops (an optimizer's update, passes of generation, tokenising); "a: b" is b inside a.
local core = require "perilune.core"
local base = core.base
local options = require "perilune.options"
local text = require "perilune.cli.table"

local profile = {}

local COUNTS = { "calls", "backward_calls", "forward", "backward", "flop", "bytes", "made" }

-- What was counted so far, by name, and the time.
local function snapshot()
  local at = { seconds = base.now(), rows = {} }
  for _, row in ipairs(core.profile.rows() or {}) do at.rows[row.name] = row end
  return at
end

---@class perilune.ProfileRow
---@field name string of the op; in brackets what is none
---@field calls integer
---@field backward_calls integer
---@field forward number seconds, those of ops used inside this one not counted
---@field backward number seconds
---@field share number of the whole time
---@field flop number multiply-adds counted as two; 0 where the op does not tell
---@field gflops number|nil
---@field bytes number read and written; 0 where the op does not tell
---@field gbs number|nil 1e9 bytes a second
---@field made number bytes of its results

---@class perilune.Profile
---@field seconds number from begin to end
---@field other number seconds outside all rows: Lua, data, waiting
---@field rows perilune.ProfileRow[] the most time first
local Profile = { __name = "perilune.Profile" }
Profile.__index = Profile

local function since(before)
  local p = setmetatable({ seconds = base.now() - before.seconds, rows = {} }, Profile)
  local inside = 0
  for _, now in ipairs(core.profile.rows() or {}) do
    local was, row = before.rows[now.name], { name = now.name }
    for _, key in ipairs(COUNTS) do row[key] = now[key] - (was and was[key] or 0) end
    if row.calls + row.backward_calls > 0 then
      local spent = row.forward + row.backward
      inside = inside + spent
      row.share = spent / p.seconds
      if row.flop > 0 then row.gflops = row.flop / spent * 1e-9 end
      if row.bytes > 0 then row.gbs = row.bytes / spent * 1e-9 end
      p.rows[#p.rows + 1] = row
    end
  end
  p.other = math.max(0, p.seconds - inside)
  table.sort(p.rows, function(a, b)
    if a.share ~= b.share then return a.share > b.share end
    return a.name < b.name
  end)
  return p
end

local function ms(seconds) return seconds > 0 and ("%.1f"):format(seconds * 1e3) or "" end

local function speed(row)
  if row.gflops then return ("%.1f GFLOP/s"):format(row.gflops) end
  return row.gbs and ("%.1f GB/s"):format(row.gbs) or ""
end

---The table for people.
---@return string
function Profile:text()
  local rows, forward, backward = {}, 0, 0
  for i, row in ipairs(self.rows) do
    forward, backward = forward + row.forward, backward + row.backward
    rows[i] = { row.name, tostring(math.max(row.calls, row.backward_calls)), ms(row.forward), ms(row.backward),
      ("%.1f %%"):format(100 * row.share), speed(row), row.made > 0 and ("%.1f"):format(row.made / 2 ^ 20) or "" }
  end
  local share = self.seconds > 0 and 100 * self.other / self.seconds or 0
  rows[#rows + 1] = { "outside: Lua, data, waiting", "", ms(self.other), "", ("%.1f %%"):format(share), "", "" }
  rows[#rows + 1] = { "all", "", ms(forward + self.other), ms(backward), "100.0 %", "", "" }
  return text.render({ "op", "calls", "forward ms", "backward ms", "share", "speed", "made MiB" }, rows)
end

Profile.__tostring = Profile.text

---@return string one line
function Profile:json()
  local rows = base.json_array {}
  for i, row in ipairs(self.rows) do rows[i] = row end
  return base.json_encode { seconds = self.seconds, other = self.other, rows = rows }
end

-- Counting that was on before (--profile around pl.profile) goes on.
local function begin()
  local ours = core.profile.rows() == nil
  core.profile.start()
  return ours, snapshot()
end

local function finish(ours, before)
  local p = since(before)
  if ours then core.profile.stop() end
  return p
end

local started -- { ours, before } between start and stop

---Starts counting for the whole process: the flag --profile.
function profile.start()
  if not started then started = table.pack(begin()) end
end

---Ends it and writes the table, or one line of JSON, to standard error.
---@param form "text"|"json"
function profile.stop(form)
  if not started then return end
  local p = finish(started[1], started[2])
  started = nil
  io.stdout:flush()
  io.stderr:write(form == "json" and p:json() or p:text(), "\n")
end

local OPTIONS = { print = { true, doc = "write the table to standard error" } }

---Calls f and tells where the time went: a table by op on standard error, and as the first result
---the same as data: p.rows, p.seconds, p:text(), p:json(). The results of f follow.
---A row's time is its own: what ops used inside it took stands in their rows.
---@param f function called without arguments
---@param opts? { print?: boolean } print = false: no table
---@return perilune.Profile
---@return any ...
function profile.run(f, opts)
  local o = options.resolve("profile", OPTIONS, opts)
  if type(f) ~= "function" then error("profile: wants a function, got a " .. type(f), 2) end
  local ours, before = begin()
  local p
  local guard <close> = base.finally(function() p = p or finish(ours, before) end)
  local results = table.pack(f())
  p = finish(ours, before)
  if o.print then io.stderr:write(p:text(), "\n") end
  return p, table.unpack(results, 1, results.n)
end

return profile
