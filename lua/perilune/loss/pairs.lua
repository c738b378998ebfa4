--- What a preference loss sees: small tensors, one number a pair. A field may be
--- given as a function and is then computed when it is first read, so that nothing
--- of the reference is computed for a loss that does not read it.
local Pairs = {}

local GIVEN = {
  "chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps", "chosen_tokens",
  "rejected_tokens",
}

-- Fields made of others.
local DERIVED = {
  chosen = function(p)
    return p.reference_free and p.chosen_logps or p.chosen_logps - p.ref_chosen_logps
  end,
  rejected = function(p)
    return p.reference_free and p.rejected_logps or p.rejected_logps - p.ref_rejected_logps
  end,
  chosen_nll = function(p)
    return -p.chosen_logps / p.chosen_tokens
  end,
}

local NAMES = table.move(GIVEN, 1, #GIVEN, 1, {})
for name in pairs(DERIVED) do
  NAMES[#NAMES + 1] = name
end

local meta = { __name = "perilune.Pairs" }

function meta.__index(p, name)
  local given = rawget(p, "_given")[name]
  local value
  if type(given) == "function" then
    value = given()
  elseif given ~= nil then
    value = given
  elseif DERIVED[name] then
    value = DERIVED[name](p)
  elseif name == "reference_free" then
    return false
  else
    error(("a loss reads p.%s: %s"):format(tostring(name),
      require("perilune.options").unknown("field", tostring(name), NAMES)), 2)
  end
  rawset(p, name, value)
  return value
end

---@class perilune.Pairs
---@field chosen_logps perilune.Tensor [pairs] summed log-probability of the chosen answer
---@field rejected_logps perilune.Tensor [pairs]
---@field ref_chosen_logps perilune.Tensor [pairs] the reference's
---@field ref_rejected_logps perilune.Tensor [pairs]
---@field chosen_tokens perilune.Tensor [pairs] number of answer tokens
---@field rejected_tokens perilune.Tensor [pairs]
---@field chosen perilune.Tensor [pairs] chosen_logps - ref_chosen_logps
---@field rejected perilune.Tensor [pairs]
---@field chosen_nll perilune.Tensor [pairs] minus the mean token log-probability of the chosen answer

local M = {}

---@param given table<string, any> tensors, or functions that make them; reference_free = true: p.chosen = p.chosen_logps
---@return perilune.Pairs
function M.new(given)
  return setmetatable({ _given = given }, meta)
end

return M
