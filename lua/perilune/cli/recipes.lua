--- perilune recipes: the recipes that come with perilune.
local find = require "perilune.cli.find"
local render = require("perilune.cli.table").render

return function()
  local rows = {}
  for i, name in ipairs(find.names()) do rows[i] = { name, find.recipe(name).doc } end
  io.stdout:write(render({ "recipe", "" }, rows), "\n")
  return 0
end
