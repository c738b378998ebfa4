--- The public table. Tensor functions and submodules are looked up on first
--- use, so that starting costs nothing. It must not hold features of its own.
local core = require "perilune.core"

local pl = {}

-- Where a public name comes from when it is first read.
local lazy = {
  data = "perilune.data",
  train = "perilune.train",
  optim = "perilune.optim",
  loss = "perilune.loss",
  ai = "perilune.ai",
  feedback = "perilune.feedback",
  eval = "perilune.eval",
  models = "perilune.models",
  study = "perilune.study",
  json = "perilune.json",
  help = "perilune.help",
  options = "perilune.options",
}

local computed = {
  recipe = function() return require("perilune.study").recipe end,
  load = function() return require("perilune.models").load end,
  profile = function() return require("perilune.profile").run end,
  gradcheck = function() return require "perilune.gradcheck" end,
}

---Bytes of tensors and buffers alive now, the highest value so far, and the process's own peak;
---fresh: how many large blocks had to be asked of the system so far (in a steady step none).
---@return { live: integer, peak: integer, fresh: integer, rss_peak: integer }
function pl.memory()
  return core.base.memory()
end

---The number of threads in use; with n, sets it. Results do not depend on it.
---@param n? integer
---@return integer
function pl.threads(n)
  return core.base.threads(n)
end

pl.version = "0.1.0"

setmetatable(pl, {
  __name = "perilune",
  __index = function(t, name)
    local v
    if lazy[name] then
      v = require(lazy[name])
    elseif computed[name] then
      v = computed[name]()
    else
      v = core.tensor and core.tensor[name]
      if v == nil then
        if type(name) ~= "string" then return nil end
        local known = {}
        for _, from in ipairs { lazy, computed, t, core.tensor or {} } do
          for k in pairs(from) do known[#known + 1] = k end
        end
        local options = require "perilune.options"
        error("perilune: " .. options.unknown("name", name, known), 2)
      end
    end
    rawset(t, name, v)
    return v
  end,
  -- for completion and help: every public name, without loading anything
  __names = function(t)
    local seen, list = {}, {}
    for _, from in ipairs { lazy, computed, t, core.tensor or {} } do
      for k in pairs(from) do
        if not seen[k] then list[#list + 1] = k end
        seen[k] = true
      end
    end
    table.sort(list)
    return list
  end,
})

return pl
