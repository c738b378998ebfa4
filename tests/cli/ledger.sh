#!/usr/bin/env bash
# perilune ledger: the table, --json, export and import; kill -9 in the middle of writing; a full
# disk; files that are no ledger. What was committed must be there afterwards, whatever happened.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
bin=${PL_BIN:-$root/perilune}
tmp=$(mktemp -d) || exit 2
trap 'umount "$tmp/small" 2>/dev/null; rm -rf "$tmp"' EXIT
export PL_LEDGER=$tmp/ledger.db PL_HOME=$tmp/home GOMP_SPINCOUNT=2000

# expect NAME STATUS STDOUT-PATTERN STDERR-PATTERN COMMAND...   (grep -E; "" = must be empty)
expect() {
  local name=$1 status=$2 out=$3 err=$4
  shift 4
  "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
  local got=$?
  if [ "$got" -ne "$status" ]; then
    echo "not ok $name: status $got, wanted $status; $(head -c 300 "$tmp/err")"
  elif ! matches "$out" "$tmp/out"; then
    echo "not ok $name: stdout is $(head -c 600 "$tmp/out")"
  elif ! matches "$err" "$tmp/err"; then
    echo "not ok $name: stderr is $(head -c 300 "$tmp/err")"
  else
    echo "ok $name"
  fi
}
matches() {
  if [ -z "$1" ]; then
    [ ! -s "$2" ]
  else
    tr '\n' ' ' <"$2" | grep -Eq -- "$1"
  fi
}

# check NAME COMMAND...: ok if the command succeeds, its words otherwise
check() {
  local name=$1
  shift
  if "$@" >"$tmp/out" 2>&1 </dev/null; then
    echo "ok $name"
  else
    sed 's/^/    /' "$tmp/out" | head -20
    echo "not ok $name"
  fi
}

# ---- the command ----

expect nothing_yet 0 'no ledger yet.*ledger\.db' '' "$bin" ledger
expect nothing_yet_as_json 0 '"rows":\[\].*"usd":0' '' "$bin" ledger --json
expect looking_makes_no_file 0 '^no$' '' sh -c "test -e '$PL_LEDGER' || printf no"
expect nothing_to_export 1 '' 'there is no ledger yet' "$bin" ledger export "$tmp/none.jsonl"

cat >"$tmp/fill.lua" <<'LUA'
local l = require("perilune.ai.ledger").default()
local function call(key, stage, estimate)
  return { key = key, provider = "openai", model = "m-1", endpoint = "https://service.test", study = "s", stage = stage,
    estimate = estimate }
end
for i = 1, 3 do
  l:record(l:note(call("d" .. i, "demonstrate", 0.01)), { status = 200, reply = "answer " .. i, final = true,
    outcome = "answered", price = 0.0125, prompt_tokens = 100, completion_tokens = 20, seconds = 1.5 })
end
l:record(l:note(call("j1", "judge")), { status = 200, reply = "?", final = true, outcome = "invalid" })
l:lost(l:note(call("j2", "judge", 0.25)), "reset")
l:close()
LUA
"$bin" "$tmp/fill.lua" || echo "not ok fill"
row='demonstrate +3 +3 +0 +300 +60 +0\.0375 +0\.0000 +0 +4\.5'
expect by_stage 0 "stage +calls +attempts +possibly paid +tokens in.*$row +judge +1 +2 +1 .*total +4 +5 +1 +300 +60 +0\.0375 +0\.2500 +1 +4\.5.*price of 1 attempt is unknown" \
  '' "$bin" ledger
expect by_model 0 'openai:m-1 +4 +5' '' "$bin" ledger by=model
expect by_day 0 "day \(UTC\).*$(date -u +%Y)-" '' "$bin" ledger by=day
expect by_study 0 'study .* s +4 +5' '' "$bin" ledger by=study
expect json 0 '^\{"by":"stage","ledger":"[^"]*","rows":\[\{.*"stage":"demonstrate".*\],"total":\{"attempts":5,"calls":4,.*"unknown_price":1,"usd":0.0375[0-9]*,"usd_possibly":0.25\}\} $' \
  '' "$bin" ledger --json
expect wrong_by 2 '' 'unknown choice of by "modle" \(did you mean "model"' "$bin" ledger by=modle
expect half_a_name_is_wrong 2 '' 'unknown choice of by' "$bin" ledger by=age
expect wrong_word 2 '' 'unknown word "exprot" \(did you mean "export"' "$bin" ledger exprot
expect usage_names_it 0 'perilune ledger export' '' "$bin" help
expect mode 0 '^600 $' '' stat -c %a "$PL_LEDGER"

