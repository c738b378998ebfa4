#!/usr/bin/env bash
# perilune serve from outside: its first line, its token, Ctrl-C, wrong calls. What it answers is
# tested in tests/lua/test_serve.lua.
set -u
bin=${PL_BIN:-./perilune}
load=${PL_TESTS:-build/tests}/load
tmp=$(mktemp -d) || exit 2
pid=""
trap '[ -n "$pid" ] && kill "$pid" 2>/dev/null; rm -rf "$tmp"' EXIT

if [ ! -x "$load" ]; then
  echo "skip serve no $load (make tests)"
  exit 0
fi

"$bin" -e "
  local words = {} for i = 1, 40 do words[i] = ' w' .. i end
  pl.models.new({ model_type = 'llama', architectures = { 'LlamaForCausalLM' }, hidden_size = 16, num_hidden_layers = 1,
    num_attention_heads = 2, num_key_value_heads = 2, intermediate_size = 16, vocab_size = 41, hidden_act = 'silu',
    max_position_embeddings = 4096, rms_norm_eps = 1e-5, rope_theta = 10000.0, tie_word_embeddings = true },
    { seed = 1, tokenizer = require('perilune.text.wordlevel').json(words, { pattern = ' w[0-9]+' }) }):save('$tmp/m1')" ||
  exit 2

verdict() { # NAME STATUS WHAT
  if [ "$2" -eq 0 ]; then echo "ok $1"; else echo "not ok $1: $3"; fi
}

# refused NAME STATUS PATTERN ARGUMENTS...
refused() {
  local name=$1 status=$2 pattern=$3
  shift 3
  timeout 20 "$bin" serve "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
  local got=$?
  [ $got -eq "$status" ] && grep -Eq -- "$pattern" "$tmp/err"
  verdict "$name" $? "status $got: $(head -c 300 "$tmp/err")"
}

unset PERILUNE_TOKEN
refused "no directory" 2 'serve what' port=1
refused "no model there" 1 'holds no config.json' "$tmp"
refused "unknown options suggest" 2 'prot.*did you mean "port"' "$tmp/m1" prot=1
refused "a port is a number" 2 'port must be integer, got "x"' "$tmp/m1" port=x
refused "unknown template" 2 'chatlm.*did you mean "chatml"' "$tmp/m1" template=chatlm
refused "a template whose tokens are missing" 1 'special token <\|im_start\|>' "$tmp/m1" template=chatml
refused "other machines need a token" 1 '0\.0\.0\.0 can be reached.*PERILUNE_TOKEN' "$tmp/m1" address=0.0.0.0 port=0
refused "a named token that is not set" 1 'MY_TOKEN.*is not set' "$tmp/m1" token_env=MY_TOKEN port=0
refused "no such address" 1 '"no.such.host.invalid"' "$tmp/m1" address=no.such.host.invalid port=0
PERILUNE_TOKEN='a b' refused "a token with a blank" 1 'PERILUNE_TOKEN has a blank' "$tmp/m1" port=0

PERILUNE_TOKEN=canary-6b1f "$bin" serve "$tmp/m1/" port=0 name=mine >"$tmp/out" 2>"$tmp/log" </dev/null &
pid=$!
for _ in $(seq 200); do
  port=$(sed -n 's|.*http://127.0.0.1:\([0-9]*\)/v1.*|\1|p' "$tmp/log")
  [ -n "$port" ] && break
  sleep 0.05
done
grep -q '^serve: mine at http://127.0.0.1:[0-9]*/v1  template plain' "$tmp/log"
verdict "first line" $? "$(cat "$tmp/log")"

# status NAME WANTED ARGUMENTS...
status() {
  local name=$1 wanted=$2
  shift 2
  "$load" ask "$port" "$@" >"$tmp/reply" 2>&1
  [ "$(head -n 1 "$tmp/reply")" = "$wanted" ]
  verdict "$name" $? "$(head -c 300 "$tmp/reply")"
}
echo '{"prompt": " w3 w4", "max_tokens": 4, "seed": 1}' >"$tmp/body"
head -c 9000000 /dev/zero | tr '\0' ' ' >"$tmp/big"
head -c 70000000 /dev/zero >"$tmp/huge"
status "health needs no token" 200 /health
status "no token" 401 /v1/models
status "a wrong token" 401 /v1/models -H "Authorization: Bearer canary-6b1e"
status "the beginning of the token" 401 /v1/models -H "Authorization: Bearer canary"
status "a wrong token, a body" 401 /v1/completions -d "$tmp/body"
status "the token" 200 /v1/models -H "authorization: bearer canary-6b1f"
status "an answer" 200 /v1/completions -d "$tmp/body" -H "Authorization: Bearer canary-6b1f"
status "a body that is too large" 413 /v1/completions -d "$tmp/big" -H "Authorization: Bearer canary-6b1f"
"$load" ask "$port" /v1/completions -d "$tmp/huge" --chunked -H "Authorization: Bearer canary-6b1f" >/dev/null 2>&1
status "after an endless body" 200 /v1/models -H "Authorization: Bearer canary-6b1f"
refused "a port that is taken" 1 'cannot listen on 127.0.0.1 port.*in use' "$tmp/m1" port="$port"
! grep -qs canary "$tmp/log" "$tmp/out" "/proc/$pid/environ" "/proc/$pid/cmdline"
verdict "the token is nowhere to be seen" $? "$(grep -c canary "$tmp/log" "$tmp/out")"

echo '{"prompt": " w3", "max_tokens": 4000, "n": 40, "stream": true}' >"$tmp/long"
"$load" ask "$port" /v1/completions -d "$tmp/long" -H "Authorization: Bearer canary-6b1f" >"$tmp/reply" 2>&1 &
client=$!
sleep 0.3
kill -INT "$pid"
for _ in $(seq 100); do
  kill -0 "$pid" 2>/dev/null || break
  sleep 0.05
done
wait "$pid"
code=$?
pid=""
wait "$client"
[ $code -eq 130 ] && [ "$(head -n 1 "$tmp/reply")" = 200 ] && ! grep -q 'DONE' "$tmp/reply"
verdict "Ctrl-C ends it while it streams" $? "status $code: $(tail -n 3 "$tmp/log")"
