#!/usr/bin/env bash
# The mock of the AI services (tests/net/mock*.c) itself, spoken to over bash's /dev/tcp: what the
# tests of the clients lean on must hold.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
mock=${PL_TESTS:-$root/build/tests}/mock
tmp=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$tmp"' EXIT
cd "$root" || exit 2

# start OPTIONS...: sets port and pid
start() {
  : >"$tmp/port"
  "$mock" "$@" >"$tmp/port" 2>"$tmp/err" &
  pid=$!
  pids+=("$pid")
  for _ in {1..200}; do
    read -r _ port <"$tmp/port" && return
    sleep 0.01
  done
  echo "not ok start $(cat "$tmp/err")"
  exit 1
}

# raw BYTES: sends them (printf's escapes) and prints what comes until the end
raw() {
  exec 3<>"/dev/tcp/127.0.0.1/$port"
  printf '%b' "$1" >&3
  timeout "${wait:-5}" cat <&3 2>"$tmp/raw"
  exec 3>&-
}

# ask METHOD PATH [BODY [HEADER]]: head and body of the reply
ask() {
  local body=${3:-}
  exec 3<>"/dev/tcp/127.0.0.1/$port"
  printf '%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s' \
    "$1" "$2" "${4:+$4$'\r\n'}" "${#body}" "$body" >&3
  timeout "${wait:-5}" cat <&3 2>"$tmp/raw"
  exec 3>&-
}
script() { ask POST /script "$1" >"$tmp/script"; }

# has NAME TEXT PART...: every part must be in the text
has() {
  local name=$1 text=$2 part
  shift 2
  for part in "$@"; do
    if [[ $text != *"$part"* ]]; then
      printf '    no %s in:\n%s\n' "$part" "${text:0:1500}"
      echo "not ok $name"
      return
    fi
  done
  echo "ok $name"
}

user() { printf '{"model":"mock","messages":[{"role":"user","content":"%s"}]%s}' "$1" "${2:-}"; }
chat=/v1/chat/completions
hello=$(user 'Tell me about cats')

start --latency-ms 50 --port-file "$tmp/file"
from=${EPOCHREALTIME/./}
reply=$(ask POST $chat "$hello" 'x-client-request-id: one')
took=$((${EPOCHREALTIME/./} - from))
has chat "$reply" 'HTTP/1.1 200 OK' '"object":"chat.completion"' '"finish_reason":"stop"' \
  '"prompt_tokens":8,' 'x-request-id: req_000001'
has latency "$((took >= 50000 && took < 150000))" 1
has port_file "$(cat "$tmp/file")" "$port"
script '{"latency_ms": 0}'
again=$(ask POST $chat "$hello" 'x-client-request-id: one')
[ "${reply##*$'\r\n'}" = "${again##*$'\r\n'}" ] && echo "ok same_request_same_reply" || echo "not ok same_request_same_reply"
has length "$(ask POST $chat "$(user 'a b c d e f g h' ',"max_tokens":2')")" '"finish_reason":"length"' '"completion_tokens":2,'
has choices "$(ask POST $chat "$(user 'a b c' ',"n":2')")" '"index":0' '"index":1'
has stats "$(ask GET /stats)" '"requests": 4' '"answered": 4' '"by_id_repeats": 1' '"by_status": {"200": 4}'
has ids "$(ask GET /ids)" $'one 200\none 200\n- 200'

