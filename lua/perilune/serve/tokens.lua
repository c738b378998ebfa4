--- What single tokens look like on the wire: text, bytes, log-probability. A token that is
--- part of a character has no text; its bytes are given, and its text as \xNN.
local json = require "perilune.json"

local tokens = {}

local BROKEN = "\u{FFFD}"
local LEAST = -9999.0 -- stands for minus infinity, which JSON does not have

-- Byte-level tokenizers write each byte as one character: printable ones as themselves, the
-- others as U+0100 and up, in order.
local function byte_level()
  local byte_of, n = {}, 256
  for b = 0, 255 do
    if b >= 33 and b <= 126 or b >= 161 and b <= 172 or b >= 174 then
      byte_of[b] = b
    else
      byte_of[n], n = b, n + 1
    end
  end
  return byte_of
end

---@class perilune.serve.Tokens
local Tokens = {}
Tokens.__index = Tokens

-- A token of plain text to decode others behind: some decoders strip a text's first blank.
local function anchor_of(tok)
  local ids = tok:encode_plain "a"
  for k = #ids, 1, -1 do
    if not tok:id_to_token(ids[k]):find "^<0x%x%x>$" and tok:decode { ids[k] } ~= "" then return ids[k] end
  end
  return nil
end

---@param tok perilune.Tokenizer
---@return perilune.serve.Tokens
function tokens.new(tok)
  local ok, anchor = pcall(anchor_of, tok)
  anchor = ok and anchor or nil
  return setmetatable({ tok = tok, anchor = anchor, base = anchor and #tok:decode { anchor } or 0,
    byte_of = byte_level(), of = {} }, Tokens)
end

function Tokens:bytes_of_broken(id)
  local name = self.tok:id_to_token(id)
  local hex = name:match "^<0x(%x%x)>$"
  if hex then return string.char(tonumber(hex, 16)) end
  local out = {}
  for _, code in utf8.codes(name) do
    local b = self.byte_of[code]
    if not b then return name end
    out[#out + 1] = string.char(b)
  end
  return table.concat(out)
end

---@param id integer
---@return {text: string, bytes: integer[]}
function Tokens:look(id)
  local known = self.of[id]
  if known then return known end
  local text = self.anchor and self.tok:decode({ self.anchor, id }):sub(self.base + 1) or self.tok:decode { id }
  local bytes = text
  if text == "" then -- a special token: by its name
    text = self.tok:id_to_token(id) or ""
    bytes = text
  elseif text:find(BROKEN, 1, true) then
    bytes = self:bytes_of_broken(id)
    text = utf8.len(bytes) and bytes or bytes:gsub(".", function(c) return ("\\x%02x"):format(c:byte()) end)
  end
  known = { text = text, bytes = { bytes:byte(1, -1) } }
  self.of[id] = known
  return known
end

function Tokens:text(id) return self:look(id).text end

local function finite(logprob) return math.max(logprob, LEAST) end

function Tokens:entry(id, logprob)
  local t = self:look(id)
  return { token = t.text, logprob = finite(logprob), bytes = t.bytes }
end

---An entry of chat's logprobs.content.
---@param record {id: integer, logprob: number, top: number[]|nil}
---@param k integer # alternatives to tell of
---@return table
function Tokens:chat(record, k)
  local out, list = self:entry(record.id, record.logprob), {}
  for i = 1, k do list[i] = self:entry(record.top[2 * i - 1], record.top[2 * i]) end
  out.top_logprobs = json.array(list)
  return out
end

---The lists of a text completion's logprobs.
---@param records {id: integer, logprob: number|nil, top: number[]|nil, at: integer}[] # at: bytes before it in the text
---@param k integer
---@param text string # that the records belong to, or the part of it that begins at byte `skip`
---@param skip integer
---@param skip_chars integer # characters in those bytes
---@return table
function Tokens:completion(records, k, text, skip, skip_chars)
  local names, logprobs, tops, offsets = {}, {}, {}, {}
  for i, r in ipairs(records) do
    names[i] = self:text(r.id)
    logprobs[i] = r.logprob and finite(r.logprob) or json.null
    local top = r.logprob and {} or json.null
    for j = 1, r.logprob and k or 0 do
      local name, value = self:text(r.top[2 * j - 1]), finite(r.top[2 * j])
      top[name] = math.max(top[name] or LEAST, value) -- parts of characters may share a name
    end
    if r.logprob and k > 0 then top[names[i]] = top[names[i]] or finite(r.logprob) end
    tops[i] = top
    offsets[i] = skip_chars + (utf8.len(text, 1, r.at - skip) or r.at - skip)
  end
  return { tokens = json.array(names), token_logprobs = json.array(logprobs),
    top_logprobs = k > 0 and json.array(tops) or json.null, text_offset = json.array(offsets) }
end

return tokens
