#!/usr/bin/env bash
# The program from outside: arguments, exit status, streams, error texts.
set -u
bin=${PL_BIN:-./perilune}
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT

# expect NAME STATUS STDOUT-PATTERN STDERR-PATTERN COMMAND...   (grep -E; "" = must be empty)
expect() {
  local name=$1 status=$2 out=$3 err=$4
  shift 4
  "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
  local got=$?
  if [ "$got" -ne "$status" ]; then
    echo "not ok $name: status $got, wanted $status; $(head -c 300 "$tmp/err")"
  elif ! matches "$out" "$tmp/out"; then
    echo "not ok $name: stdout is $(head -c 300 "$tmp/out")"
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

cat >"$tmp/args.lua" <<'LUA'
print(arg[0]:match "[^/]+$", #arg, arg[1], ...)
LUA
cat >"$tmp/deep.lua" <<'LUA'
local pl = require "perilune"
local function inner() return pl.zeros(2):matmul(pl.zeros(3)) end
local function outer() local x = inner() return x end
outer()
LUA
echo "local x = = 1" >"$tmp/syntax.lua"
echo 'error(setmetatable({}, { __tostring = function() return "my own error" end }))' >"$tmp/object.lua"
echo 'error({})' >"$tmp/table.lua"

expect "version" 0 '^perilune [0-9.]+ \(Lua 5\.4' '' "$bin" -v
expect "usage" 0 'usage: perilune.*FILE\.lua' '' "$bin" -h
expect "code" 0 '^42 $' '' "$bin" -e 'print(6 * 7)'
expect "code may be joined and repeated" 0 '^1 2 $' '' "$bin" '-ex = 1 print(x)' -e 'print(x + 1)'
expect "pl is there for code" 0 'f32 \[2\]' '' "$bin" -e 'print(pl.zeros(2))'
expect "a profile of code" 0 '^5' '^op .*calls.*exp .*outside.*all ' "$bin" --profile -e 'print(require("perilune").zeros(5):exp():sum():item())'
expect "a profile as JSON" 0 '' '^\{"other":.*"name":"exp"' "$bin" --profile=json -e 'pl.zeros(5):exp()'
expect "a profile after an error" 1 '' 'wrong.*outside' "$bin" --profile -e 'error "wrong"'
expect "a profile of a command" 0 'rlaif' '^op .*all ' "$bin" recipes --profile
expect "script arguments" 0 '^args.lua.2.a.a.b c $' '' "$bin" "$tmp/args.lua" a "b c"
expect "unknown option" 2 '' 'unknown option --verison.*usage' "$bin" --verison
expect "unknown command suggests" 2 '' 'recpies.*recipes' "$bin" recpies
expect "missing script" 1 '' 'nowhere\.lua' "$bin" "$tmp/nowhere.lua"
expect "syntax error names file and line" 1 '' 'syntax\.lua:1:' "$bin" "$tmp/syntax.lua"
expect "error shows the user's frames only" 1 '' \
  'deep\.lua:2: matmul.*deep\.lua:3: in (upvalue|local|function).*deep\.lua:4: in main chunk $' "$bin" "$tmp/deep.lua"
expect "error object with __tostring" 1 '' '^perilune: my own error $' "$bin" "$tmp/object.lua"
expect "error object without" 1 '' 'error object is a table value' "$bin" "$tmp/table.lua"
expect "-e without code" 2 '' '-e needs an argument' "$bin" -e
expect "PL_THREADS" 0 '^3 $' '' env PL_THREADS=3 "$bin" -e 'print(pl.threads())'
for bad in abc 0 -1 2x 257 99999999999999999999; do
  expect "PL_THREADS=$bad is refused" 1 '' "^perilune: PL_THREADS is .$bad., wanted a number of threads from 1 to 256 $" \
    env "PL_THREADS=$bad" "$bin" -e 'print(1)'
done
expect "PL_MEMORY" 1 '' 'out of memory: 4\.0 MiB wanted.* limit of 3\.0 MiB that PL_MEMORY sets; use a smaller batch or raise it' \
  env PL_MEMORY=3M "$bin" -e 'print(pl.zeros(1 << 20))'
expect "PL_MEMORY of no size" 1 '' '^perilune: PL_MEMORY is "lots", wanted bytes, or a number with K, M, G or T such as 8G' \
  env PL_MEMORY=lots "$bin" -e 'print(1)'
expect "os.exit" 7 '' '' "$bin" -e 'os.exit(7)'

if [ "$(echo 'print(1 + 1, ...)' | "$bin")" = "2" ]; then
  echo "ok script on standard input"
else
  echo "not ok script on standard input"
fi
if [ "$(printf '1 + 1\nx = 3\nx\n' | "$bin" -i)" = "$(printf '2\n3')" ]; then
  echo "ok session without a terminal: plain lines, no prompts"
else
  echo "not ok session without a terminal: $(printf '1 + 1\nx = 3\nx\n' | "$bin" -i)"
fi
if [ -e /dev/full ]; then
  "$bin" -e 'print(("x"):rep(100000))' >/dev/full 2>"$tmp/err"
  if [ $? -eq 1 ] && grep -q 'standard output' "$tmp/err"; then
    echo "ok a full disk under standard output is an error"
  else
    echo "not ok a full disk under standard output is an error"
  fi
fi
mkdir "$tmp/away"
if (cd "$tmp/away" && [ "$("$(realpath "$OLDPWD/$bin" 2>/dev/null || realpath "$bin")" -e 'print(require("perilune.options") ~= nil)')" = true ]); then
  echo "ok runs from any directory"
else
  echo "not ok runs from any directory"
fi
