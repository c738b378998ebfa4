---@meta perilune.core.text
--- Tokenizers (src/bind/text.c). For the language server only; written by hand.
error "this file describes perilune.core.text to the language server; it is not to be required"

---@class perilune.text
local text = {}

---Reads a tokenizer.json, or the one in a directory. Raises on failure, and for a component
---that is not implemented, by its name.
---@param path string
---@return perilune.Tokenizer
function text.load(path) end

---@param json string # the text of a tokenizer.json
---@param name string? # what it is called in errors
---@return perilune.Tokenizer
function text.from_json(json, name) end

---@class perilune.Tokenizer
local Tokenizer = {}

---@param s string # wrong UTF-8 is kept byte by byte where the model can
---@param opts {add_special_tokens: boolean?}? # default true: what the file's post-processor adds
---@return integer[] ids # from 0
function Tokenizer:encode(s, opts) end

---As encode with add_special_tokens = false, but the text of a special token stays text.
---@param s string
---@return integer[] ids
function Tokenizer:encode_plain(s) end

---@param ids integer[] # from 0; an id without a token raises
---@param opts {skip_special_tokens: boolean?}? # default true
---@return string # valid UTF-8; wrong bytes become U+FFFD
function Tokenizer:decode(ids, opts) end

---Highest id + 1, added tokens included.
---@return integer
function Tokenizer:vocab_size() end

---@param token string
---@return integer|nil
function Tokenizer:token_to_id(token) end

---@param id integer
---@return string|nil
function Tokenizer:id_to_token(id) end

---@param id integer
---@return boolean
function Tokenizer:is_special(id) end

---The id that encode puts in front of a text, or nil.
---@return integer|nil
function Tokenizer:bos_declared() end

---The text of the file, byte for byte.
---@return string
function Tokenizer:json() end

---SHA-256 of that text, in hex.
---@return string
function Tokenizer:hash() end

---Gives the memory back early; afterwards every use raises.
function Tokenizer:free() end

return text
