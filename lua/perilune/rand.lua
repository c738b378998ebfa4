--- Streams of random numbers for Lua code: a thin cursor over the core's
--- counter-based generator, so that the n-th draw of a named stream is a pure
--- function of (seed, name, n) and nothing else.
local base = require("perilune.core").base

local rand = {}

---@class perilune.rand.Stream
---@field seed integer
---@field stream integer
---@field index integer draws made so far
local Stream = {}
Stream.__index = Stream

-- FNV-1a over the bytes of a name, in 64 bits: stable between runs and machines.
local function fnv(name)
  local h = 0xcbf29ce484222325
  for i = 1, #name do
    h = (h ~ name:byte(i)) * 0x100000001b3
  end
  return h & 0x7fffffffffffffff
end

---A new stream at its beginning.
---@param seed integer
---@param name string what the draws are for: another name is another stream
---@return perilune.rand.Stream
function rand.stream(seed, name)
  return setmetatable({ seed = seed, stream = fnv(name), index = 0 }, Stream)
end

---One draw in [0, 1) that belongs to a name alone.
---@param seed integer
---@param name string
---@return number
function rand.of(seed, name)
  return base.uniform(seed, fnv(name), 0)
end

---@return number in [0, 1)
function Stream:uniform()
  local u = base.uniform(self.seed, self.stream, self.index)
  self.index = self.index + 1
  return u
end

---@param n integer
---@return integer in 1..n
function Stream:int(n)
  return math.floor(self:uniform() * n) + 1
end

---@generic T
---@param list T[]
---@return T
function Stream:choice(list)
  return list[self:int(#list)]
end

---n different entries of a list, in random order; the list stays as it was.
---@generic T
---@param list T[]
---@param n integer at most #list
---@return T[]
function Stream:sample(list, n)
  local swapped, out = {}, {}
  for i = 1, n do                      -- Fisher-Yates on a sparse copy
    local j = i - 1 + self:int(#list - i + 1)
    out[i] = swapped[j] or list[j]
    swapped[j] = swapped[i] or list[i]
  end
  return out
end

return rand
