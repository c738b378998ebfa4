-- perilune tests/parity/send.lua SPEC demonstrate|compare N: N calls of one service, as a study makes
-- them. The texts are those of test_sent.py.
local pl = require "perilune"

local client, task, n = pl.ai(arg[1]), arg[2], math.tointeger(arg[3])
local requests = {}
for i = 1, n do
  local prompt = ("Tell of moon %d: \u{E9}, \u{1F980}, \"quotes\" and\ntwo lines."):format(i)
  requests[i] = task == "demonstrate" and { task = task, prompt = prompt }
    or { task = task, prompt = prompt, a = "It is round.", b = "It is cheese, and far." }
end
local replies = client[task](client, requests, task == "demonstrate" and { max_tokens = 32 } or {})
assert(#replies == n)
for _, reply in ipairs(replies) do
  assert(task == "compare" and reply ~= "invalid" or type(reply) == "table" and reply.text, "no answer")
end
