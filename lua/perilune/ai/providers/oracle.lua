--- oracle:STRENGTH?seed=0: teacher and critic of the built-in world, who know the
--- truth and spoil it by a known amount. Strength 1 is never wrong; 0 is a coin as
--- critic and always wrong as teacher.
local ai = require "perilune.ai"
local rand = require "perilune.rand"

local OPTIONS = { seed = { 0, doc = "another seed, other draws" } }

---@class perilune.ai.Oracle : perilune.ai.Provider
local Oracle = {}
Oracle.__index = Oracle

local function world() return require "perilune.world.oracle" end

local function must(value, message)
  if value == nil then error("oracle: " .. tostring(message), 0) end
  return value
end

function Oracle:key() return ("oracle:%.17g seed %d"):format(self.strength, self.seed) end

-- The seed of the stage and the seed of the spec together; either changes the draws.
function Oracle:draws(opts) return (opts.seed or 0) + self.seed * 1000003 end

function Oracle:demonstrate(requests, opts)
  local seed, out = self:draws(opts), {}
  for i, request in ipairs(requests) do
    local text = must(world().answer(request.prompt, self.strength, seed, request.index or 1))
    out[i] = { text = text, finish = "stop" }
  end
  return out
end

function Oracle:compare(requests, opts)
  local seed, out = self:draws(opts), {}
  for i, request in ipairs(requests) do
    out[i] = must(world().prefers(request.prompt, ai.text(request.a), ai.text(request.b), self.strength, seed))
  end
  return out
end

-- The noise that makes a comparison of two ratings right as often as the critic's
-- own comparison: Gumbel noise of scale (1-c)/4c on each side (its difference is logistic).
function Oracle:rate(requests, opts)
  local seed, out = self:draws(opts), {}
  local quality = require("perilune.world").quality
  for i, request in ipairs(requests) do
    local answer = ai.text(request.answer)
    local true_quality = must(quality(request.prompt, answer))
    local u = rand.of(seed, table.concat({ "rating", request.prompt, answer }, "\0"))
    local noise = -math.log(-math.log(math.min(math.max(u, 1e-12), 1 - 1e-12)))
    if self.strength >= 1 then
      out[i] = true_quality
    elseif self.strength <= 0 then
      out[i] = noise
    else
      out[i] = true_quality + noise * (1 - self.strength) / (4 * self.strength)
    end
  end
  return out
end

return function(rest, given)
  local strength = tonumber(rest)
  if not strength or strength < 0 or strength > 1 then
    error(("oracle: the strength must be a number from 0 to 1, as in oracle:0.9; got %q"):format(rest), 0)
  end
  local o = ai.options("oracle", OPTIONS, given)
  return setmetatable({ strength = strength, seed = o.seed }, Oracle)
end
