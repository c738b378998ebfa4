--- The talk of a run on standard error: one live line for the work in hand, and
--- plain lines that do not break it. Standard output belongs to results; nothing
--- here writes to it.
local base = require("perilune.core").base

local progress = {}

-- A terminal gets a line that is rewritten; elsewhere (a log file, a pipe) a new
-- line now and then is what can be read later.
local LIVE_EVERY, PLAIN_EVERY = 0.1, 5
local live = nil            -- text now standing on the terminal's last line
local quiet = false

local function terminal()
  return base.isatty(2) and os.getenv "TERM" ~= "dumb"
end

local function erase()
  if live then
    io.stderr:write "\r\27[K"
    live = nil
  end
end

---Prints a line to standard error; a live line is taken away first.
---@param text string
function progress.say(text)
  erase()
  if not quiet then io.stderr:write(text, "\n") end
end

---Turns all talk off or on (tests; `--quiet`).
---@param on boolean
---@return boolean before
function progress.quiet(on)
  local before = quiet
  quiet = on
  return before
end

-- Cuts at a character of UTF-8, never inside one.
local function cut(text, width)
  if #text <= width then return text end
  local n = width
  while n > 0 and (text:byte(n + 1) or 0) & 0xC0 == 0x80 do n = n - 1 end
  return text:sub(1, n)
end

---@param seconds number
---@return string such as "8.2 s", "3 min 05 s", "2 h 10 min"
function progress.duration(seconds)
  if seconds < 60 then return ("%.1f s"):format(seconds) end
  if seconds < 3600 then
    local whole = math.floor(seconds + 0.5)
    return ("%d min %02d s"):format(whole // 60, whole % 60)
  end
  local minutes = math.floor(seconds / 60 + 0.5)
  return ("%d h %02d min"):format(minutes // 60, minutes % 60)
end

---@param value any
---@return string
function progress.number(value)
  if math.type(value) == "integer" then return tostring(value) end
  if type(value) ~= "number" then return tostring(value) end
  local size = math.abs(value)
  if size >= 1e5 or (size > 0 and size < 1e-3) then return ("%.2e"):format(value) end
  return size >= 100 and ("%.0f"):format(value) or ("%.3g"):format(value)
end

local function fields(values)
  local names, out = {}, {}
  for name in pairs(values or {}) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do out[i] = name .. " " .. progress.number(values[name]) end
  return table.concat(out, "  ")
end

---@class perilune.Progress
---@field label string
---@field total? integer
local Progress = {}
Progress.__index = Progress

---@class perilune.Progress.Spec
---@field label string what is being done
---@field total? integer how many units there are
---@field unit? string what a unit is called (default "step")

---Begins a piece of work.
---@param spec perilune.Progress.Spec
---@return perilune.Progress
function progress.start(spec)
  local now, live_line = base.now(), terminal()
  return setmetatable({
    label = spec.label, total = spec.total, unit = spec.unit or "step", began = now, terminal = live_line,
    -- in a log file, what ends soon needs no lines of its own
    shown = live_line and -math.huge or now,
  }, Progress)
end

---Tells how far the work is. Cheap to call at every step.
---@param step integer units done
---@param values? table<string, number> figures to show, such as loss
function Progress:update(step, values)
  if quiet then return end
  local now = base.now()
  self.resumed_at = self.resumed_at or step       -- a resumed run did not do the first steps itself
  if now - self.shown < (self.terminal and LIVE_EVERY or PLAIN_EVERY) then return end
  self.shown = now
  local parts = { self.label }
  if self.total and self.total > 0 then
    parts[#parts + 1] = ("%s %d/%d"):format(self.unit, step, self.total)
    local done = step - self.resumed_at
    if done > 0 and step < self.total then
      parts[#parts + 1] = "left " .. progress.duration((now - self.began) / done * (self.total - step))
    end
  else
    parts[#parts + 1] = ("%s %d"):format(self.unit, step)
  end
  local figures = fields(values)
  if figures ~= "" then parts[#parts + 1] = figures end
  local text = table.concat(parts, "  ")
  if self.terminal then
    erase()
    live = cut(text, math.max(20, (base.term_width() or 80) - 1))
    io.stderr:write(live)
    io.stderr:flush()
  else
    io.stderr:write(text, "\n")
  end
end

---Leaves seconds that are not of this work out of the estimate of the time left.
---@param seconds number
function Progress:leave_out(seconds) self.began = self.began + seconds end

---Ends the work; with a text, that text stays as a line.
---@param summary? string
function Progress:done(summary)
  erase()
  if summary then
    progress.say(("%s  %s  %s"):format(self.label, summary, progress.duration(base.now() - self.began)))
  end
end

return progress
