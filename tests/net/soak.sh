#!/usr/bin/env bash
# soak.sh CALLS KILLS [LATENCY_MS]: a labelling job with 5 % 429, 2 % 500, 1 % resets, 1 % stalls and 1 % malformed
# JSON; first undisturbed, then killed with kill -9 at random moments and started again. Afterwards the ledger is held
# against the server's own list. `make soak` runs 10,000 calls and 20 kills; `make test` a small one.
set -u
cd "$(dirname "$0")/../.." || exit 2
bin=${PL_BIN:-./perilune}
mock=${PL_TESTS:-build/tests}/mock
calls=${1:-10000} kills=${2:-20} latency=${3:-20}
window=64
faults=429=0.05,500=0.02,reset=0.01,stall=0.01,malformed=0.01
tmp=$(mktemp -d) || exit 2
trap 'kill "$server" 2>/dev/null; rm -rf "$tmp"' EXIT

start_mock() { # SEED
  rm -f "$tmp/port"
  "$mock" --latency-ms "$latency" --faults "$faults" --seed "$1" --port-file "$tmp/port" >/dev/null &
  server=$!
  for _ in $(seq 100); do
    [ -s "$tmp/port" ] && break
    sleep 0.05
  done
  port=$(cat "$tmp/port")
}

# ${go:-}: `go=exec label &` is the program itself, and no shell that a kill would hit in its place
label() { ${go:-} "$bin" tests/net/label.lua "$port" "$calls" "concurrency=$window&timeout=2&tries=12"; }

# undisturbed
start_mock 1
export PL_LEDGER=$tmp/one.db
if out=$(label 2>"$tmp/err"); then echo "ok labelling_ends: $out"; else
  echo "not ok labelling_ends"
  cat "$tmp/err"
fi
"$bin" tests/net/account.lua "$port" "$calls" 0 $window
again=$(label 2>"$tmp/err")
[ "$out" = "$again" ] && echo "ok the_same_again_from_the_ledger" || echo "not ok the_same_again_from_the_ledger: $out / $again"
kill "$server"
wait "$server" 2>/dev/null
# no server, no key: the ledger alone
offline=$(label 2>"$tmp/err")
[ "$out" = "$offline" ] && echo "ok replay_without_a_network" || echo "not ok replay_without_a_network"

# killed
start_mock 2
export PL_LEDGER=$tmp/two.db
done_kills=0
for k in $(seq "$kills"); do
  go=exec label >"$tmp/out" 2>"$tmp/err" &
  job=$!
  sleep "$(awk -v s="$k" -v c="$calls" -v l="$latency" 'BEGIN { srand(s * 7919); print 0.05 + rand() * c * l / 64000 / 8 }')"
  if kill -9 "$job" 2>/dev/null; then done_kills=$((done_kills + 1)); fi
  wait "$job" 2>/dev/null
done
killed=$(label 2>"$tmp/err") || cat "$tmp/err"
echo "$killed after $done_kills kills" >&2
[ -n "$killed" ] && echo "ok labelling_ends_after_kills" || echo "not ok labelling_ends_after_kills"
"$bin" tests/net/account.lua "$port" "$calls" "$done_kills" $window
kill "$server"
wait "$server" 2>/dev/null

# two at once
start_mock 3
export PL_LEDGER=$tmp/three.db
go=exec label >"$tmp/first" 2>"$tmp/err" &
job=$!
second=$(label 2>"$tmp/err2") || cat "$tmp/err2"
wait "$job" || cat "$tmp/err"
[ -n "$second" ] && [ "$second" = "$(cat "$tmp/first")" ] && echo "ok two_at_once_share_the_answers" ||
  echo "not ok two_at_once_share_the_answers"
"$bin" tests/net/account.lua "$port" "$calls" 0 $window