expect export_to_a_file 0 '' 'all\.jsonl: 5 attempts' "$bin" ledger export "$tmp/all.jsonl"
"$bin" ledger export >"$tmp/out.jsonl"
check export_to_standard_output cmp "$tmp/all.jsonl" "$tmp/out.jsonl"
PL_LEDGER=$tmp/two.db expect import 0 '' '5 new attempts.*secret was taken over' "$bin" ledger import "$tmp/all.jsonl"
PL_LEDGER=$tmp/two.db "$bin" -e 'local l = require("perilune.ai.ledger").default()
  local id = l:batch { provider = "openai", endpoint = "e", detail = "d" }
  l:batch_change(id, { remote = "batch_1", state = "running" })'
PL_LEDGER=$tmp/two.db expect give_up_of_another 1 '' 'no batch batch_2 is open' "$bin" ledger give-up batch_2
PL_LEDGER=$tmp/two.db expect give_up 0 '' 'batch_1: 0 calls count as possibly paid' "$bin" ledger give-up batch_1
PL_LEDGER=$tmp/two.db expect given_up_once 1 '' 'no batch batch_1 is open' "$bin" ledger give-up batch_1
PL_LEDGER=$tmp/two.db expect give_up_without_a_name 2 '' 'give-up takes' "$bin" ledger give-up
# The command that an error names, given to a shell, comes to the same ledger.
gives_up() { # NAME PL_LEDGER PL_HOME SET_HOME ENDS
  local name=$1 told
  told=$(cd "$tmp" && PL_LEDGER=$2 PL_HOME=$3 "$bin" -e "
    if '$4' ~= '' then require('perilune.study.store').set_home('$4') end
    local ledger = require('perilune.ai.ledger')
    local l = ledger.default()
    local id = l:batch { provider = 'openai', endpoint = 'e', detail = 'd' }
    l:batch_change(id, { remote = [[it's; false]], state = 'running' })
    print(ledger.command('give-up', [[it's; false]]))")
  (
    unset PL_LEDGER PL_HOME
    perilune() { "$bin" "$@"; }
    cd "$tmp" && eval "$told"
  ) >"$tmp/out" 2>"$tmp/err"
  if [ $? = 0 ] && [[ $told == *"$5" ]] && grep -q "false: 0 calls count" "$tmp/err"; then
    echo "ok $name"
  else
    echo "not ok $name: $told: $(head -c 300 "$tmp/err")"
  fi
}
gives_up command_of_the_usual_ledger '' '' '' "false'"
gives_up command_of_a_home '' "$tmp/a home" '' "home'"
gives_up command_of_a_flag '' "$tmp/a home" runs ' --home=runs'
gives_up command_of_a_ledger "$tmp/a ledger.db" "$tmp/a home" '' "false'"
expect near_give_up 2 '' 'give-up' "$bin" ledger giveup
PL_LEDGER=$tmp/two.db expect import_again 0 '' '0 new attempts, 0 brought up to date, 5 known' "$bin" ledger import "$tmp/all.jsonl"
PL_LEDGER=$tmp/two.db "$bin" ledger >"$tmp/two.txt"
"$bin" ledger >"$tmp/one.txt"
check import_gives_the_same_table cmp "$tmp/one.txt" "$tmp/two.txt"
expect export_over_itself 1 '' 'is the ledger itself' "$bin" ledger export "$PL_LEDGER"
ln -s "$PL_LEDGER" "$tmp/link"
expect export_over_itself_by_a_link 1 '' 'is the ledger itself' "$bin" ledger export "$tmp/link"
expect still_a_ledger 0 'total +4 +5' '' "$bin" ledger
head -c 700 "$tmp/all.jsonl" >"$tmp/cut.jsonl"
PL_LEDGER=$tmp/three.db expect import_of_half_a_file 1 '' 'cut\.jsonl: line [23]: column.*nothing was imported' "$bin" ledger import "$tmp/cut.jsonl"
head -n 3 "$tmp/all.jsonl" >"$tmp/cut.jsonl"
PL_LEDGER=$tmp/three.db expect import_of_some_lines 1 '' 'not whole: 2 attempts of 5' "$bin" ledger import "$tmp/cut.jsonl"
PL_LEDGER=$tmp/three.db expect nothing_of_it_is_there 0 'no calls in' '' "$bin" ledger
expect import_without_a_file 2 '' 'takes one file' "$bin" ledger import
expect import_of_a_missing_file 1 '' 'nowhere\.jsonl: No such file' "$bin" ledger import "$tmp/nowhere.jsonl"
PL_LEDGER=$tmp/all.jsonl expect no_ledger 1 '' 'all\.jsonl: is no SQLite database; it was left as it is' "$bin" ledger
check no_ledger_is_left_alone cmp "$tmp/all.jsonl" "$tmp/out.jsonl"
if [ -c /dev/full ]; then
  expect standard_output_full 1 '' 'cannot be written' sh -c "'$bin' ledger export >/dev/full"
fi

# ---- kill -9 ----

# Says what it has committed, after it has. The killed ones before it left a ledger that it goes on with.
cat >"$tmp/write.lua" <<'LUA'
local l = require("perilune.ai.ledger").open(arg[1])
local said = io.open(arg[2], "a")
said:setvbuf "no"
local pid = require("perilune.core").base.pid()
for i = 1, math.maxinteger do
  local ids = {}
  l:transaction(function()
    for j = 1, 3 do
      ids[j] = l:note { key = ("%d-%d-%d"):format(pid, i, j), provider = "p", model = "m", endpoint = "e", estimate = 0.1 }
    end
  end)
  said:write(("noted %d %d %d\n"):format(table.unpack(ids)))
  l:transaction(function()
    for _, id in ipairs(ids) do
      l:record(id, { status = 200, reply = ("reply %d "):format(id):rep(200), final = true, outcome = "answered", price = 0.1 })
    end
  end)
  said:write(("recorded %d %d %d\n"):format(table.unpack(ids)))
end
LUA
cat >"$tmp/verify.lua" <<'LUA'
local l = require("perilune.ai.ledger").open(arg[1])
local function value(sql, ...) return l.db:prepare(sql):value(...) end
assert(value "SELECT integrity_check FROM pragma_integrity_check" == "ok", "integrity")
local state = l.db:prepare "SELECT state FROM attempts WHERE id = ?"
local text = l.db:prepare "SELECT text FROM replies WHERE attempt = ?"
local said = {}
for line in io.lines(arg[2]) do
  for id in line:gmatch "%d+" do said[tonumber(id)] = line:match "^%a+" end
end
local n = 0
for id, what in pairs(said) do
  n = n + 1
  local is = assert(state:value(id), ("attempt %d was %s and is gone"):format(id, what))
  assert(what == "noted" or is == "answered", ("attempt %d was recorded and is %s"):format(id, is))
  if is == "answered" then
    assert(text:value(id) == ("reply %d "):format(id):rep(200), ("attempt %d: its reply is torn"):format(id))
  end
end
assert(n > 0, "nothing was written at all")
assert(value "SELECT count(*) FROM attempts" % 3 == 0, "half a transaction")
assert(value "SELECT count(*) FROM attempts WHERE (state = 'answered') <> (id IN (SELECT attempt FROM replies))" == 0, "half a record")
local spent = l:spent()
assert(spent.answered + spent.possibly_n == spent.attempts, "sums")
print(("%d attempts said, %d there"):format(n, spent.attempts))
LUA
tries=20
[ -n "${PL_TEST_QUICK:-}" ] && tries=5
killed=0
for ((i = 1; i <= tries; i++)); do
  "$bin" "$tmp/write.lua" "$tmp/killed.db" "$tmp/said" 2>>"$tmp/killed.err" &
  pid=$!
  sleep "0.0$((RANDOM % 9 + 1))$((RANDOM % 10))"
  kill -9 "$pid" 2>/dev/null && killed=$((killed + 1))
  wait "$pid" 2>/dev/null
done
check "killed_${killed}_times_nothing_committed_is_lost" "$bin" "$tmp/verify.lua" "$tmp/killed.db" "$tmp/said"
check the_writer_met_no_error test ! -s "$tmp/killed.err"
if [ "$killed" -eq "$tries" ]; then echo "ok every_writer_was_killed_at_work"; else echo "not ok every_writer_was_killed_at_work: $killed"; fi

# ---- a full disk, a limit on file sizes ----

# full NAME LEDGER COMMAND...: the writer must end with an error that names the file, with what it said in place
full() {
  local name=$1 db=$2
  shift 2
  rm -f "$tmp/said"
  expect "${name}_is_an_error_that_names_the_file" 1 '' "$db: .*(disk is full|writing failed)" "$@"
  check "${name}_loses_nothing" "$bin" "$tmp/verify.lua" "$db" "$tmp/said"
}
full a_limit_on_file_sizes "$tmp/limit.db" bash -c "ulimit -f 300; exec '$bin' '$tmp/write.lua' '$tmp/limit.db' '$tmp/said'"
PL_LEDGER=$tmp/limit.db expect usable_without_the_limit 0 'total' '' sh -c "'$bin' '$tmp/fill.lua' && '$bin' ledger"

mkdir "$tmp/small"
if mount -t tmpfs -o size=1200k tmpfs "$tmp/small" 2>/dev/null; then
  head -c 600000 /dev/zero >"$tmp/small/ballast"
  full a_full_disk "$tmp/small/l.db" "$bin" "$tmp/write.lua" "$tmp/small/l.db" "$tmp/said"
  PL_LEDGER=$tmp/small/l.db expect a_full_disk_is_readable 0 'total' '' "$bin" ledger
  expect export_to_a_full_disk 1 '' 'No space left' env PL_LEDGER="$tmp/killed.db" "$bin" ledger export "$tmp/small/x.jsonl"
  check no_half_export test ! -e "$tmp/small/x.jsonl"
  rm "$tmp/small/ballast"
  PL_LEDGER=$tmp/small/l.db expect usable_when_there_is_room 0 'judge' '' sh -c "'$bin' '$tmp/fill.lua' && '$bin' ledger"
else
  echo "skip a_full_disk needs root to make a small disk"
fi
