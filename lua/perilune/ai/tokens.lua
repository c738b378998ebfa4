--- Counting tokens of texts that go to a service: with the service's own vocabulary
--- where the user has its file, else estimated from the bytes and said to be so.
---   openai:MODEL?tokenizer=FILE            a tokenizer.json, or a directory that holds one
---   PL_TOKENIZERS=DIR                      with o200k_base.json, cl100k_base.json, NAME-OF-MODEL.json, ...
local base = require("perilune.core").base

local tokens = {}

-- English text of judge prompts and answers: 4.2 bytes a token with cl100k; 4 errs upwards.
local BYTES = 4

-- The vocabulary of OpenAI's models, by the beginning of their names; longest first.
local FAMILIES = {
  { "gpt-4o", "o200k_base" }, { "gpt-4.1", "o200k_base" }, { "gpt-4.5", "o200k_base" }, { "gpt-5", "o200k_base" },
  { "o1", "o200k_base" }, { "o3", "o200k_base" }, { "o4", "o200k_base" },
  { "gpt-4", "cl100k_base" }, { "gpt-3.5", "cl100k_base" },
}

local function file_for(model)
  local dir = os.getenv "PL_TOKENIZERS"
  if not dir or dir == "" then return nil end
  local names = { (model:gsub("/", "_")) }
  for _, family in ipairs(FAMILIES) do
    if model:sub(1, #family[1]) == family[1] then names[#names + 1] = family[2] end
  end
  for _, name in ipairs(names) do
    local path = ("%s/%s.json"):format(dir, name)
    if base.exists(path) then return path end
  end
  return nil
end

---@class perilune.ai.Counter
---@field exact boolean
---@field name string what counts: a file, or "bytes / 4"
---@field count fun(text: string): number

---@param model string
---@param path string|nil
---@return perilune.ai.Counter
function tokens.counter(model, path)
  path = path or file_for(model)
  if not path then
    return { exact = false, name = ("bytes / %d"):format(BYTES), count = function(text) return #text / BYTES end }
  end
  if base.is_dir(path) then path = path .. "/tokenizer.json" end
  local tokenizer, message = require("perilune.core").text.load(path)
  if not tokenizer then error("tokenizer: " .. tostring(message), 0) end
  return { exact = true, name = path, count = function(text) return #tokenizer:encode(text) end }
end

return tokens
