--- perilune run RECIPE [key=value ...]: runs the study and prints what came out.
local base = require("perilune.core").base
local find = require "perilune.cli.find"
local result_text = require "perilune.cli.result"

---@param words string[]
---@param flags {json: boolean?}
return function(words, flags)
  local recipe, given = find.call(words)
  local result, run = recipe:run(given)
  if flags.json then
    io.stdout:write(base.json_encode {
      recipe = recipe.name, run = run.id, seconds = run.seconds, result = result,
    }, "\n")
  else
    io.stdout:write(result_text(result), "\n")
  end
  return 0
end
