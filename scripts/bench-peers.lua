-- perilune against PyTorch and llama.cpp on the same work, in turn: `make bench-peers`, or
--
--   perilune scripts/bench-peers.lua [--json] [--quick] [rounds=3] [seconds=5] [WORD ...]
--
-- takes the workloads of scripts/bench/list.lua that have a peer (with a WORD in their names),
-- runs ours, then each peer, so many rounds, and prints the medians and the median of each
-- round's ratio to the fastest peer of that round, beside the figure to reach; where a peer has
-- a setting that the figure was not made against, the ratio with it follows in brackets. The
-- peak is probed before every run. --json prints one JSON object; BENCH_JSON=FILE writes it as well.
-- The Python environment is PERILUNE_BENCH_VENV or build/bench-venv (make bench-peers makes it).
local base = require("perilune.core").base
local child = require "scripts.bench.child"
local list = require "scripts.bench.list"
local measure = require "scripts.bench.measure"
local peers = require "scripts.bench.peers"
local report = require "scripts.bench.report"
local text = require "perilune.cli.table"

local o = { rounds = 3, seconds = 5, words = {} }
for _, word in ipairs(arg) do
  local name, value = word:match "^(%a+)=([%d.]+)$"
  if word == "--json" then
    o.json = true
  elseif word == "--quick" then
    o.rounds, o.seconds = 1, 2
  elseif name == "rounds" or name == "seconds" then
    o[name] = tonumber(value)
  elseif word:sub(1, 1) == "-" or name then
    error(("unknown option %s (--json, --quick, rounds=N, seconds=N, words)"):format(word), 0)
  else
    o.words[#o.words + 1] = word
  end
end

-- Workloads that differ only in how our weights are held have the same peers: one group.
local function groups()
  local order, by_key = {}, {}
  for _, w in ipairs(list.select(o.words)) do
    if w.peer then
      local training = w.peer == "sft" or w.peer == "dpo"
      local key = table.concat({ w.peer, w.shape, w.batch or w.length, training and w.dtype or "" }, "-")
      if not by_key[key] then
        by_key[key] = { peers = peers.of(w), ours = {} }
        order[#order + 1] = by_key[key]
      end
      table.insert(by_key[key].ours, w)
    end
  end
  return order
end

local function say(words)
  if base.isatty(2) then io.stderr:write(("\r%-70s\r"):format(words)) end
end

-- One run of one side, with the peak just before.
local function once(side, name, run)
  say(name)
  local peak = { f32 = measure.probes.f32(), bf16 = measure.probes.bf16() }
  local r = run()
  r.peak_before = peak
  table.insert(side, r)
  return r
end

local function medians(runs)
  local rates, peaks, rss, failed = {}, {}, 0, nil
  for _, r in ipairs(runs) do
    failed = failed or r.failed or r.missing
    if r.rate then
      rates[#rates + 1], rss = r.rate, math.max(rss, r.rss or 0)
      peaks[#peaks + 1] = r.peak_before.f32
    end
  end
  if #rates == 0 then return { failed = failed or "no result" } end
  return { rate = measure.median(rates), peak_f32 = measure.median(peaks), rss = rss }
end

-- The medians of one group: a result for each of ours, the peers inside.
local function compare(group)
  local ours, theirs, ratios, to_all = {}, {}, {}, {}
  for i in ipairs(group.ours) do ours[i], ratios[i], to_all[i] = {}, {}, {} end
  for i in ipairs(group.peers) do theirs[i] = {} end
  for _ = 1, o.rounds do
    local mine, best, best_of_all = {}, 0, 0
    for i, w in ipairs(group.ours) do
      mine[i] = once(ours[i], w.name, function() return child.workload(w.name, o.seconds) end)
    end
    for i, peer in ipairs(group.peers) do
      local r = once(theirs[i], peer.name, function() return peers.run(peer, group.ours[1], o.seconds) end)
      best_of_all = math.max(best_of_all, r.rate or 0)
      if not peer.beyond then best = math.max(best, r.rate or 0) end
    end
    for i, r in ipairs(mine) do
      if r.rate and best > 0 then
        table.insert(ratios[i], r.rate / best)
        table.insert(to_all[i], r.rate / best_of_all)
      end
    end
  end
  local out, around = {}, base.json_array {}
  for i, peer in ipairs(group.peers) do
    around[i] = medians(theirs[i])
    around[i].name, around[i].beyond = peer.name, peer.beyond
  end
  for i, w in ipairs(group.ours) do
    local r = medians(ours[i])
    r.name, r.what, r.dtype, r.unit = w.name, w.what, w.dtype, w.peer == "dpo" and "pairs/s" or "tokens/s"
    r.ratio = #ratios[i] > 0 and measure.median(ratios[i]) or nil
    r.ratio_to_all = r.ratio and measure.median(to_all[i])
    r.to_reach, r.peers = w.to_reach.ratio, around
    out[i] = r
  end
  return out
end

local function gb(bytes) return bytes and ("%.2f GB"):format(bytes * 1e-9) or "" end

local function rows_of(results)
  local rows, told = {}, nil
  for _, r in ipairs(results) do
    if r.peers ~= told then
      told = r.peers
      for _, p in ipairs(r.peers) do
        rows[#rows + 1] = { r.what, p.name, p.rate and ("%s %s"):format(report.number(p.rate), r.unit) or p.failed, gb(p.rss),
          p.peak_f32 and ("%.0f"):format(p.peak_f32) or "", "", "", "" }
      end
    end
    local verdict = r.to_reach and r.ratio and (r.ratio >= r.to_reach and "reached" or "MISSED") or ""
    rows[#rows + 1] = { r.what, "perilune " .. r.dtype, r.rate and ("%s %s"):format(report.number(r.rate), r.unit) or r.failed, gb(r.rss),
      r.peak_f32 and ("%.0f"):format(r.peak_f32) or "", report.ratio(r),
      r.to_reach and ("%g x"):format(r.to_reach) or "", verdict }
  end
  return rows
end

local results = base.json_array {}
for _, group in ipairs(groups()) do
  for _, r in ipairs(compare(group)) do results[#results + 1] = r end
end
say ""
local all = report.whole(results, o.seconds)
all.rounds = o.rounds
if os.getenv "BENCH_JSON" then
  assert(base.write_file(os.getenv "BENCH_JSON", base.json_encode(all, { indent = 2 }) .. "\n"))
end
if o.json then
  print(base.json_encode(all))
else
  print(("%s; %d threads; %s; %d rounds"):format(all.machine, all.threads, all.date, o.rounds) .. "\n")
  print(text.render({ "work", "who", "rate", "memory", "f32 peak", "ours / best", "to reach", "" }, rows_of(results)))
end
