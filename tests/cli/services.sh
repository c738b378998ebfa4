#!/usr/bin/env bash
# The study with teachers and a critic over HTTP (the mock services): it completes, is killed and goes on, replays
# offline from its ledger, keeps to a budget, and lets no key out.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
bin=${PL_BIN:-$root/perilune}
mock=${PL_TESTS:-$root/build/tests}/mock
tmp=$(mktemp -d)
trap 'kill "$server" 2>/dev/null; rm -rf "$tmp"' EXIT
cd "$root" || exit 2
unset OPENAI_API_KEY OPENAI_BASE_URL ANTHROPIC_API_KEY ANTHROPIC_BASE_URL PL_LEDGER PL_PRICES PL_TOKENIZERS

verdict() { # NAME STATUS [FILE...]
  if [ "$2" -eq 0 ]; then echo "ok $1"; else
    shift_name=$1
    shift 2
    for f in "$@"; do sed 's/^/    /' "$f" | head -20; done
    echo "not ok $shift_name"
  fi
}

start_mock() { # OPTIONS...
  rm -f "$tmp/port"
  "$mock" --latency-ms 2 --port-file "$tmp/port" "$@" >/dev/null &
  server=$!
  for _ in $(seq 100); do
    [ -s "$tmp/port" ] && break
    sleep 0.05
  done
  port=$(cat "$tmp/port")
}

stop_mock() {
  kill "$server" 2>/dev/null
  wait "$server" 2>/dev/null
}

ask() { # METHOD PATH [BODY]
  "$bin" -e "
    local net = require('perilune.core').net
    local http <close> = net.client {}
    http:send { id = 1, method = '$1', url = 'http://127.0.0.1:$port$2', body = [==[${3:-}]==], connect_s = 5, total_s = 5, idle_s = 5 }
    local r
    repeat http:poll(1); r = http:next() until r
    io.write(r.body or '')"
}

requests() { ask GET /stats | grep -o '"requests": [0-9]*' | cut -d' ' -f2; }

# a tiny base model and prompts
cat >"$tmp/make.lua" <<'LUA'
local pl = require "perilune"
local core = require "perilune.core"
local list = assert(core.base.json_read "tests/golden/tokenizer_own.json").tokenizers
local tokenizer = assert(core.text.from_json(list[1].json))
pl.models.new({
  model_type = "llama", vocab_size = tokenizer:vocab_size(), hidden_size = 16, intermediate_size = 32,
  num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 256, tie_word_embeddings = true,
  rms_norm_eps = 1e-5, rope_theta = 10000.0, eos_token_id = 0,
}, { tokenizer = tokenizer, seed = 1 }):save(arg[1] .. "/model")
local file <close> = assert(io.open(arg[1] .. "/prompts.jsonl", "w"))
for i = 1, 70 do file:write(('{"prompt": "Tell me about thing %d."}\n'):format(i)) end
LUA
"$bin" "$tmp/make.lua" "$tmp" || exit 1

study() { # HOME MORE...
  local home=$1
  shift
  ${go:-} env PL_HOME="$home" "$bin" run rlaif "base=$tmp/model" "prompts=$tmp/prompts.jsonl" "n_prompts=${prompts:-40}" held_out=12 seeds=1 max_tokens=12 \
    arms=base,sft-weak,sft-weak-10,sft-weak-10+aif,sft-strong sft.epochs=1 sft10.epochs=1 dpo.epochs=1 \
    "teacher.weak=openai:mock@http://127.0.0.1:$port/v1?price_in=1&price_out=2&body.user=weak" \
    "teacher.strong=anthropic:mock@http://127.0.0.1:$port?price_in=3&price_out=6" \
    "critic=openai:mock@http://127.0.0.1:$port/v1?price_in=1&price_out=2&template=alpaca_gpt4" --json "$@"
}

# what a run found; the notes name the service's address
result() { grep -o '"result":.*' "$1" | sed 's/,"run":.*//; s/127.0.0.1:[0-9]*/host/g'; }

