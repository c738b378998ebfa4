-- Speed of perilune as a share of what this machine can do: `make bench`, or
--
--   perilune scripts/bench.lua [--json] [--quick] [seconds=6] [WORD ...]
--
-- runs the workloads of scripts/bench/list.lua, or those with a WORD in their names, each in
-- a process of its own and for so many seconds, and prints a table; --json prints one JSON
-- object instead, BENCH_JSON=FILE writes it beside the table. Peak and step alternate, because
-- the speed of a shared machine moves: shares are of the peak of the same seconds, medians.
--
--   perilune scripts/bench.lua workload NAME [SECONDS]      one of them, in this process
--   perilune scripts/bench.lua list                         their names
local child = require "scripts.bench.child"
local list = require "scripts.bench.list"
local report = require "scripts.bench.report"
local base = require("perilune.core").base

local function parse(words)
  local o = { seconds = 6, words = {} }
  for _, word in ipairs(words) do
    local seconds = word:match "^seconds=([%d.]+)$"
    if word == "--json" then
      o.json = true
    elseif word == "--quick" then
      o.seconds = 1
    elseif seconds then
      o.seconds = tonumber(seconds)
    elseif word:sub(1, 1) == "-" then
      error(("unknown flag %s (--json, --quick, seconds=N, words)"):format(word), 0)
    else
      o.words[#o.words + 1] = word
    end
  end
  return o
end

local command = arg[1]
if command == "workload" then
  local w = list.find(arg[2]) or error(("no workload %s; perilune scripts/bench.lua list"):format(tostring(arg[2])), 0)
  print(base.json_encode(list.run(w, tonumber(arg[3]) or 6)))
  return
elseif command == "list" then
  for _, w in ipairs(list.list) do print(w.name) end
  return
end

local o = parse(arg)
local results = {}
for i, w in ipairs(list.select(o.words)) do
  if base.isatty(2) then io.stderr:write(("\r%-40s\r"):format(w.name)) end
  results[i] = child.workload(w.name, o.seconds)
end
if base.isatty(2) then io.stderr:write(("%40s\r"):format "") end
local all = report.whole(results, o.seconds)
if os.getenv "BENCH_JSON" then assert(base.write_file(os.getenv "BENCH_JSON", base.json_encode(all, { indent = 2 }) .. "\n")) end
print(o.json and base.json_encode(all) or report.text(all))
