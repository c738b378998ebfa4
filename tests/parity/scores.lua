-- perilune tests/parity/scores.lua DIR ROWS.json: the model's own log-probabilities. A row is
-- {"text": ..., "tokens": [names of further tokens]}; prints [{"count": tokens in all, "logprobs":
-- [of each token but the first]}, ...].
local base = require("perilune.core").base
local pl = require "perilune"

local model = pl.load(arg[1])
local out = {}
for i, row in ipairs(base.json_read(arg[2])) do
  local ids, scores = model.tokenizer:encode(row.text), {}
  for _, name in ipairs(row.tokens) do ids[#ids + 1] = assert(model.tokenizer:token_to_id(name), name) end
  local lp = pl.no_grad(function() return (model:logprobs { ids }) end)
  for t = 1, #ids - 1 do scores[t] = lp[1][t]:item() end
  out[i] = { count = #ids, logprobs = base.json_array(scores) }
end
print(base.json_encode(base.json_array(out)))