start_mock
study "$tmp/quiet" >"$tmp/quiet.json" 2>"$tmp/err"
[ -s "$tmp/quiet.json" ]
verdict completes $? "$tmp/err"
grep -q '^  services: [0-9]* answers' "$tmp/err"
verdict tells_the_bill $? "$tmp/err"
grep -q 'Bill' "$tmp"/quiet/rlaif-*/report.html
verdict the_report_holds_the_bill $?

before=$(requests)
study "$tmp/quiet" >"$tmp/again.json" 2>"$tmp/err"
[ "$(result "$tmp/again.json")" = "$(result "$tmp/quiet.json")" ] && [ "$(requests)" = "$before" ]
verdict a_second_run_sends_nothing $? "$tmp/err"

killed=0
for k in $(seq 8); do
  go=exec study "$tmp/killed" >/dev/null 2>&1 & # exec: the program itself is killed, not a shell around it
  job=$!
  sleep "0.$((RANDOM % 6))$((RANDOM % 10))"
  kill -9 "$job" 2>/dev/null && killed=$((killed + 1))
  wait "$job" 2>/dev/null
done
study "$tmp/killed" >"$tmp/killed.json" 2>"$tmp/err"
[ "$(result "$tmp/killed.json")" = "$(result "$tmp/quiet.json")" ]
verdict "goes_on_after_kills" $? "$tmp/err" "$tmp/quiet.json" "$tmp/killed.json"
stop_mock

# The ledger alone, in a home without stages, with nobody listening and no key.
PL_LEDGER=$tmp/killed/ledger.db study "$tmp/offline" >"$tmp/offline.json" 2>"$tmp/err"
[ "$(result "$tmp/offline.json")" = "$(result "$tmp/quiet.json")" ]
verdict replays_offline $? "$tmp/err"
PL_HOME=$tmp/quiet "$bin" ledger export "$tmp/ledger.jsonl" 2>"$tmp/err"
PL_HOME=$tmp/imported "$bin" ledger import "$tmp/ledger.jsonl" >"$tmp/out" 2>"$tmp/err"
study "$tmp/imported" >"$tmp/imported.json" 2>"$tmp/err"
[ "$(result "$tmp/imported.json")" = "$(result "$tmp/quiet.json")" ]
verdict replays_from_an_exported_ledger $? "$tmp/err" "$tmp/out"
prompts=41 study "$tmp/offline" >"$tmp/out" 2>"$tmp/err"
[ $? -eq 1 ] && grep -q '127.0.0.1' "$tmp/err"
verdict what_the_ledger_lacks_is_named $? "$tmp/err"

# A budget stops the stage and keeps what came; more money goes on to the same numbers.
start_mock
study "$tmp/budget" budget=0.002 >"$tmp/out" 2>"$tmp/err"
[ $? -eq 1 ] && grep -q 'budget=0.002 is reached' "$tmp/err"
verdict stops_at_the_budget $? "$tmp/err"
spent=$(PL_HOME=$tmp/budget "$bin" ledger --json | grep -o '"usd":[0-9.e-]*' | cut -d: -f2 | awk '{ s += $1 } END { print s + 0 }')
awk -v s="$spent" 'BEGIN { exit !(s > 0 && s <= 0.0041) }'
verdict spends_no_more_than_the_budget $?
study "$tmp/budget" budget=10 >"$tmp/budget.json" 2>"$tmp/err"
[ "$(result "$tmp/budget.json")" = "$(result "$tmp/quiet.json")" ]
verdict more_money_goes_on $? "$tmp/err"

# The reference refuses some held-out prompts: the study ends, counts them as invalid and says so.
ask POST /script '{"clear": true, "faults": {"refusal": 0.2}}' >/dev/null
study "$tmp/refused" "reference=openai:mock@http://127.0.0.1:$port/v1?body.user=reference&price_in=1&price_out=2" \
  >"$tmp/refused.json" 2>"$tmp/err"
grep -q 'comparisons have an answer on one side only' "$tmp/err" && grep -q '12 comparisons lack an answer' "$tmp/refused.json"
verdict a_refused_prompt_ends_no_study $? "$tmp/err"
ask POST /script '{"clear": true}' >/dev/null

