--- The guard of our own judge prompts. What is judged stands between lines that carry a nonce: an HMAC of the
--- ledger's secret over the call, so that no answer can know it, and the same call is the same bytes. The verdict is a
--- line with the same nonce; what a reply says anywhere else, or quotes from an answer, cannot vote.
local base = require("perilune.core").base
local read = require "perilune.feedback.templates.read"

local fence = {}

-- 64 bits: nobody guesses them in one try, and a judge copies them without slips.
local DIGITS = 16

---@param ctx {secret: string}
---@param ... string what the call is made of
---@return string nonce hexadecimal
function fence.nonce(ctx, ...)
  if type(ctx) ~= "table" or type(ctx.secret) ~= "string" or ctx.secret == "" then
    error("judge prompt: ctx.secret is needed (the ledger's secret)", 2)
  end
  local parts = {}
  for i, part in ipairs { ... } do parts[i] = #part .. ":" .. part end
  return base.hmac_sha256(ctx.secret, table.concat(parts)):sub(1, DIGITS)
end

-- Words that some servers take for the control tokens of a chat format, also inside a message.
local CONTROL = {
  "<|", "<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
}

-- Each gets a blank after its first character.
local function apart(word) return word:sub(1, 1) .. " " .. word:sub(2) end

---Text in which no control token stands whole.
---@param text string
---@return string
function fence.neutral(text)
  if not text:find "[<%[]" then return text end        -- what every control token begins with
  for _, word in ipairs(CONTROL) do
    if text:find(word, 1, true) then text = text:gsub(word:gsub("%p", "%%%0"), apart) end
  end
  return text
end

-- The word after LABEL-nonce: on each line that holds nothing else but marks of emphasis.
local function words(text, label, nonce)
  local pattern = ("^[%%s*_`#>]*%s%%-%s:[%%s*_`]*(%%w[%%w%%./]*)[%%s*_`.]*$"):format(label, nonce)
  local found = {}
  for line in read.lines(text) do found[#found + 1] = line:match(pattern) end
  return found
end

---The value on which all lines "LABEL-nonce: word" of a reply agree; nil if there is none, or they differ.
---@param text string
---@param label string
---@param nonce string
---@param convert fun(word: string): any
---@return any
function fence.verdict(text, label, nonce, convert)
  local values = {}
  for i, word in ipairs(words(text, label, nonce)) do
    -- a word that means nothing is a verdict, too: one that differs from all others
    values[i] = convert((word:gsub("%.$", ""))) or false
  end
  return read.agreed(values)
end

return fence
