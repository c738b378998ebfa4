--- Studies: recipes, runs and stages that remember. The parts are in the files
--- beside this one; here is what other modules and users call.
local recipe = require "perilune.study.recipe"
local stage = require "perilune.study.stage"
local store = require "perilune.study.store"

local study = {
  ---pl.recipe: declares a recipe
  recipe = recipe.new,
  is_recipe = recipe.is,
  remember = stage.remember,
  current = stage.current,
  home = store.home,
  set_home = store.set_home,
}

return study
