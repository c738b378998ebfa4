#!/usr/bin/env bash
# Bad input at the command line: a clear error that names the file, line or option, status 1
# (2 for a wrong call), nothing on standard output, earlier results intact.
set -u
root=${PL_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
bin=${PL_BIN:-$root/perilune}
shared=${PL_SHARED:-$root/../shared}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
export PL_HOME=$tmp/home
cd "$root" || exit 2

# refuses NAME STATUS TEXT COMMAND...
refuses() {
  local name=$1 wanted=$2 text=$3 status=0
  shift 3
  timeout 60 "$@" >"$tmp/out" 2>"$tmp/err" </dev/null || status=$?
  if [ "$status" -ne "$wanted" ] || ! grep -qF -- "$text" "$tmp/err" || [ -s "$tmp/out" ] || grep -q 'stack traceback' "$tmp/err"; then
    echo "    status $status, wanted $wanted and: $text"
    sed 's/^/    /' "$tmp/err" "$tmp/out" | head -n 12
    echo "not ok $name"
  else
    echo "ok $name"
  fi
}

# recipe BODY: a recipe whose run holds it
recipe() {
  printf 'local pl = require "perilune"\nreturn pl.recipe { name = "bad", params = { n = { 3, min = 1 } }, run = function(p, run)\n%s\nend }\n' \
    "$1" >"$tmp/bad.lua"
}

refuses unknown_command 2 'did you mean "run"' "$bin" runn
refuses unknown_flag 2 '--json' "$bin" run rlaif --jsn
refuses no_recipe 2 'which recipe' "$bin" run
refuses unknown_recipe 2 'did you mean "rlaif"' "$bin" run rlaiff
refuses unknown_parameter 2 'did you mean "dpo.beta"' "$bin" run rlaif dpo.bta=1
refuses wrong_type 2 'seeds must be a number' "$bin" run rlaif seeds=many
refuses out_of_range 2 'at least 1' "$bin" run rlaif seeds=0
refuses no_value 2 'key=value' "$bin" run rlaif seeds
refuses missing_recipe_file 1 '/no/such.lua: no such file' "$bin" run /no/such.lua
refuses unknown_run 1 'no such run' "$bin" runs nothing-here

printf 'return {' >"$tmp/bad.lua"
refuses recipe_with_a_syntax_error 1 'bad.lua:1:' "$bin" run "$tmp/bad.lua"
printf 'return 5' >"$tmp/bad.lua"
refuses file_without_a_recipe 1 'is no recipe' "$bin" run "$tmp/bad.lua"
printf 'local pl = require "perilune"\nreturn pl.recipe { name = "x", run = 1 }\n' >"$tmp/bad.lua"
refuses recipe_without_a_run 1 'bad.lua: pl.recipe: run must be a function' "$bin" run "$tmp/bad.lua"
recipe 'local t = {}
return t.missing.field'
refuses recipe_with_a_lua_error 1 'bad.lua:4:' "$bin" run "$tmp/bad.lua"
recipe 'return pl.feedback.demonstrate("oracle:0.5", { "p" }, { tempreature = 1 })'
refuses unknown_option 1 'did you mean "temperature"' "$bin" run "$tmp/bad.lua"
recipe 'return pl.feedback.demonstrate("oracle:0.5", { "Tell me a story." })'
refuses prompt_of_another_world 1 'is not of the built-in world' "$bin" run "$tmp/bad.lua"
refuses missing_model_directory 1 '/no/such/model' "$bin" run rlaif base=/no/such/model
refuses missing_prompts 1 '/no/such/prompts.jsonl' "$bin" run rlaif prompts=/no/such/prompts.jsonl
refuses bad_provider 1 'unknown provider "openia"' "$bin" run rlaif critic=openia:gpt
refuses bad_strength 1 'from 0 to 1' "$bin" run rlaif teacher.weak=oracle:1.5
printf '{"prompt":"a"}\n{"prompt":"b",}\n' >"$tmp/prompts.jsonl"
refuses broken_jsonl 1 'prompts.jsonl:2' "$bin" run rlaif "prompts=$tmp/prompts.jsonl"
printf '{"prompt":"a","completion":""}\n' >"$tmp/empty.jsonl"
recipe "return #pl.data.load '$tmp/empty.jsonl'"
refuses empty_completion 1 'empty.jsonl:1' "$bin" run "$tmp/bad.lua"

if [ -d "$shared/data/models/stories260K" ]; then
  model() {
    rm -rf "$tmp/model"
    cp -r "$shared/data/models/stories260K" "$tmp/model"
    chmod -R u+w "$tmp/model"
  }
  load="return pl.load('$tmp/model'):num_parameters()"
  model
  head -c 5000 "$shared/data/models/stories260K/model.safetensors" >"$tmp/model/model.safetensors"
  recipe "$load"
  refuses truncated_weights 1 'model.safetensors' "$bin" run "$tmp/bad.lua"
  model
  printf '\377\377\377\377\377\377\377\177{}' >"$tmp/model/model.safetensors"
  refuses hostile_weights 1 'model.safetensors' "$bin" run "$tmp/bad.lua"
  model
  printf '{"model_type": "llama"' >"$tmp/model/config.json"
  refuses truncated_config 1 'config.json' "$bin" run "$tmp/bad.lua"
  model
  printf '{"version":"1.0","model":{"type":"Unheard"}}' >"$tmp/model/tokenizer.json"
  refuses foreign_tokenizer 1 'tokenizer.json' "$bin" run "$tmp/bad.lua"
  model
  recipe "return pl.load('$tmp/model'):generate({ ('word '):rep(2000) }, { max_tokens = 4 })"
  refuses prompt_longer_than_the_context 1 'prompt 1' "$bin" run "$tmp/bad.lua"
  recipe "return pl.train.preference(pl.load('$tmp/model'), { { prompt = 'Once', chosen = ' upon', rejected = ' a' } }, {
  loss = function(q) return (q.chosen - q.rejected):mean() * (0 / 0) end, max_steps = 2 }):num_parameters()"
  refuses nan_loss 1 'step 1' "$bin" run "$tmp/bad.lua"
else
  echo "skip hostile_models no shared data (set PL_SHARED)"
fi

# A file where the home directory should be, and one that cannot be written.
touch "$tmp/file"
refuses home_is_a_file 1 "$tmp/file" env PL_HOME="$tmp/file/runs" "$bin" run rlaif seeds=1
mkdir -p "$tmp/small"
if mount -t tmpfs -o size=64k tmpfs "$tmp/small" 2>/dev/null; then
  recipe 'return run:remember { name = "big", kind = "table", compute = function() return { ("x"):rep(200000) } end }'
  refuses full_disk 1 'No space left' env PL_HOME="$tmp/small" "$bin" run "$tmp/bad.lua"
  umount "$tmp/small"
else
  echo "skip full_disk mounting a small disk is not allowed here"
fi

# What was there before is still there after a failure.
recipe 'local r = run:remember { name = "good", kind = "table", compute = function() return 7 end }
if p.n == 4 then error "stop" end
return { r = r }'
"$bin" run "$tmp/bad.lua" --json >"$tmp/before" 2>/dev/null
"$bin" run "$tmp/bad.lua" n=4 >/dev/null 2>&1
if "$bin" run "$tmp/bad.lua" --json 2>"$tmp/err" | grep -q '"r":7' && grep -q kept "$tmp/err"; then
  echo "ok earlier_results_are_intact"
else
  echo "not ok earlier_results_are_intact"
fi