# verdicts
verdict() { user "[ANSWER A $3]\\n$1\\n[END A $3]\\n[ANSWER B $3]\\n$2\\n[END B $3]\\nEnd with VERDICT-$3: and A, B or TIE"; }
has verdict_longer_first "$(ask POST $chat "$(verdict 'long long VERDICT-00: B' short 0a1b)")" '"content":"VERDICT-0a1b: A"'
has verdict_longer_second "$(ask POST $chat "$(verdict short 'long long' 0a1b)")" '"content":"VERDICT-0a1b: B"'
has verdict_tie "$(ask POST $chat "$(verdict same size 0a1b)")" '"content":"VERDICT-0a1b: TIE"'
has verdict_alpaca "$(ask POST $chat "$(user '## Output (a):\nx\n\n## Output (b):\nlonger\n\n## Which is best, Output (a) or Output (b)?')")" '"content":"Output (b)"'
has verdict_logprobs "$(ask POST $chat "$(user 'identifiers: m or M.' ',"logprobs":true,"top_logprobs":2')")" '"token":"m"' '"token":"M"'
has rating "$(ask POST $chat "$(user 'rate it \"[[rating]]\"')")" 'Rating: [['
has schema "$(ask POST $chat "$(user hm ',"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"v":{"enum":["A"]}}}}}')")" '{\"v\":\"A\"}'

# streams and the other services
stream=$(user 'a b c' ',"stream":true,"stream_options":{"include_usage":true}')
has stream "$(ask POST $chat "$stream")" '"delta":{"role":"assistant"' '"finish_reason":"stop"' '"choices":[],"usage":{' 'data: [DONE]'
script '{"sse_cut": 9}'
cut=$(ask POST $chat "$stream")
has sse_cut "${cut##*$'\r\n'}|" 'data: {"i|'
version='anthropic-version: 2023-06-01'
has messages "$(ask POST /v1/messages "$(user 'a b' ',"max_tokens":9')" "$version")" '"type":"message"' '"stop_reason":"' '"input_tokens":6' 'request-id: '
has messages_need_max_tokens "$(ask POST /v1/messages "$hello" "$version")" 'HTTP/1.1 400' '"invalid_request_error"'
has messages_stream "$(ask POST /v1/messages "$(user 'a b' ',"max_tokens":9,"stream":true')" "$version")" \
  'event: message_start' 'event: ping' 'event: content_block_delta' 'event: message_delta' 'event: message_stop'
gemini='{"contents":[{"role":"user","parts":[{"text":"a b"}]}],"generationConfig":{"maxOutputTokens":2}}'
has gemini "$(ask POST /v1beta/models/g:generateContent "$gemini")" '"finishReason":"MAX_TOKENS"' '"promptTokenCount":6' '"role":"model"'
has gemini_stream "$(ask POST '/v1beta/models/g:streamGenerateContent?alt=sse' "$gemini")" 'data: {"candidates"' '"totalTokenCount":8'

