--- perilune plan RECIPE [key=value ...]: what a run would do, without doing it.
local base = require("perilune.core").base
local find = require "perilune.cli.find"
local render = require("perilune.cli.table").render

local function thousands(n)
  local text, k = ("%d"):format(math.floor(n + 0.5)), nil
  repeat
    text, k = text:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until k == 0
  return text
end

---@param words string[]
---@param flags {json: boolean?}
return function(words, flags)
  local recipe, given = find.call(words)
  local run, ended = recipe:plan(given)
  if flags.json then
    io.stdout:write(base.json_encode {
      recipe = recipe.name, stages = base.json_array(run.plan), ended = ended,
    }, "\n")
    return 0
  end
  local rows, calls, tokens, cached = {}, 0, 0, 0
  for i, stage in ipairs(run.plan) do
    calls, tokens = calls + stage.calls, tokens + stage.tokens
    if stage.cached then cached = cached + 1 end
    rows[i] = {
      stage.arm or "", stage.seed ~= nil and tostring(stage.seed) or "", stage.name,
      stage.calls > 0 and thousands(stage.calls) or "-", stage.tokens > 0 and thousands(stage.tokens) or "-",
      stage.cached and "kept from an earlier run" or stage.note or "",
    }
  end
  rows[#rows + 1] = { "total", "", ("%d stages"):format(#run.plan), thousands(calls), thousands(tokens),
    ("%d kept"):format(cached) }
  io.stdout:write(render({ "arm", "seed", "stage", "calls", "tokens at most", "" }, rows), "\n")
  if ended then io.stdout:write(ended, "\n") end
  return 0
end
