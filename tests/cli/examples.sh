#!/usr/bin/env bash
# Every example runs to its end in its small mode.
set -u
bin=${PL_BIN:-./perilune}
shared=${PL_SHARED:-../shared}
model=$shared/data/models/stories260K

# example NAME ARGS...
example() {
  local name=$1 out
  shift
  if out=$("$bin" "examples/$name.lua" "$@" 2>&1 </dev/null); then
    echo "ok example $name"
  else
    echo "$out" | tail -5
    echo "not ok example $name"
  fi
}

for path in examples/0*.lua; do
  name=$(basename "$path" .lua)
  if [ "$(wc -l <"$path")" -ge 60 ]; then
    echo "not ok example $name: 60 lines or more"
  elif ! grep -q MODEL_DIRECTORY "$path"; then
    example "$name" small
  elif [ -d "$model" ]; then
    example "$name" "$model" small
  else
    echo "skip example $name no shared data (set PL_SHARED)"
  fi
done
