#!/usr/bin/env bash
# A training run that is killed or stopped again and again ends with the bytes of an undisturbed one.
set -u
bin=${PL_BIN:-./perilune}
tmp=$(mktemp -d) || exit 2
# a child that is stopped before it became the program would run this trap, too
trap '[ "$BASHPID" = $$ ] && rm -rf "$tmp"' EXIT

cat >"$tmp/train.lua" <<'END'
local pl = require "perilune"
local kind, dir = arg[1], arg[2]
local g = assert(pl.json.read "tests/golden/train/losses.json")
local m = pl.load "tests/golden/lm/tied"
local o = { lr = 1e-2, epochs = 40, batch_size = 2, seed = 3 }
if dir then
  o.save_dir, o.save_steps = dir, 4
  o.on_step = function() require("perilune.core").base.sleep(0.003) end -- slow enough to be hit
end
local out
if kind == "sft" then
  out = pl.train.sft(m, g.rows, o)
else
  o.beta = 0.1
  out = pl.train.preference(m, g.pairs, o)
end
print(out:hash())
END

for kind in sft dpo; do
  want=$("$bin" "$tmp/train.lua" $kind 2>/dev/null)
  for signal in KILL INT; do
    dir=$tmp/$kind-$signal
    got="" hits=0
    for try in $(seq 12); do
      "$bin" "$tmp/train.lua" $kind "$dir" >"$tmp/out" 2>"$tmp/err" </dev/null &
      pid=$!
      sleep "0.$((2 + RANDOM % 7))$((RANDOM % 10))"
      kill -$signal $pid 2>/dev/null && hits=$((hits + 1))
      if wait $pid 2>/dev/null; then
        got=$(cat "$tmp/out")
        break
      fi
    done
    if [ -z "$got" ]; then
      got=$("$bin" "$tmp/train.lua" $kind "$dir" 2>"$tmp/err")
    fi
    if [ -n "$want" ] && [ "$got" = "$want" ]; then
      echo "ok $kind: SIG$signal and again ($hits times) gives the same bytes"
    else
      tail -3 "$tmp/err"
      echo "not ok $kind: SIG$signal: got '$got', wanted '$want'"
    fi
  done
done

# Ctrl-C between the regular checkpoints keeps what was done.
dir=$tmp/kept
sed 's/dir, 4$/dir, 100000/; s/sleep(0.003)/sleep(0.02)/' "$tmp/train.lua" >"$tmp/seldom.lua"
"$bin" "$tmp/seldom.lua" sft "$dir" >"$tmp/out" 2>"$tmp/err" </dev/null &
pid=$!
sleep 0.6
kill -INT $pid
wait $pid
status=$?
"$bin" "$tmp/seldom.lua" sft "$dir" >"$tmp/out" 2>"$tmp/again" </dev/null
if [ $status -eq 130 ] && grep -q "the same call goes on from $dir" "$tmp/err" && grep -q "goes on after step" "$tmp/again" &&
  [ "$(cat "$tmp/out")" = "$("$bin" "$tmp/train.lua" sft 2>/dev/null)" ]; then
  echo "ok Ctrl-C between checkpoints keeps the steps done"
else
  echo "not ok Ctrl-C between checkpoints: status $status: $(cat "$tmp/err" "$tmp/again" | tail -3)"
fi
