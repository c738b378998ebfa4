--- A Lua function as teacher or critic: f(request) with request.task "compare"
--- {prompt, a, b} -> "a", "b", "tie" or the probability that a is better;
--- "demonstrate" {prompt, index} -> text; "rate" {prompt, answer} -> number. Anything else is invalid; an error in the
--- function is the user's and goes up with its place.
local ai = require "perilune.ai"
local hash = require "perilune.study.hash"

---@class perilune.ai.Func : perilune.ai.Provider
local Func = {}
Func.__index = Func

function Func:key()
  local hex, reason = hash.of(self.f)
  if not hex then return nil, "a Lua function that holds " .. reason end
  return "function:" .. hex
end

function Func:demonstrate(requests)
  local out = {}
  for i, request in ipairs(requests) do
    local text = self.f { task = "demonstrate", prompt = request.prompt, index = request.index }
    if type(text) == "string" then
      out[i] = { text = text, finish = "stop" }
    else
      out[i] = { invalid = "the function returned a " .. type(text) }
    end
  end
  return out
end

local VERDICTS = { a = "a", b = "b", tie = "tie" }

function Func:compare(requests)
  local out = {}
  for i, request in ipairs(requests) do
    local verdict = self.f {
      task = "compare", prompt = request.prompt, a = ai.text(request.a), b = ai.text(request.b),
    }
    local probability = type(verdict) == "number" and verdict >= 0 and verdict <= 1
    out[i] = probability and verdict or VERDICTS[verdict] or "invalid"
  end
  return out
end

function Func:rate(requests)
  local out = {}
  for i, request in ipairs(requests) do
    local rating = self.f { task = "rate", prompt = request.prompt, answer = ai.text(request.answer) }
    out[i] = type(rating) == "number" and rating == rating and rating or false
  end
  return out
end

return function(_, _, f) return setmetatable({ f = f }, Func) end
