#!/usr/bin/env bash
# The benchmark's own machinery: a workload in a process of its own, JSON, tables, refusals.
# Speeds are not looked at. And what the script of `make train-parity` refuses.
set -u
bin=${PL_BIN:-./perilune}
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT

check() { # NAME COMMAND...
  local name=$1
  shift
  if "$@" >"$tmp/out" 2>&1; then echo "ok $name"; else echo "not ok $name: $(tail -c 300 "$tmp/out")"; fi
}

BENCH_JSON=$tmp/bench.json "$bin" scripts/bench.lua seconds=0.1 sft-study-20 >"$tmp/table" 2>"$tmp/err"
check "a table of what was chosen" grep -Eq 'SFT study, 16 x 20 +f32 .*tokens/s.*GFLOP/s.*%' "$tmp/table"
check "the same as JSON" grep -q '"name": "sft-study-20"' "$tmp/bench.json"
cat >"$tmp/some.json" <<'JSON'
{"machine": "m", "threads": 2, "date": "2026-01-01T00:00:00Z", "rounds": 3, "results": [
  {"what": "a", "dtype": "bf16", "rate": 10, "unit": "tokens/s", "share": 0.8, "probe": "bf16", "rss": 3e9, "ratio": 1.5,
   "to_reach": {"share": 0.7, "rss": 2e9}, "reached": {"share": true, "rss": false}, "peers": []},
  {"what": "b", "dtype": "f32", "missing": "not there yet", "to_reach": {"share": 0.5}, "reached": {}}]}
JSON
"$bin" scripts/bench/markdown.lua "$tmp/some.json" >"$tmp/markdown" 2>&1
check "reached in the README's table" grep -q '| a | bf16 | 10 tokens/s | 80 % of the bf16 peak | 70 % | reached |' "$tmp/markdown"
check "missed in the README's table" grep -q '| 3.00 GB | at most 2.00 GB | \*\*missed\*\* |' "$tmp/markdown"
check "not measured is no success" grep -q '| b | f32 | not there yet | not measured | 50 % |  |' "$tmp/markdown"
cat >"$tmp/peers.json" <<'JSON'
{"machine": "m", "threads": 2, "date": "2026-01-01T00:00:00Z", "rounds": 3, "results": [
  {"what": "d", "dtype": "bf16", "rate": 30, "unit": "pairs/s", "ratio": 3, "ratio_to_all": 2, "to_reach": 2.5,
   "peers": [{"name": "usual", "rate": 10}, {"name": "kept", "rate": 15, "beyond": true}]}]}
JSON
"$bin" scripts/bench/markdown.lua "$tmp/some.json" "$tmp/peers.json" >"$tmp/markdown" 2>&1
check "a peer's setting beyond the figure's is shown in brackets" \
  grep -Fq '| d | bf16: 30 pairs/s | usual 10, kept 15 | 3.00 (2.00) | 2.5 | reached |' "$tmp/markdown"
if "$bin" scripts/bench.lua no-such-thing >"$tmp/out" 2>&1; then status=0; else status=$?; fi
check "a word that names nothing is refused" test "$status" -eq 1
PERILUNE_BENCH_VENV=$tmp "$bin" scripts/bench-peers.lua rounds=1 seconds=0.1 sft-tiny-f32 >"$tmp/peers" 2>&1
check "peers that are not there are named" grep -q 'torch is not installed' "$tmp/peers"

touch "$tmp/15m-q8_0.gguf" "$tmp/15m-bf16.gguf"
cat >"$tmp/threads.lua" <<'LUA'
local list, n = require("scripts.bench.peers").of { peer = "gen", shape = "15m", dtype = "bf16", batch = 8 }, {}
for i, peer in ipairs(list) do n[i] = peer.command({ peer = "gen", batch = 8 }, 1):match "OMP_NUM_THREADS=(%d+)" end
print(table.concat(n, " "))
LUA
PERILUNE_BENCH_VENV=$tmp PL_THREADS=6 "$bin" "$tmp/threads.lua" >"$tmp/threads" 2>&1
check "peers get as many threads as we take, shared by their processes" grep -qx '6 6 6 3' "$tmp/threads"

refused() { # WORDS ERROR
  # shellcheck disable=SC2086
  if "$bin" scripts/train-parity.lua $1 >"$tmp/refusal" 2>&1; then return 1; fi
  cat "$tmp/refusal"
  grep -Fq "$2" "$tmp/refusal"
}
check "train-parity: a family that is none is refused" refused '1 1 gtp2' 'unknown family "gtp2" (did you mean "gpt2"?)'
check "train-parity: steps that are no number are refused" refused 'many' 'STEPS is "many", wanted a whole number'
check "train-parity: so are seeds" refused '10 0' 'SEEDS is "0", wanted a whole number'
