-- perilune tests/parity/label.lua SPEC N: N pairs labelled by a judge in both orders, through the
-- ledger; then the weight of each call, read back from there. Prints one line of JSON: counts, calls
-- [{messages, weight}] in order (pair by pair: as given, then swapped), what the ledger holds.
local base = require("perilune.core").base
local ledger = require "perilune.ai.ledger"
local pl = require "perilune"
local templates = require "perilune.feedback.templates"

local critic, n = pl.ai(arg[1]), math.tointeger(arg[2])

local WORDS = { "moon", "red", "Sea", "far", "MAP", "mild", "of", "the", "quiet", "M", "m", "stone", "runs", "7",
  "and" }
local function text(i, length)
  local words = {}
  for k = 1, length do words[k] = WORDS[(i * 7 + k * k * 3 + i * k) % #WORDS + 1] end
  return table.concat(words, " ")
end

local candidates, requests = {}, {}
for i = 1, n do
  local prompt, a, b = ("Say %d: %s"):format(i, text(i, 3)), text(i + 1000, 4 + i % 9), text(i + 2000, 4 + i % 7)
  candidates[i] = { prompt = prompt, completions = { a, b } }
  requests[2 * i - 1] = { task = "compare", prompt = prompt, a = a, b = b }
  requests[2 * i] = { task = "compare", prompt = prompt, a = b, b = a }
end
local preferred = pl.feedback.compare(critic, candidates, { order = "both" })
local after = ledger.default():spent()

local weights = critic:compare(requests, {})
local calls = {}
for i, weight in ipairs(weights) do
  calls[i] = { weight = weight,
    messages = base.json_array(templates.get("alpaca_eval_2").messages(requests[i], { secret = ("0"):rep(64) })) }
end
print(base.json_encode { counts = preferred.counts, rows = #preferred, calls = base.json_array(calls), ledger = after,
  ledger_at_the_end = ledger.default():spent() })
