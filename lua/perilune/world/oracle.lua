--- Teachers and critics of tunable strength for the built-in world. They know
--- the truth and spoil it by a known amount, so a study can ask what weak and
--- strong feedback are worth.
local rand = require "perilune.rand"
local world = require "perilune.world"

local oracle = {}

-- Where an error's mass goes: a wrong value, a dropped part, an early stop.
local WRONG, DROPPED = 0.60, 0.25
-- Share of the error mass that is a fixed belief of the teacher: the same
-- (task, item) is then always wrong in the same way, so it cannot be averaged out.
local BELIEF = 0.5

-- A plausible wrong part for an item.
local function wrong_value(task, item, right, draw)
  if task.numeric and draw:uniform() < 0.5 then
    return tostring(math.max(1, math.tointeger(right) + (draw:uniform() < 0.5 and -1 or 1)))
  end
  if task.lower and draw:uniform() < 0.5 then return item end
  local value
  repeat
    local other = draw:choice(task.items)
    value = task.value and task.value(other) or other
  until value ~= right
  return value
end

-- The fixed error of a teacher about one item: nil (it believes the truth), a wrong value, or false (always left out).
local function belief(teacher, strength, task, item, right)
  local draw = rand.stream(0, ("belief %s %s %s"):format(teacher, task.name, item))
  if draw:uniform() >= (1 - strength) * BELIEF then return nil end
  if draw:uniform() < DROPPED / (WRONG + DROPPED) then return false end
  return wrong_value(task, item, right, draw)
end

---The right parts, each right with probability `strength`.
---@param task perilune.world.Task
---@param items string[]
---@param strength number 0..1
---@param draw perilune.rand.Stream
---@param teacher? string whose beliefs; nil for none (all errors drawn afresh)
---@return string[] parts never empty: where all would be left out, the first stays and is wrong
function oracle.spoil(task, items, strength, draw, teacher)
  local right, parts = task.parts(items), {}
  local fresh = teacher and (1 - strength) * (1 - BELIEF) / (1 - (1 - strength) * BELIEF) or 1 - strength
  for i, part in ipairs(right) do
    local item = task.value and items[i] or part
    local fixed = nil
    if teacher then fixed = belief(teacher, strength, task, item, part) end
    if fixed ~= nil then
      if fixed then parts[#parts + 1] = fixed end
    elseif draw:uniform() >= fresh then
      parts[#parts + 1] = part
    else
      local kind = draw:uniform()
      if kind < WRONG then
        parts[#parts + 1] = wrong_value(task, item, part, draw)
      elseif kind >= WRONG + DROPPED then
        break
      end
    end
  end
  if #parts == 0 then parts[1] = wrong_value(task, task.value and items[1] or right[1], right[1], draw) end
  return parts
end

---A teacher's answer, with its leading blank.
---@param prompt string a prompt of the world
---@param strength number probability that a part is right
---@param seed integer
---@param index integer which sample for this prompt
---@return string|nil text nil and a message for a prompt of another world
---@return string|nil message
function oracle.answer(prompt, strength, seed, index)
  local task, items = world.parse(prompt)
  if not task then return nil, items end
  local teacher = ("oracle:%g"):format(strength)
  local draw = rand.stream(seed, ("answer %s %d %s"):format(teacher, index, prompt))
  return " " .. table.concat(oracle.spoil(task, items, strength, draw, teacher), " ")
end

---A critic's choice between two answers: P(a) = sigmoid(4c/(1-c) (q_a - q_b)).
---c = 0 is a coin, c = 1 is never wrong; equal answers are a coin at any c. The
---noise belongs to (seed, prompt, a, b), so each order of a pair has its own.
---@param prompt string
---@param a string
---@param b string
---@param strength number c in 0..1
---@param seed integer
---@return "a"|"b"|nil choice nil and a message for a prompt of another world
---@return string|nil message
function oracle.prefers(prompt, a, b, strength, seed)
  local qa, message = world.quality(prompt, a)
  if not qa then return nil, message end
  local gap = qa - world.quality(prompt, b)
  local p
  if gap == 0 then
    p = 0.5
  elseif strength >= 1 then
    p = gap > 0 and 1 or 0
  else
    p = 1 / (1 + math.exp(-4 * strength / (1 - strength) * gap))
  end
  local name = table.concat({ "verdict", ("%g"):format(strength), prompt, a, b }, "\0")
  return rand.of(seed, name) < p and "a" or "b"
end

return oracle
