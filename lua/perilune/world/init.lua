--- A small world of instruction tasks whose true quality can be computed.
---
--- A prompt names a task and 2 to 4 items; the right answer is one part per
--- item. Because the truth is known, an arm of a study can be scored without a
--- judge, and teachers and critics of any strength can be made (oracle.lua).
--- The raw text a base model learns from is in text.lua. Nothing here trains.
local rand = require "perilune.rand"

local world = {}

local NOUNS = {
  "cat", "dog", "fox", "hen", "pig", "cow", "bee", "ant", "owl", "bat", "frog", "fish", "crab", "wolf", "bear",
  "goat", "duck", "swan", "deer", "lion", "cup", "hat", "box", "pan", "bed", "jar", "key", "map", "bag", "pen",
  "lamp", "rope",
}
local COLOURS = { "red", "blue", "green", "white", "black", "brown" }
local PLACES = { "farm", "forest", "river", "house", "garden", "hill" }

local SUMS = {}
for a = 1, 5 do
  for b = 1, 5 do SUMS[#SUMS + 1] = a .. "+" .. b end
end

-- A fact is drawn once for the world itself, so that it is the same in every run.
local function facts(name, values)
  local table_of = {}
  for _, noun in ipairs(NOUNS) do
    table_of[noun] = values[1 + math.floor(rand.of(1, name .. " of " .. noun) * #values)]
  end
  return function(noun) return table_of[noun] end
end

local function letters(noun) return tostring(#noun) end

local function add(sum)
  local a, b = sum:match "^(%d+)%+(%d+)$"
  return tostring(math.tointeger(a) + math.tointeger(b))
end

local function each(value_of)
  return function(items)
    local parts = {}
    for i, item in ipairs(items) do parts[i] = value_of(item) end
    return parts
  end
end

---@class perilune.world.Task
---@field items string[] what the task is about
---@field phrasings string[] how a prompt may name it
---@field forms string[] sentences of the raw text: W the items, A the answer
---@field parts fun(items: string[]): string[] the right answer
---@field value? fun(item: string): string the right part for one item, where parts do not depend on each other
---@field numeric? boolean parts are numbers: a plausible error is off by one
---@field lower? boolean a plausible error leaves the word as it was

---@type table<string, perilune.world.Task>
world.tasks = {
  reverse = {
    items = NOUNS, value = string.reverse, lower = true,
    phrasings = { "reverse", "spell backwards", "write from the end", "turn around" },
    forms = {
      "the reverse of W is A", "spell W backwards and get A", "backwards, W reads A", "turn around W and see A",
      "from the end, write W as A",
    },
  },
  caps = {
    items = NOUNS, value = string.upper, lower = true,
    phrasings = { "in capitals", "capitals for", "shout", "write big" },
    forms = { "the capitals for W are A", "in capitals, W is A", "they shout W as A", "write W big as A" },
  },
  length = {
    items = NOUNS, value = letters, numeric = true,
    phrasings = { "count the letters", "length of", "letters in", "how long" },
    forms = { "the length of W is A", "count the letters in W and get A", "W have letters A", "how long W are: A" },
  },
  colour = {
    items = NOUNS, value = facts("colour", COLOURS),
    phrasings = { "colour of", "name the colours", "what colour", "paint for" },
    forms = { "the colour of W is A", "the colours W have are A", "paint W in A", "what colour W have: A" },
  },
  place = {
    items = NOUNS, value = facts("place", PLACES),
    phrasings = { "home of", "where live", "place for", "find the place" },
    forms = { "the home of W is A", "the place for W is A", "you find W in A", "where W live: A" },
  },
  order = {
    items = NOUNS,
    phrasings = { "last to first", "swap the order", "the other way", "from the last" },
    forms = {
      "last to first, W is A", "swap the order of W and see A", "the other way, W is A", "from the last, W is A",
    },
    parts = function(items)
      local parts = {}
      for i = #items, 1, -1 do parts[#parts + 1] = items[i] end
      return parts
    end,
  },
  sort = {
    items = NOUNS,
    phrasings = { "sort", "a to z", "put in order", "order the words" },
    forms = { "from a to z, W is A", "sort W and get A", "in order, W is A", "put the words W in order: A" },
    parts = function(items)
      local parts = table.move(items, 1, #items, 1, {})
      table.sort(parts)
      return parts
    end,
  },
  add = {
    items = SUMS, value = add, numeric = true,
    phrasings = { "add", "sum of", "what is", "work out" },
    forms = { "the sum of W is A", "add W and get A", "W makes A", "work out W: A" },
  },
}

---Names of the tasks, sorted: the order every draw uses.
world.task_names = {}
local task_of_phrasing = {}
for name, task in pairs(world.tasks) do
  world.task_names[#world.task_names + 1] = name
  task.name = name
  task.parts = task.parts or each(task.value)
  for _, phrasing in ipairs(task.phrasings) do
    assert(not task_of_phrasing[phrasing], phrasing)
    task_of_phrasing[phrasing] = task
  end
end
table.sort(world.task_names)

---The regular expression that cuts text into pieces: one token a word, its
---leading blank included (characters are too hard for a model this small).
world.pattern = " ?[a-z]+| ?[A-Z][A-Za-z]*| ?[0-9]+|[.,:+?\\n]"

---@param task perilune.world.Task
---@param phrasing string
---@param items string[]
---@return string prompt
function world.prompt(task, phrasing, items)
  assert(task_of_phrasing[phrasing] == task)
  return ("Q: %s: %s\nA:"):format(phrasing, table.concat(items, " "))
end

---The task and items of a prompt.
---@param prompt string
---@return perilune.world.Task|nil task nil if the prompt is not of this world
---@return string[]|string items or the reason
function world.parse(prompt)
  local phrasing, list = prompt:match "^Q: ([a-z ]+): ([a-z0-9+ ]+)\nA:$"
  local task = phrasing and task_of_phrasing[phrasing]
  if not task then
    return nil, ("the prompt %q is not of the built-in world (oracles know only that one); "
      .. "use another teacher or critic, such as local:DIR"):format(prompt:sub(1, 60))
  end
  local items = {}
  for item in list:gmatch "%S+" do items[#items + 1] = item end
  return task, items
end

local function words(text)
  local out = {}
  for word in text:gmatch "%S+" do out[#out + 1] = word end
  return out
end

-- Length of the longest common subsequence of two short lists.
local function lcs(a, b)
  local row = {}
  for j = 0, #b do row[j] = 0 end
  for i = 1, #a do
    local diagonal = 0
    for j = 1, #b do
      local above = row[j]
      row[j] = a[i] == b[j] and diagonal + 1 or math.max(above, row[j - 1])
      diagonal = above
    end
  end
  return row[#b]
end

---True quality of an answer: LCS(answer parts, right parts) / max(number of
---either). Wrong, missing and surplus parts all cost, order counts, and 1 means
---exactly right.
---@param prompt string
---@param answer string
---@return number|nil quality in 0..1; nil and a message for a prompt of another world
---@return string|nil message
function world.quality(prompt, answer)
  local task, items = world.parse(prompt)
  if not task then return nil, items end
  local right, given = task.parts(items), words(answer)
  return lcs(given, right) / math.max(#given, #right)
end

-- What a (task, item list) is called where prompts must not repeat.
local function identity(task, items) return task.name .. " " .. table.concat(items, " ") end

---Training and held-out prompts. Within training no (task, item list) occurs
---twice, and no held-out one occurs in training.
---@param seed integer
---@param n_train integer
---@param n_held_out integer
---@return {prompt: string}[] train
---@return {prompt: string}[] held_out
function world.prompts(seed, n_train, n_held_out)
  local draw = rand.stream(seed, "prompts")
  local seen, rows = {}, {}
  local tries, limit = 0, 100 * (n_train + n_held_out)
  while #rows < n_train + n_held_out do
    tries = tries + 1
    if tries > limit then
      error(("the world has no %d different prompts"):format(n_train + n_held_out), 0)
    end
    local task = world.tasks[draw:choice(world.task_names)]
    local items = draw:sample(task.items, 1 + draw:int(3))
    local phrasing = draw:choice(task.phrasings)
    local id = identity(task, items)
    if not seen[id] then
      seen[id] = true
      rows[#rows + 1] = { prompt = world.prompt(task, phrasing, items) }
    end
  end
  return table.move(rows, n_held_out + 1, #rows, 1, {}), table.move(rows, 1, n_held_out, 1, {})
end

return world
