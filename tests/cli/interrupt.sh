#!/usr/bin/env bash
# Ctrl-C (SIGINT) stops a script at once, whatever it does, with status 130.
set -u
bin=${PL_BIN:-./perilune}
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT

# stops NAME CODE: CODE makes the file "on" and then does what must be stopped
stops() {
  local name=$1
  rm -f "$tmp/on"
  "$bin" -e "io.open('$tmp/on', 'w'):close() $2" >"$tmp/out" 2>&1 </dev/null &
  local pid=$! i
  for i in $(seq 200); do
    [ -e "$tmp/on" ] && break
    sleep 0.05
  done
  sleep 0.2
  kill -INT "$pid"
  for i in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.05
  done
  if kill -0 "$pid" 2>/dev/null; then
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    echo "not ok $name: still running after 5 s"
    return
  fi
  wait "$pid"
  local status=$?
  if [ $status -ne 130 ]; then
    echo "not ok $name: status $status: $(head -c 300 "$tmp/out")"
  elif ! grep -q interrupted "$tmp/out"; then
    echo "not ok $name: says $(head -c 300 "$tmp/out")"
  else
    echo "ok $name"
  fi
}

stops "a loop" 'while true do end'
stops "a loop around pcall" 'while true do pcall(function() while true do end end) end'
stops "a loop in a coroutine" 'coroutine.wrap(function() while true do end end)()'
stops "a coroutine that catches" 'while true do coroutine.resume(coroutine.create(function() while true do pcall(error) end end)) end'
stops "tensor operations" 'local x = pl.randn(500, 500) while true do x = x:matmul(x):tanh() end'
stops "a loop that catches tensor errors" 'local x = pl.randn(9) while true do pcall(x.matmul, x) end'
stops "sleeping" 'require("perilune.core").base.sleep(60)'
stops "waiting for a reply" 'require("perilune.core").net.client():poll(60)'
stops "no_grad" 'while true do pl.no_grad(function() while true do end end) end'
stops "reading" 'while true do io.read("a") end'

stops "the end of a block" "local g <close> = require('perilune.core').base.finally(function(_, stopped)
  for i = 1, 10 do io.open('$tmp/left', 'w'):write(tostring(stopped)):close() end end) while true do end"
if [ "$(cat "$tmp/left" 2>/dev/null)" = true ]; then
  echo "ok the end of a block is done after Ctrl-C"
else
  echo "not ok the end of a block is not done after Ctrl-C"
fi

# Ctrl-C while a model is saved over another: the directory holds a whole model, and nothing is left beside it.
save="local m = require 'tests.lua.tiny' (1) m:save('$tmp/saved/m')"
mkdir -p "$tmp/saved"
"$bin" -e "$save" || echo "not ok saving"
for i in 1 2 3; do
  stops "saving over a model, $i" "$save while true do m:save('$tmp/saved/m') end"
  if "$bin" -e "pl.load('$tmp/saved/m')" && [ "$(ls "$tmp/saved")" = m ]; then
    echo "ok the model is whole, $i"
  else
    ls "$tmp/saved"
    echo "not ok the model is whole, $i"
  fi
done

model=${PL_SHARED:-../shared}/data/models/stories260K
if [ -d "$model" ]; then
  stops "generation" "local m = pl.load('$model') while true do m:generate({ 'The dog' }, { n = 8, max_tokens = 200 }) end"
  stops "training" "local m = pl.load('$model') pl.train.sft(m, pl.data.from { { prompt = 'Tim', completion = ' ran.' } },
    { epochs = 1000000, batch_size = 1 })"
else
  echo "skip generation no $model"
  echo "skip training no $model"
fi
