#!/usr/bin/env bash
# kill -9 at any moment of a study, then the same command again: it goes on and ends with the
# numbers of an undisturbed run. Two runs at once do not get in each other's way.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
bin=${PL_BIN:-$root/perilune}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$root" || exit 2

cat >"$tmp/study.lua" <<'LUA'
local pl = require "perilune"
return pl.recipe {
  name = "killed",
  run = function(_, run)
    local text, world = require "perilune.world.text", require "perilune.world"
    local train, held = world.prompts(0, 40, 10)
    local win = {}
    for seed = 1, 3 do
      run:at { arm = "sft", seed = seed }
      local tokenizer = text.tokenizer()
      local base = pl.models.new({
        model_type = "llama", vocab_size = tokenizer:vocab_size(), hidden_size = 16, intermediate_size = 32,
        num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64, tie_word_embeddings = true,
        rms_norm_eps = 1e-5, rope_theta = 10000.0, eos_token_id = tokenizer:token_to_id "</s>",
      }, { tokenizer = tokenizer, seed = seed })
      local demos = pl.feedback.demonstrate("oracle:0.9", train, { seed = seed })
      local sft = pl.train.sft(base, demos, { lr = 3e-3, epochs = 6, batch_size = 4, seed = seed })
      local w = pl.eval.winrate(sft, { against = base, prompts = held, judge = "oracle:0.95", max_tokens = 6, seed = seed })
      win[seed] = { win = w.win, tie = w.tie, loss = w.loss, rate = w.win_rate, loss_end = sft.history[#sft.history].loss, hash = sft:hash() }
    end
    return { win = win }
  end,
}
LUA

result() { grep -o '"result":.*' "$1" | sed 's/,"run":.*//'; }

PL_HOME=$tmp/quiet "$bin" run "$tmp/study.lua" --json >"$tmp/quiet.json" 2>"$tmp/err"
if [ -s "$tmp/quiet.json" ]; then echo "ok undisturbed"; else
  sed 's/^/    /' "$tmp/err"
  echo "not ok undisturbed"
  exit 1
fi

tries=12
[ -n "${PL_TEST_QUICK:-}" ] && tries=4
killed=0
for ((i = 1; i <= tries; i++)); do
  PL_HOME=$tmp/killed "$bin" run "$tmp/study.lua" --json >"$tmp/killed.json" 2>/dev/null &
  pid=$!
  sleep "0.$((RANDOM % 9))$((RANDOM % 10))"
  kill -9 "$pid" 2>/dev/null && killed=$((killed + 1))
  wait "$pid" 2>/dev/null
done
PL_HOME=$tmp/killed "$bin" run "$tmp/study.lua" --json >"$tmp/killed.json" 2>"$tmp/err"
if [ "$(result "$tmp/killed.json")" = "$(result "$tmp/quiet.json")" ] && ! grep -q damaged "$tmp/err"; then
  echo "ok same_numbers_after_kills ($killed killed)"
else
  result "$tmp/quiet.json"
  result "$tmp/killed.json"
  sed 's/^/    /' "$tmp/err"
  echo "not ok same_numbers_after_kills"
fi

PL_HOME=$tmp/both "$bin" run "$tmp/study.lua" --json >"$tmp/one.json" 2>"$tmp/one.err" &
PL_HOME=$tmp/both "$bin" run "$tmp/study.lua" --json >"$tmp/two.json" 2>"$tmp/two.err"
wait
if [ "$(result "$tmp/one.json")" = "$(result "$tmp/quiet.json")" ] && [ "$(result "$tmp/two.json")" = "$(result "$tmp/quiet.json")" ]; then
  echo "ok two_runs_at_once"
else
  sed 's/^/    /' "$tmp/one.err" "$tmp/two.err"
  echo "not ok two_runs_at_once"
fi
if grep -h 'sft, seed 1: sft' "$tmp/one.err" "$tmp/two.err" | grep -c computed | grep -qx 1; then
  echo "ok a_stage_is_computed_by_one_of_them"
else
  grep -h 'seed 1: sft' "$tmp/one.err" "$tmp/two.err" | sed 's/^/    /'
  echo "not ok a_stage_is_computed_by_one_of_them"
fi