# Ctrl-C in the session, and the same line again: what was in flight is not paid for twice, what came is not lost.
ask POST /script '{"clear": true, "latency_ms": 150}' >/dev/null
mkfifo "$tmp/in"
PL_HOME=$tmp/session "$bin" -i <"$tmp/in" >"$tmp/out" 2>&1 &
job=$!
exec 3>"$tmp/in"
cat >&3 <<LUA
teacher = pl.ai "openai:mock@http://127.0.0.1:$port?price_in=1&price_out=1&concurrency=8"
prompts = {} for i = 1, 40 do prompts[i] = "Say " .. i end
pl.feedback.demonstrate(teacher, prompts, { max_tokens = 9 })
LUA
for _ in $(seq 100); do
  [ "$(requests)" -ge 10 ] && break
  sleep 0.02
done
kill -INT "$job"
sleep 0.2
cat >&3 <<LUA
print("kept", pl.feedback.demonstrate(teacher, prompts, { max_tokens = 9 }).counts.kept)
print("lost", require("perilune.ai.ledger").default():spent().possibly_n)
LUA
exec 3>&-
wait "$job"
grep -q interrupted "$tmp/out" && grep -q '^kept.*40' "$tmp/out" && grep -q '^lost.*0' "$tmp/out" && [ "$(requests)" = 40 ]
verdict goes_on_after_ctrl_c $? "$tmp/out"

# After Ctrl-C a living session leaves no call under way that other processes would wait for: replies that were in
# flight are kept, or after a second Ctrl-C given up.
for again in '' again; do
  left=$([ "$again" ] && echo 2 || echo 0)
  ask POST /script "{\"clear\": true, \"latency_ms\": ${again:+30}1000}" >/dev/null
  rm -f "$tmp/in"
  mkfifo "$tmp/in"
  PL_HOME=$tmp/both$again "$bin" -i <"$tmp/in" >"$tmp/out" 2>&1 &
  job=$!
  exec 3>"$tmp/in"
  call="pl.feedback.demonstrate('openai:mock@http://127.0.0.1:$port?price_in=1&price_out=1', { 'a', 'b' }, { max_tokens = 9 })"
  echo "$call" >&3
  for _ in $(seq 100); do
    [ "$(requests)" -ge 2 ] && break
    sleep 0.02
  done
  kill -INT "$job"
  if [ "$again" ]; then
    sleep 0.3
    kill -INT "$job"
    sleep 0.3
    ask POST /script '{"latency_ms": 2}' >/dev/null
  fi
  asked=$(requests)
  PL_HOME=$tmp/both$again timeout 5 "$bin" -e "print('kept', $call.counts.kept)
    print('lost', require('perilune.ai.ledger').default():spent().possibly_n)" >"$tmp/other" 2>&1
  grep -q '^kept.*2' "$tmp/other" && grep -q "^lost.*$left" "$tmp/other" && grep -q '2 replies are under way' "$tmp/out" &&
    [ "$(($(requests) - asked))" = "$left" ] && kill -0 "$job"
  verdict "ctrl_c_leaves_nothing_under_way${again:+_again}" $? "$tmp/out" "$tmp/other"
  exec 3>&-
  wait "$job"
done
ask POST /script '{"clear": true, "latency_ms": 2}' >/dev/null

# A plan counts, and sends nothing.
before=$(requests)
PL_HOME=$tmp/planned "$bin" plan rlaif "base=$tmp/model" "prompts=$tmp/prompts.jsonl" n_prompts=40 held_out=12 \
  "teacher.weak=openai:gpt-4o-mini@http://127.0.0.1:$port/v1" "critic=openai:gpt-4o@http://127.0.0.1:$port/v1" >"$tmp/out" 2>"$tmp/err"
[ $? -eq 0 ] && grep -q 'nothing was sent' "$tmp/out" && grep -q '^dollars: [0-9.]* expected' "$tmp/out" &&
  [ "$(requests)" = "$before" ] && [ ! -e "$tmp/planned" ]
