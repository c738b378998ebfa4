--- A word-level tokenizer out of a list of words and a pattern: the text of a
--- tokenizer.json that Hugging Face's library reads with the same ids. For small
--- worlds whose whole vocabulary is known; it must not learn anything.
local core = require "perilune.core"
local options = require "perilune.options"

local wordlevel = {}

local SPEC = {
  pattern = { type = "string", doc = "regular expression of one piece; text between matches is a piece too" },
  eos = { "</s>", doc = "end token: special, id 0" },
  unk = { type = "string", doc = "token of unknown pieces; without it they are an error" },
}

local function special(id, content)
  return { id = id, content = content, single_word = false, lstrip = false, rstrip = false,
    normalized = false, special = true }
end

---The text of a tokenizer.json. Ids: eos, unk (if any), then the words in their order.
---Encoding adds no BOS and no end token; decoding puts the pieces side by side.
---@param words string[] # without the special tokens
---@param opts {pattern: string, eos: string?, unk: string?}
---@return string
function wordlevel.json(words, opts)
  local o = options.resolve("wordlevel.json", SPEC, opts)
  if not o.pattern then error("wordlevel.json: the option pattern is needed", 2) end
  local order = { o.eos, o.unk }
  table.move(words, 1, #words, #order + 1, order)
  local entries, seen = {}, {}
  for i, word in ipairs(order) do
    if type(word) ~= "string" or word == "" then
      error(("wordlevel.json: word %d is not a string with something in it"):format(i), 2)
    end
    if seen[word] then error(("wordlevel.json: the word %q comes twice"):format(word), 2) end
    seen[word] = true
    -- written by hand, for the order of the ids is the order of the file
    entries[i] = ("%s:%d"):format(core.base.json_encode(word), i - 1)
  end
  local added = { special(0, o.eos) }
  if o.unk then added[2] = special(1, o.unk) end
  local encode = core.base.json_encode
  local parts = {
    '"version":"1.0"', '"truncation":null', '"padding":null',
    '"added_tokens":' .. encode(added),
    '"normalizer":null',
    '"pre_tokenizer":' .. encode {
      type = "Split", pattern = { Regex = o.pattern }, behavior = "Isolated", invert = false },
    '"post_processor":null',
    '"decoder":{"type":"Fuse"}',
    ('"model":{"type":"WordLevel","vocab":{%s},"unk_token":%s}'):format(
      table.concat(entries, ","), encode(o.unk or "<unk>")),
  }
  return "{" .. table.concat(parts, ",") .. "}\n"
end

---@param words string[]
---@param opts {pattern: string, eos: string?, unk: string?}
---@return perilune.Tokenizer
function wordlevel.tokenizer(words, opts)
  return core.text.from_json(wordlevel.json(words, opts), "the word-level tokenizer")
end

return wordlevel