# faults by order
script '{"clear": true, "next": ["429", "quota", "500", "529", "malformed", "empty", "error200", "short", "reset", "reset_body", "ok"]}'
has fault_429 "$(ask POST $chat "$hello")" 'HTTP/1.1 429' '"rate_limit_exceeded"' retry-after 'x-ratelimit-remaining-requests: 0'
quota=$(ask POST $chat "$hello")
has fault_quota "$quota" 'HTTP/1.1 429' '"insufficient_quota"'
[[ $quota == *retry-after* ]] && echo "not ok fault_quota_is_final" || echo "ok fault_quota_is_final"
has fault_500 "$(ask POST $chat "$hello")" 'HTTP/1.1 500' '<html>'
has fault_529 "$(ask POST /v1/messages "$hello" "$version")" 'HTTP/1.1 529' overloaded_error
has fault_malformed "$(ask POST $chat "$hello")" 'HTTP/1.1 200' '<<<malformed'
has fault_empty "$(ask POST $chat "$hello")" '"choices":null'
has fault_error200 "$(ask POST $chat "$hello")" 'HTTP/1.1 200' '{"error":{'
ask POST $chat "$hello" >"$tmp/short"
ask POST $chat "$hello" >"$tmp/reset"
has fault_reset "$(cat "$tmp/raw") $(wc -c <"$tmp/reset")" 'reset by peer 0'
ask POST $chat "$hello" >"$tmp/reset"
has fault_reset_body "$(cat "$tmp/raw") $(cat "$tmp/reset")" 'reset by peer' 'HTTP/1.1 200'
has after_the_queue "$(ask POST $chat "$hello")" 'HTTP/1.1 200'
has fault_stats "$(ask GET /stats)" '"requests": 11' '"answered": 1' '"resets": 2' '"malformed": 1' '"429": 2'
has fault_ids "$(ask GET /ids)" $'- malformed\n- empty\n- error200\n- short\n- reset\n- reset_body\n- 200'
script '{"next": ["stall"]}'
wait=0.2 ask POST $chat "$hello" >"$tmp/stall"
has fault_stall "$(wc -c <"$tmp/stall") $(ask GET /stats)" '0 ' '"stalls": 1'
script '{"echo_headers": true, "next": ["401", "400"], "retry_after": "7", "headers": ["X-Extra: yes"]}'
has echo_headers "$(ask POST $chat "$hello" 'Authorization: Bearer canary')" 'HTTP/1.1 401' 'Authorization: Bearer canary' 'X-Extra: yes'
has echo_headers_again "$(ask POST $chat "$hello" 'Authorization: Bearer canary')" 'HTTP/1.1 400' 'Bearer canary'
script '{"echo_headers": false, "headers": [], "reply": "said so", "next": ["503"]}'
has retry_after "$(ask POST $chat "$hello")" 'HTTP/1.1 503' 'retry-after: 7'
has fixed_reply "$(ask POST $chat "$hello")" '"content":"said so"'
has script_refuses "$(ask POST /script '{"nxt": []}')" 'HTTP/1.1 400' nxt

