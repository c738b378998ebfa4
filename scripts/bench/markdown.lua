-- The tables of the README out of the JSON of `make bench` and `make bench-peers`:
--
--   perilune scripts/bench/markdown.lua BENCH.json [PEERS.json]
local base = require("perilune.core").base
local report = require "scripts.bench.report"

local function read(path) return assert(base.json_read(path)) end

local function percent(x) return ("%.0f %%"):format(100 * x) end
local function gb(x) return ("%.2f GB"):format(x * 1e-9) end

-- A figure that is to be reached: what came, what was wanted, and which it is.
local function goal(got, wanted, ok, most)
  if got == nil then return "not measured", wanted, "" end
  return got, (most and "at most " or "") .. wanted, ok and "reached" or "**missed**"
end

local function line(...) print("| " .. table.concat({ ... }, " | ") .. " |") end

local function head(all, what)
  print(("%s: %s, %d threads, %s."):format(what, all.machine, all.threads, all.date:sub(1, 10)))
  print ""
end

local bench = read(arg[1])
head(bench, "`make bench`")
line("work", "precision", "rate", "figure", "to reach", "")
line("---", "---", "---", "---", "---", "---")
for _, r in ipairs(bench.results) do
  local to, ok, failed = r.to_reach or {}, r.reached or {}, r.missing or r.failed
  local rate = r.rate and ("%s %s"):format(report.number(r.rate), r.unit) or failed or ""
  if to.share then
    local of = r.probe == "dram" and "DRAM read" or (r.dtype .. " peak")
    line(r.what, r.dtype, rate, goal(r.share and ("%s of the %s"):format(percent(r.share), of), percent(to.share), ok.share))
  end
  if to.rss then line(r.what .. ", memory", r.dtype, "", goal(r.rss and gb(r.rss), gb(to.rss), ok.rss, true)) end
  if to.value then line(r.what, r.dtype, "", goal(r.value and percent(r.value), percent(to.value), ok.value, true)) end
end

if arg[2] then
  local peers = read(arg[2])
  print ""
  head(peers, ("`make bench-peers`, medians of %d rounds in turn"):format(peers.rounds))
  line("work", "perilune", "peers", "ratio to the best", "to reach", "")
  line("---", "---", "---", "---", "---", "---")
  for _, r in ipairs(peers.results) do
    local others = {}
    for _, p in ipairs(r.peers) do
      if p.rate then others[#others + 1] = ("%s %s"):format(p.name, report.number(p.rate)) end
    end
    local rate = r.rate and ("%s: %s %s"):format(r.dtype, report.number(r.rate), r.unit) or r.failed
    local ratio = report.ratio(r)
    if r.to_reach then
      line(r.what, rate, table.concat(others, ", "), goal(r.ratio and ratio, ("%g"):format(r.to_reach), r.ratio and r.ratio >= r.to_reach))
    else
      line(r.what, rate, table.concat(others, ", "), ratio, "", "")
    end
  end
end
