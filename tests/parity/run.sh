#!/usr/bin/env bash
# Other people's programs as peers on loopback: the official openai and anthropic clients against
# `perilune serve` and against the mock of the services, and our client against llama-cpp-python's
# server. `make parity` installs what is needed and calls this. Usage: run.sh [NAME]: only test
# files whose name contains it.
#
# PERILUNE_VENV: the virtual environment. PL_BIN: the binary. PL_MOCK: the mock. The last line is
# "N passed, N failed, N skipped"; status 1 if any failed or nothing ran.
set -u
cd "$(dirname "$0")/../.." || exit 2
python=${PERILUNE_VENV:?"the folder of a virtual environment; make parity makes one"}/bin/python
PL_BIN=${PL_BIN:-$PWD/perilune}
PL_MOCK=${PL_MOCK:-$PWD/build/tests/mock}
PL_PARITY_TMP=$(mktemp -d) || exit 2
PL_HOME=$PL_PARITY_TMP/home
PL_LEDGER=$PL_PARITY_TMP/ledger.db
export PL_BIN PL_MOCK PL_PARITY_TMP PL_HOME PL_LEDGER PYTHONDONTWRITEBYTECODE=1
trap 'rm -rf "$PL_PARITY_TMP"' EXIT
# No real key and no proxy takes part.
for name in ${!OPENAI_*} ${!ANTHROPIC_*} http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY; do
  unset "$name"
done

"$python" - <<'PY'
from importlib.metadata import PackageNotFoundError, version
for name in ("openai", "anthropic", "llama-cpp-python", "gguf", "numpy"):
    try:
        print(f"{name} {version(name)}")
    except PackageNotFoundError:
        print(f"{name} is not installed")
PY

passed=0 failed=0 skipped=0 started=$SECONDS
for file in tests/parity/test_*.py; do
  [[ $file == *"${1-}"* ]] || continue
  name=$(basename "$file" .py)
  status=0 t0=$SECONDS
  timeout -k 10 170 "$python" "$file" >"$PL_PARITY_TMP/out" 2>&1 </dev/null || status=$?
  p=$(grep -c '^ok ' "$PL_PARITY_TMP/out")
  f=$(grep -c '^not ok ' "$PL_PARITY_TMP/out")
  s=$(grep -c '^skip ' "$PL_PARITY_TMP/out")
  if [ "$status" -ne 0 ] && [ "$f" -eq 0 ] || [ $((p + f + s)) -eq 0 ]; then
    f=$((f + 1))
    echo "not ok $name: ended with status $status" >>"$PL_PARITY_TMP/out"
  fi
  sed "s/^/$name: /" "$PL_PARITY_TMP/out"
  echo "$name: $p passed, $f failed, $s skipped, $((SECONDS - t0)) s"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
echo "$((SECONDS - started)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ $((passed + skipped)) -gt 0 ]
