#!/usr/bin/env bash
# The build's own promises: installing, starting fast, the package installer, the test runner.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
bin=${PL_BIN:-$root/perilune}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# check NAME COMMAND...: ok if the command succeeds; its output is shown if not
check() {
  local name=$1
  shift
  if "$@" >"$tmp/out" 2>&1; then
    echo "ok $name"
  else
    sed 's/^/    /' "$tmp/out"
    echo "not ok $name"
  fi
}

installed() {
  mkdir -p "$tmp/dest"
  make -s -C "$root" install DESTDIR="$tmp/dest" PREFIX=/usr || return 1
  # the installed program must not look into the source tree
  cd / && [ "$(env -u LUA_PATH_5_4 "$tmp/dest/usr/bin/perilune" -e \
    'print(package.searchpath("perilune", package.path))')" = \
    "$tmp/dest/usr/bin/../share/perilune/lua/perilune/init.lua" ] &&
    env -u LUA_PATH_5_4 "$tmp/dest/usr/bin/perilune" -e 'require("perilune").zeros(2)'
}
check install_below_destdir installed

fast_start() {
  local best=1000000 i t0 dt
  for i in $(seq 20); do
    t0=${EPOCHREALTIME/./}
    "$bin" -e '' || return 1
    dt=$((${EPOCHREALTIME/./} - t0))
    [ $dt -lt $best ] && best=$dt
  done
  echo "best of 20: $best us"
  [ $best -lt 30000 ]
}
check starts_within_30_ms fast_start

# install-deps among fakes: $have is what dpkg-query knows, apt-get fails $fails times
mkdir "$tmp/fake"
cat >"$tmp/fake/dpkg-query" <<'F'
#!/bin/sh
for p in $have; do echo "installed $p"; done
F
cat >"$tmp/fake/apt-get" <<'F'
#!/bin/sh
echo "apt-get $*" >>"$asked"
[ "$1" = update ] && exit 0
n=$(cat "$count")
echo $((n + 1)) >"$count"
[ "$n" -ge "$fails" ] || { echo "E: no such package"; exit 100; }
F
printf '#!/bin/sh\necho "$fake_id"\n' >"$tmp/fake/id"
printf '#!/bin/sh\necho sudo >>"$asked"\nexec "$@"\n' >"$tmp/fake/sudo"
chmod +x "$tmp"/fake/*
all="gcc make libc6-dev pkg-config liblua5.4-dev libcjson-dev libpcre2-dev libedit-dev"
all="$all libcurl4-openssl-dev libsqlite3-dev libmicrohttpd-dev ca-certificates"

# deps HAVE FAILS ID: runs it; $tmp/said has what it said, $tmp/log what apt-get was asked
deps() {
  : >"$tmp/log"
  echo 0 >"$tmp/count"
  have=$1 fails=$2 fake_id=$3 asked=$tmp/log count=$tmp/count PATH="$tmp/fake:$PATH" \
    "$root/scripts/install-deps" >"$tmp/said" 2>&1
}
deps_quiet() {
  deps "$all" 0 0 && [ ! -s "$tmp/said" ] && [ ! -s "$tmp/log" ]
}
deps_missing() {
  deps "${all/libcjson-dev /}" 0 0 && grep -q "installing libcjson-dev$" "$tmp/said" &&
    [ "$(cat "$tmp/log")" = "apt-get install -y --no-install-recommends libcjson-dev" ]
}
deps_update() {
  deps "make" 1 1000 && grep -q update "$tmp/log" && grep -q sudo "$tmp/log" &&
    [ "$(grep -c ' install ' "$tmp/log")" = 2 ] && grep -q libcjson-dev "$tmp/log"
}
deps_fail() {
  deps "make" 9 0
  [ $? -eq 1 ] && grep -q "no such package" "$tmp/said" && grep -q "could not install" "$tmp/said"
}
check deps_quiet_when_complete deps_quiet
check deps_installs_what_is_missing deps_missing
check deps_updates_stale_lists_and_uses_sudo deps_update
check deps_says_what_failed deps_fail

# the test runner counts crashes, empty suites and failures, and fails when nothing ran
runner() {
  mkdir -p "$tmp/t/tests/cli"
  cp "$root/tests/run" "$tmp/t/tests/run"
  "$tmp/t/tests/run" cli >"$tmp/said" && return 1
  [ "$(tail -n 1 "$tmp/said")" = "0 passed, 0 failed, 0 skipped" ] || return 1
  printf 'echo ok a\necho ok b\necho skip c why\n' >"$tmp/t/tests/cli/good.sh"
  "$tmp/t/tests/run" cli >"$tmp/said" || return 1
  [ "$(tail -n 1 "$tmp/said")" = "2 passed, 0 failed, 1 skipped" ] || return 1
  printf 'echo ok a\nkill -SEGV $$\n' >"$tmp/t/tests/cli/crash.sh"
  printf 'echo ok a\necho "   why"\necho "not ok b"\n' >"$tmp/t/tests/cli/bad.sh"
  printf 'true\n' >"$tmp/t/tests/cli/empty.sh"
  printf 'echo ok a\nsleep 60\n' >"$tmp/t/tests/cli/slow.sh"
  PL_TEST_SECONDS=1 "$tmp/t/tests/run" cli >"$tmp/said" && return 1
  grep -q "why" "$tmp/said" && [ "$(tail -n 1 "$tmp/said")" = "5 passed, 4 failed, 1 skipped" ]
}
check runner_counts runner
