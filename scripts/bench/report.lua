-- The results of `make bench` as one object and as a table.
local base = require("perilune.core").base
local text = require "perilune.cli.table"

local M = {}

---The machine, the time and the results.
function M.whole(results, seconds)
  return {
    date = os.date "!%Y-%m-%dT%H:%M:%SZ", machine = base.cpu_name(), threads = base.threads(),
    kernels = base.isa(), seconds = seconds, results = base.json_array(results),
  }
end

local function percent(x) return x and ("%.0f %%"):format(100 * x) or "" end
local function gb(bytes) return bytes and ("%.2f GB"):format(bytes * 1e-9) or "" end

function M.number(x)
  if x >= 1000 then return ("%.0f"):format(x) end
  return ("%.3g"):format(x)
end

---A workload's ratio to its peers, and in brackets the one to settings beyond the figure's; "" without one.
---@return string
function M.ratio(r)
  if not r.ratio then return "" end
  local more = r.ratio_to_all and r.ratio_to_all < r.ratio and (" (%.2f)"):format(r.ratio_to_all) or ""
  return ("%.2f%s"):format(r.ratio, more)
end

-- What is to be reached, and whether it was, in words.
local function goals(r)
  local to, out, missed = r.to_reach or {}, {}, false
  for _, key in ipairs { "share", "rss", "value" } do
    if to[key] then
      local got = r.reached and r.reached[key]
      missed = missed or got ~= true
      out[#out + 1] = (key == "rss" and gb(to[key]) or (key == "value" and "at most " or "") .. percent(to[key]))
    end
  end
  if #out == 0 then return "", "" end
  return table.concat(out, ", "), missed and "MISSED" or "reached"
end

local function row(r)
  local to, verdict = goals(r)
  local name = r.what or r.name
  if r.missing or r.failed then
    return { name, r.dtype or "", "", "", "", "", "", to, r.missing or "FAILED: " .. r.failed }
  elseif r.value then
    return { name, r.dtype or "", "", "", "", percent(r.value), "", to, verdict }
  end
  return { name, r.dtype or "", ("%s %s"):format(M.number(r.rate), r.unit),
    r.speed and ("%s %s"):format(M.number(r.speed), r.speed_unit) or "",
    r.peak and ("%s %s"):format(r.probe == "dram" and "DRAM" or r.probe, M.number(r.peak)) or "", percent(r.share), gb(r.rss), to, verdict }
end

---@return string
function M.text(all)
  local rows, notes = {}, {}
  for i, r in ipairs(all.results) do
    rows[i] = row(r)
    if r.note then notes[#notes + 1] = ("%s: %s"):format(r.what, r.note) end
  end
  local head = ("%s; %d threads; kernels: %s; %s"):format(all.machine, all.threads, all.kernels, all.date)
  local out = { head, "", text.render({ "workload", "dtype", "rate", "speed", "peak", "share", "memory", "to reach", "" }, rows) }
  if #notes > 0 then out[#out + 1] = "" end
  table.move(notes, 1, #notes, #out + 1, out)
  return table.concat(out, "\n")
end

return M
