-- perilune tests/net/label.lua PORT N [OPTIONS]: a labelling job against the mock services: N
-- demonstrations and their counts as one JSON line. What soak.sh kills again and again.
local pl = require "perilune"
local base = require("perilune.core").base

local port, n, more = arg[1], tonumber(arg[2]), arg[3] or ""
local teacher = pl.ai(("openai:mock@http://127.0.0.1:%s/v1?price_in=1&price_out=2&%s"):format(port, more))
local prompts = {}
for i = 1, n do prompts[i] = ("Write line %d of the story."):format(i) end
local demos = pl.feedback.demonstrate(teacher, prompts, { max_tokens = 64 })
io.stdout:write(base.json_encode(demos.counts), "\n")