verdict a_plan_sends_nothing $? "$tmp/out" "$tmp/err"
PL_HOME=$tmp/quiet "$bin" ledger by=model >"$tmp/out" 2>"$tmp/err"
[ $? -eq 0 ] && grep -q 'anthropic:mock' "$tmp/out" && grep -q total "$tmp/out"
verdict ledger_by_model $? "$tmp/out" "$tmp/err"
stop_mock

# The key: asked for by name when it is missing, refused ones are said, and it is found nowhere.
start_mock --key sk-canary-0123456789abcdef
teach() { # HOME [MARK]
  ${go:-} env PL_HOME="$1" "$bin" -e "print(pl.feedback.demonstrate('openai:mock@http://127.0.0.1:$port/v1?key_env=OPENAI_API_KEY&tries=2', { 'a${2:-}', 'b${2:-}', 'c${2:-}' }).counts.kept)"
}
(cd "$root" && teach "$tmp/key") >"$tmp/out" 2>"$tmp/err"
[ $? -eq 1 ] && grep -q 'OPENAI_API_KEY' "$tmp/err"
verdict a_missing_key_is_named $? "$tmp/err"
OPENAI_API_KEY=sk-wrong-0123456789 teach "$tmp/key" >"$tmp/out" 2>"$tmp/err"
[ $? -eq 1 ] && grep -q 'status 401' "$tmp/err" && ! grep -q 'sk-wrong' "$tmp/err"
verdict a_wrong_key_is_said_and_not_shown $? "$tmp/err"

export OPENAI_API_KEY=sk-canary-0123456789abcdef
mkdir -p "$tmp/canary"
{
  teach "$tmp/canary"
  # a server that answers with the headers it got
  ask POST /script '{"echo_headers": true, "next": ["400", "500", "500", "500"]}' >/dev/null
  teach "$tmp/canary" again
  # and names its requests after the key
  ask POST /script '{"headers": ["x-request-id: sk-canary-0123456789abcdef"], "next": ["400"]}' >/dev/null
  teach "$tmp/canary" id
  teach "$tmp/canary" other
  ask POST /script '{"clear": true}' >/dev/null
  PL_TRACEBACK=full "$bin" -e "pl.ai('openai:mock@http://127.0.0.1:$port/v1?key_env=OPENAI_API_KEY'); require('perilune.core').net.secret('OPENAI_API_KEY'); error(os.getenv('OPENAI_API_KEY') or 'hidden')"
  PL_HOME=$tmp/canary "$bin" doctor "openai:mock@http://127.0.0.1:$port/v1?key_env=OPENAI_API_KEY"
  PL_HOME=$tmp/canary "$bin" doctor "openai:mock@http://127.0.0.1:$port/v1?key_env=OPENAI_API_KEY&stream=true" || echo "doctor failed"
  PL_HOME=$tmp/canary "$bin" ledger
  PL_HOME=$tmp/canary "$bin" ledger export
} >"$tmp/canary/out" 2>"$tmp/canary/err"
grep -q '^3$' "$tmp/canary/out" && grep -q 'hidden' "$tmp/canary/err"
verdict the_key_works_and_leaves_the_environment $? "$tmp/canary/out" "$tmp/canary/err"
encoded=$(printf %s "$OPENAI_API_KEY" | base64)
! grep -rqaE "canary-0123|${encoded:4:16}" "$tmp/canary"
verdict the_key_is_in_no_file_and_no_output $?
! grep -q 'doctor failed' "$tmp/canary/out" && grep -q 'log-probabilities' "$tmp/canary/out" && grep -q '^streaming *yes' "$tmp/canary/out"
verdict doctor_tells_what_an_endpoint_honours $? "$tmp/canary/out" "$tmp/canary/err"
ask POST /script '{"latency_ms": 1500}' >/dev/null
go=exec teach "$tmp/listed" >/dev/null 2>&1 &
job=$!
sleep 0.7
! grep -qa canary "/proc/$job/cmdline" && ! grep -qa canary "/proc/$job/environ"
verdict the_key_is_not_in_the_process_list $?
kill -9 "$job" 2>/dev/null
wait "$job" 2>/dev/null
stop_mock
