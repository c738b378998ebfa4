#!/usr/bin/env bash
# Batches whose process is killed with kill -9: after it was noted and before there is one, after it was created and
# before its name is known, and while it is waited for. Each time the same command ends with all answers, and the
# service has been asked each call once. Two processes that want the same calls hand in one batch.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
bin=${PL_BIN:-$root/perilune}
mock=${PL_TESTS:-$root/build/tests}/mock
tmp=$(mktemp -d)
trap 'kill "$server" 2>/dev/null; rm -rf "$tmp"' EXIT
cd "$root" || exit 2
unset OPENAI_API_KEY OPENAI_BASE_URL ANTHROPIC_API_KEY ANTHROPIC_BASE_URL PL_LEDGER PL_PRICES PL_HOME
export PL_HOME=$tmp/home

"$mock" --latency-ms 2 --port-file "$tmp/port" >/dev/null &
server=$!
for _ in $(seq 100); do
  [ -s "$tmp/port" ] && break
  sleep 0.05
done
port=$(cat "$tmp/port")

ask() { # METHOD PATH [BODY]
  "$bin" -e "
    local http <close> = require('perilune.core').net.client {}
    http:send { id = 1, method = '$1', url = 'http://127.0.0.1:$port$2', body = [==[${3:-}]==], connect_s = 5, total_s = 5, idle_s = 5 }
    local r
    repeat http:poll(1); r = http:next() until r
    io.write(r.body or '')"
}

count() { ask GET /stats | grep -o "\"$1\": [0-9]*" | cut -d' ' -f2; }

teach() { # PROVIDER MARK
  ${go:-} "$bin" -e "
    local prompts = {}
    for i = 1, 20 do prompts[i] = '$2 ' .. i end
    print(pl.feedback.demonstrate('$1:mock@http://127.0.0.1:$port?batch=true&price_in=1&price_out=1', prompts, { max_tokens = 9 }).counts.kept)"
}

# PROVIDER MARK N: starts it, and kills it once the service has seen N requests more
killed_at() {
  local before job
  before=$(count requests)
  go=exec teach "$1" "$2" >/dev/null 2>&1 &
  job=$!
  for _ in $(seq 200); do
    [ "$(($(count requests) - before))" -ge "$3" ] && break
    sleep 0.01
  done
  kill -9 "$job"
  wait "$job" 2>/dev/null
}

# NAME PROVIDER MARK ASKED: the same command again ends with all answers, the service was asked ASKED calls since `asked`
# was counted, and nothing is left that may have been paid for
goes_on() {
  local kept possibly
  kept=$(teach "$2" "$3" 2>"$tmp/err")
  possibly=$("$bin" ledger --json | grep -o '"possibly_paid":[0-9]*' | cut -d: -f2 | sort -n | tail -1)
  if [ "$kept" = 20 ] && [ "$(($(count batch_requests) - asked))" = "$4" ] && [ "$possibly" = 0 ]; then
    echo "ok $1"
  else
    sed 's/^/    /' "$tmp/err"
    echo "not ok $1: $kept kept, $(($(count batch_requests) - asked)) asked, $possibly possibly paid"
  fi
}

slow='{"latency_ms": 400, "batch_polls": 1}' fast='{"latency_ms": 2, "batch_polls": 1}'

ask POST /script "$slow" >/dev/null
asked=$(count batch_requests)
killed_at openai noted 1 # the file is on its way
ask POST /script "$fast" >/dev/null
goes_on killed_before_it_is_created openai noted 20

ask POST /script "$slow" >/dev/null
asked=$(count batch_requests)
killed_at openai created 2
ask POST /script "$fast" >/dev/null
goes_on killed_before_its_name_is_known openai created 20
grep -q 'goes on with batch' "$tmp/err" && echo "ok found_by_its_mark" || echo "not ok found_by_its_mark"

ask POST /script "$slow" >/dev/null
asked=$(count batch_requests)
killed_at anthropic created 1
ask POST /script "$fast" >/dev/null
goes_on killed_before_its_name_is_known_anthropic anthropic created 20

for provider in openai anthropic; do
  ask POST /script '{"latency_ms": 2, "batch_polls": 1000}' >/dev/null
  asked=$(count batch_requests)
  killed_at $provider waiting 4
  ask POST /script "$fast" >/dev/null
  goes_on "killed_while_it_waits_$provider" $provider waiting 20
done

ask POST /script '{"latency_ms": 2, "batch_polls": 3}' >/dev/null
asked=$(count batch_requests)
go=exec teach openai both >"$tmp/first" 2>"$tmp/first.err" &
job=$!
goes_on two_at_once_hand_in_one openai both 20
wait "$job"
[ "$(cat "$tmp/first")" = 20 ] && echo "ok both_have_all_answers" || {
  sed 's/^/    /' "$tmp/first.err"
  echo "not ok both_have_all_answers"
}
