#!/usr/bin/env bash
# The command line: standard output is the result, standard error the talk; a second run is instant.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
bin=${PL_BIN:-$root/perilune}
shared=${PL_SHARED:-$root/../shared}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export PL_HOME=$tmp/home
cd "$root" || exit 2

check() {
  local name=$1
  shift
  if "$@" >"$tmp/check" 2>&1; then
    echo "ok $name"
  else
    sed 's/^/    /' "$tmp/check"
    echo "not ok $name"
  fi
}

cat >"$tmp/recipe.lua" <<'LUA'
local pl = require "perilune"
return pl.recipe {
  name = "small", doc = "Compares two oracles.",
  params = { strength = { 0.9, min = 0, max = 1, doc = "of the better one" }, n = { 8, min = 2 } },
  run = function(p)
    local prompts = {}
    for i = 1, p.n do prompts[i] = ("Q: length of: %s\nA:"):format(("cat "):rep(i):sub(1, -2)) end
    local good = pl.feedback.demonstrate("oracle:" .. p.strength, prompts)
    local w = pl.eval.winrate(good, { against = pl.feedback.demonstrate("oracle:0.1", prompts), judge = "oracle:1" })
    return { win_rate = w.win_rate, asked = w.asked, arms = { { name = "good", win_rate = w.win_rate, n = w.asked } } }
  end,
}
LUA

one_line() {
  "$bin" run "$tmp/recipe.lua" n=6 --json >"$tmp/out" 2>"$tmp/err" || return 1
  cat "$tmp/out"
  [ "$(wc -l <"$tmp/out")" = 1 ] && grep -q '"recipe":"small"' "$tmp/out" && grep -q '"result":{.*"asked":6' "$tmp/out" &&
    grep -q '"run":"small-' "$tmp/out" && grep -q '"seconds":' "$tmp/out" && grep -q 'computed in' "$tmp/err"
}
check json_is_one_line_on_stdout one_line

kept() {
  "$bin" run "$tmp/recipe.lua" n=6 --json >"$tmp/again" 2>"$tmp/err" || return 1
  cat "$tmp/err"
  ! grep -q 'computed in' "$tmp/err" && grep -q kept "$tmp/err" &&
    [ "$(grep -o '"result":{[^}]*}' "$tmp/out")" = "$(grep -o '"result":{[^}]*}' "$tmp/again")" ]
}
check a_second_run_computes_nothing kept

for_people() {
  "$bin" run "$tmp/recipe.lua" --quiet >"$tmp/table" 2>"$tmp/err" || return 1
  cat "$tmp/table" "$tmp/err"
  grep -q '^name *win rate *n$' "$tmp/table" && grep -q '^asked: 8$' "$tmp/table" && [ ! -s "$tmp/err" ]
}
check a_table_for_people for_people

planned() {
  "$bin" plan "$tmp/recipe.lua" n=5 >"$tmp/plan" || return 1
  cat "$tmp/plan"
  grep -q 'demonstrate' "$tmp/plan" && grep -q '^total' "$tmp/plan" && [ ! -e "$tmp/home/plan" ] &&
    "$bin" plan "$tmp/recipe.lua" n=6 | grep -q 'kept from an earlier run'
}
check plan_lists_stages planned

check help_of_a_recipe sh -c "'$bin' help '$tmp/recipe.lua' | grep -q 'strength.*0.9.*of the better one.*at most 1'"
check help_lists_commands sh -c "'$bin' help | grep -q 'perilune doctor' && '$bin' help | grep -q 'recipes: .*rlaif'"
check recipes_lists_rlaif sh -c "'$bin' recipes | grep -q '^rlaif'"

runs() {
  local id
  "$bin" runs | tee "$tmp/runs"
  id=$(sed -n '$p' "$tmp/runs" | cut -d' ' -f1)
  [ "$(grep -c '^small-' "$tmp/runs")" = 3 ] && "$bin" runs "$id" | grep -q 'report: .*report.html' &&
    "$bin" runs --json | grep -q '"finished":true'
}
check runs_are_listed runs
check home_can_be_named sh -c "'$bin' run '$tmp/recipe.lua' --home='$tmp/other' --quiet >/dev/null && ls '$tmp/other' | grep -q '^small-'"

at_once() {
  echo 'return require("perilune").recipe { name = "once", run = function() return { n = 1 } end }' >"$tmp/once.lua"
  local i
  for i in 1 2 3 4 5 6; do
    "$bin" run "$tmp/once.lua" --home="$tmp/crowd" --quiet --json >"$tmp/once.$i" 2>&1 &
  done
  wait
  cat "$tmp"/once.[1-6]
  [ "$(grep -ho '"run":"[^"]*"' "$tmp"/once.[1-6] | sort -u | wc -l)" = 6 ] && [ "$(ls "$tmp/crowd" | grep -c '^once-')" = 6 ]
}
check runs_started_at_once_do_not_share_a_directory at_once

doctor() {
  "$bin" doctor --json >"$tmp/doctor" || return 1
  cat "$tmp/doctor"
  grep -q '"matmul_gflops":[0-9]' "$tmp/doctor" && grep -q '"kernels":"' "$tmp/doctor" && grep -q '"warnings":\[' "$tmp/doctor"
}
check doctor_measures doctor

cut_by() {
  PL_THREADS=1 PL_MEMORY=3G "$bin" doctor --json | tee "$tmp/doctor"
  grep -q '"cores":[0-9]' "$tmp/doctor" && grep -q '"memory_limit":3221225472,"memory_limit_by":"PL_MEMORY"' "$tmp/doctor" || return 1
  grep -q '"cores":1,' "$tmp/doctor" || grep -q 'PL_THREADS says so' "$tmp/doctor"
}
check doctor_names_what_cuts cut_by

forced() {
  PERILUNE_ISA=baseline "$bin" doctor --json | tee "$tmp/forced"
  grep -q '"isa":"baseline"' "$tmp/forced" || return 1
  PERILUNE_ISA=sse9 "$bin" doctor 2>"$tmp/forced" && return 1
  cat "$tmp/forced"
  grep -q 'PERILUNE_ISA is "sse9", wanted baseline, avx2, avx512 or avx512bf16' "$tmp/forced"
}
check isa_can_be_forced forced

if [ -d "$shared/data/models/stories260K" ]; then
  api() {
    cd "$root" || return 1
    "$bin" run "$shared/api/05_recipe.lua" "base=$shared/data/models/stories260K" beta=0.2 --json >"$tmp/one" || return 1
    local t0=${EPOCHREALTIME/./}
    "$bin" run "$shared/api/05_recipe.lua" "base=$shared/data/models/stories260K" beta=0.2 --json >"$tmp/two" || return 1
    local took=$(((${EPOCHREALTIME/./} - t0) / 1000))
    cat "$tmp/one" "$tmp/two"
    echo "the second took $took ms"
    [ "$took" -lt 2000 ] && [ "$(grep -o '"result":{[^}]*}' "$tmp/one")" = "$(grep -o '"result":{[^}]*}' "$tmp/two")" ]
  }
  check the_recipe_of_the_contract api
else
  echo "skip the_recipe_of_the_contract no shared data (set PL_SHARED)"
fi
