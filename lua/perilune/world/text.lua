--- The raw text of the built-in world and its tokenizer: what the embedded base
--- model learns from before any teacher. It holds the same facts and skills as
--- the prompts, in sentences, and never the prompts' own form ("Q:", "A:").
local oracle = require "perilune.world.oracle"
local rand = require "perilune.rand"
local world = require "perilune.world"
local wordlevel = require "perilune.text.wordlevel"

local text = {}

-- Probability that a sentence is about the items of its document. The repetition
-- is what teaches a small model to line up an answer with a list of items.
local TOPIC = 0.8

---One document: 2 to 5 sentences of 1 to 4 items each. Its reliability, drawn
---from 0.7..1, is the probability that a part of it is right.
---@param seed integer
---@param index integer
---@return string
function text.document(seed, index)
  local draw = rand.stream(seed, "document " .. index)
  local reliability = 0.7 + 0.3 * draw:uniform()
  local topics, sentences = {}, {}
  for i = 1, 1 + draw:int(4) do
    local task = world.tasks[draw:choice(world.task_names)]
    local items = topics[task.items]
    if not items or draw:uniform() >= TOPIC then
      items = draw:sample(task.items, draw:int(4))
      topics[task.items] = topics[task.items] or items
    end
    local parts = oracle.spoil(task, items, reliability, draw)
    local fill = { W = table.concat(items, " "), A = table.concat(parts, " ") }
    sentences[i] = " " .. draw:choice(task.forms):gsub("%f[%a][WA]%f[%A]", fill) .. "."
  end
  return table.concat(sentences)
end

---@param seed integer
---@param n integer
---@return {text: string}[]
function text.documents(seed, n)
  local rows = {}
  for i = 1, n do rows[i] = { text = text.document(seed, i) } end
  return rows
end

-- Every piece that a text of the world can hold.
local function vocabulary()
  local seen, list = {}, {}
  local function add(piece)
    if not seen[piece] then
      seen[piece] = true
      list[#list + 1] = piece
    end
  end
  for _, piece in ipairs { "Q", "A", ":", "\n", ".", ",", "+" } do add(piece) end
  for n = 0, 11 do
    add(" " .. n)
    add(tostring(n))
  end
  for _, name in ipairs(world.task_names) do
    local task = world.tasks[name]
    for _, phrase in ipairs(task.phrasings) do
      for word in phrase:gmatch "%a+" do add(" " .. word) end
    end
    for _, form in ipairs(task.forms) do
      for word in form:gmatch "%a+" do
        if word ~= "W" and word ~= "A" then add(" " .. word) end
      end
    end
    for _, item in ipairs(task.items) do
      if item:match "^%a+$" then add(" " .. item) end
      if task.value then add(" " .. task.value(item)) end
    end
  end
  return list
end

---The world's tokenizer: one token a word, `</s>` ends an answer or a document.
---@return perilune.Tokenizer
function text.tokenizer()
  return wordlevel.tokenizer(vocabulary(), { pattern = world.pattern, eos = "</s>", unk = "<unk>" })
end

return text