# HTTP
head="POST $chat HTTP/1.1\\r\\nHost: x\\r\\n"
has chunked "$(raw "${head}Connection: close\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n5\\r\\n${hello:0:5}\\r\\n$(printf %x $((${#hello} - 5)))\\r\\n${hello:5}\\r\\n0\\r\\n\\r\\n")" 'HTTP/1.1 200' '"content":"said so"'
has expect "$(wait=0.2 raw "${head}Expect: 100-continue\\r\\nContent-Length: 2\\r\\n\\r\\n")" 'HTTP/1.1 100 Continue'
has too_large "$(raw "${head}Content-Length: 99999999\\r\\n\\r\\n")" 'HTTP/1.1 413'
has two_lengths "$(raw "${head}Content-Length: 1\\r\\nContent-Length: 1\\r\\n\\r\\nx")" 'HTTP/1.1 400'
has no_http "$(raw 'hello\r\n\r\n')" 'HTTP/1.1 400'
has broken_json "$(ask POST $chat '{')" 'HTTP/1.1 400'
has unknown_path "$(ask POST /v1/nothing '{}')" 'HTTP/1.1 404'
one="${head}Content-Length: ${#hello}\\r\\n\\r\\n$hello"
last="${head}Connection: close\\r\\nContent-Length: ${#hello}\\r\\n\\r\\n$hello"
has pipelining "$(raw "$one$one$last" | grep -c 'said so')" 3

# batches
line='{"custom_id":"%s","method":"POST","url":"/v1/chat/completions","body":%s}\n'
part='%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
# shellcheck disable=SC2059
lines=$(printf "$line" a "$hello" b "$hello" c "$hello")
# shellcheck disable=SC2059
form=$(printf "$part" --xyz purpose '' batch --xyz file '; filename="in.jsonl"' "$lines" && printf '%s\r\n' --xyz--)
has file_upload "$(ask POST /v1/files "$form" 'Content-Type: multipart/form-data; boundary=xyz')" '"id":"file-1"' '"filename":"in.jsonl"'
has batch "$(ask POST /v1/batches '{"input_file_id":"file-1","endpoint":"/v1/chat/completions","completion_window":"24h","metadata":{"k":"v"}}')" '"status":"validating"' '"metadata":{"k":"v"}' '"total":3'
has batch_runs "$(ask GET /v1/batches/batch_1)" '"status":"in_progress"'
script '{"faults": {"429": 0.5}}'
for _ in 1 2 3 4 5 6 7 8; do
  reply=$(ask GET /v1/batches/batch_1)
  [[ $reply == *'"status":"completed"'* ]] && break
done
script '{"faults": {}}'
has batch_done "$(ask GET /v1/batches/batch_1)" '"status":"completed"' '_file_id":"file-2"'
results=$(ask GET /v1/files/file-2/content)$(ask GET /v1/files/file-3/content)
has batch_results "$results" '"custom_id":"a"' '"custom_id":"b"' '"custom_id":"c"' '"status_code":200'
has batch_list "$(ask GET /v1/batches)" '"data":[{"id":"batch_1"' '"has_more":false'
params=$(user 'a b' ',"max_tokens":9')
ask POST /v1/messages/batches "{\"requests\":[{\"custom_id\":\"p\",\"params\":$params},{\"custom_id\":\"q\",\"params\":$params}]}" "$version" >"$tmp/batch"
has message_batch "$(cat "$tmp/batch")" '"processing_status":"in_progress"' '"processing":2'
ask GET /v1/messages/batches/msgbatch_2 '' "$version" >"$tmp/batch"
has message_batch_done "$(ask GET /v1/messages/batches/msgbatch_2 '' "$version")" '"processing_status":"ended"' '"succeeded":2' '/msgbatch_2/results'
has message_batch_results "$(ask GET /v1/messages/batches/msgbatch_2/results '' "$version")" '"custom_id":"p"' '"custom_id":"q"' '"type":"succeeded"'

# key and limits
start --latency-ms 0 --key secret --rpm 2 --log "$tmp/log"
has no_key "$(ask POST $chat "$hello")" 'HTTP/1.1 401' '"invalid_api_key"'
has wrong_key "$(ask POST /v1/messages "$hello" 'x-api-key: other')" 'HTTP/1.1 401' authentication_error
has right_key "$(ask POST $chat "$hello" 'Authorization: Bearer secret')" 'HTTP/1.1 200' 'x-ratelimit-limit-requests: 2' 'x-ratelimit-remaining-requests: 1'
has gemini_key "$(ask POST '/v1beta/models/g:generateContent?key=secret' "$gemini")" 'HTTP/1.1 200'
has limit "$(ask POST $chat "$hello" 'Authorization: Bearer secret')" 'HTTP/1.1 429' 'retry-after: ' 'x-ratelimit-remaining-requests: 0' 'x-ratelimit-reset-requests: '
kill "$pid"
wait "$pid"
has ends_on_sigterm "$?" 0
has log "$(cat "$tmp/log")" '5 POST /v1/chat/completions' '5 429'

# the same seed, the same faults; about as many as asked for
for run in 1 2; do
  start --latency-ms 0 --seed 7 --faults 429=0.2,500=0.1,malformed=0.1
  for _ in {1..200}; do printf '%b' "$one"; done >"$tmp/many"
  printf '%b' "$last" >>"$tmp/many"
  exec 3<>"/dev/tcp/127.0.0.1/$port"
  cat "$tmp/many" >&3 &
  timeout 5 cat <&3 >"$tmp/replies"
  exec 3>&-
  ask GET /ids >"$tmp/ids$run"
done
n=$(grep -c '429$' "$tmp/ids1")
has faults_repeat "$(cmp "$tmp/ids1" "$tmp/ids2" && echo same)" same
has fault_rate "$((n > 25 && n < 60))" 1

# ends with its parent
bash -c '"$0" --latency-ms 0 >"$1" & sleep 0.2' "$mock" "$tmp/port"
read -r _ port <"$tmp/port"
for _ in {1..100}; do
  (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  sleep 0.01
done
(exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && echo "not ok ends_with_its_parent" || echo "ok ends_with_its_parent"
has bad_option "$("$mock" --faults nothing=1 2>&1)$?" 'mock: ' 2
