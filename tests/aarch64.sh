#!/usr/bin/env bash
# The kernels and what they stand on, cross-compiled for AArch64, where the compiler makes NEON of
# the vector types, and tested in an emulator. Skipped where compiler or emulator are missing.
# Tests that read JSON are left out: there is no cJSON for that target.
set -u
cd "$(dirname "$0")/.." || exit 2
cc=aarch64-linux-gnu-gcc
build=build/aarch64
if ! command -v "$cc" >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
  echo "skip aarch64: wants the packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user"
  exit 0
fi

mapfile -t tests < <(grep -lE '"(kernels/.*|each_isa)\.h"' tests/c/test_*.c |
  xargs grep -LE '"(tensor|autograd|text|format|lm|store|net)/|json\.h"' |
  sed "s|tests/c/\(.*\)\.c|$build/tests/\1|")

mkdir -p "$build"
# the linker warns of dlopen in every static program with OpenMP
if ! make --no-print-directory -j"$(nproc)" BUILD=$build CC=$cc DIRS='base kernels' SKIP=src/base/json.c \
  PKG_CFLAGS= PKG_LIBS= LDFLAGS=-static "${tests[@]}" >"$build/make.log" 2>&1; then
  cat "$build/make.log"
  echo "not ok aarch64 builds"
  exit 1
fi

status=0
for t in "${tests[@]}"; do
  qemu-aarch64 "$t" >"$t.log" 2>&1 || status=1
  grep -v 'lacks the instructions' "$t.log" | sed "s|^#|# $(basename "$t"): |"
done
exit $status
