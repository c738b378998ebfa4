--- Token ids to text as they come, and how a text joins on to what stands before it.
--- What was given out is never taken back and is valid UTF-8: the bytes of a character
--- that is not complete are held back. It must not know models or requests.
local stream = {}

local HELD = 8 -- more tokens than any character needs: what is held then is no character in the making
local BROKEN = "\u{FFFD}"

---The last few tokens that decode to a text of their own, and that text: decoding them with
---what follows shows how its first piece joins on (its blank).
---@param tok perilune.Tokenizer
---@param ids integer[]
---@return integer[] window
---@return string text
function stream.window(tok, ids)
  for from = #ids, math.max(1, #ids - 8), -1 do
    local w = table.move(ids, from, #ids, 1, {})
    local text = tok:decode(w)
    if text ~= "" and not text:find(BROKEN, 1, true) then return w, text end
  end
  return {}, ""
end

---Where the earliest of the stop texts begins, or nil.
---@param text string
---@param stops string[]
---@return integer|nil
function stream.find_stop(text, stops)
  local first
  for _, s in ipairs(stops) do
    local at = text:find(s, 1, true)
    if at and (not first or at < first) then first = at end
  end
  return first
end

---@class perilune.TextStream
---@field tok perilune.Tokenizer
---@field all integer[] # a window that was given out, then what is held back
---@field n_window integer
---@field base string # the window's text
local Stream = {}
Stream.__index = Stream

---@param tok perilune.Tokenizer
---@param before integer[] # what the text follows: a prompt's ids, or nothing
---@return perilune.TextStream
function stream.new(tok, before)
  local window, text = stream.window(tok, before)
  return setmetatable({ tok = tok, all = window, n_window = #window, base = text }, Stream)
end

-- Gives out the text of all but the last `keep` tokens, which is `text`; they are the new window.
function Stream:give(text, keep)
  local all, n = self.all, self.n_window
  local delta = text:sub(#self.base + 1)
  local rest = table.move(all, n + 1, #all, 1, {})
  self.all, self.n_window = rest, #rest - keep
  self.base = self.tok:decode(keep == 0 and rest or table.move(rest, 1, self.n_window, 1, {}))
  return delta
end

-- Much is held and still looks broken: all but the last tokens, which alone may be a beginning.
function Stream:force(text)
  for keep = 3, #self.all - self.n_window - 1 do
    local head = self.tok:decode(table.move(self.all, 1, #self.all - keep, 1, {}))
    if #head > #self.base and text:sub(1, #head) == head then return self:give(head, keep) end
  end
  return ""
end

-- The text of window and held tokens; a decoder that joins them otherwise loses the window.
function Stream:read()
  local text = self.tok:decode(self.all)
  if text:sub(1, #self.base) == self.base then return text end
  self.all = table.move(self.all, self.n_window + 1, #self.all, 1, {})
  self.n_window, self.base = 0, ""
  return self.tok:decode(self.all)
end

---The next token.
---@param id integer
---@return string # text that is now certain; may be empty
function Stream:push(id)
  self.all[#self.all + 1] = id
  local text = self:read()
  if #text == #self.base then -- no text yet (a first blank that the decoder strips), or never
    if self.tok:is_special(id) then self.all[#self.all] = nil end
    return ""
  end
  if text:sub(-#BROKEN) ~= BROKEN then return self:give(text, 0) end
  return #self.all - self.n_window > HELD and self:force(text) or ""
end

---Nothing follows: what was held back.
---@return string
function Stream:flush()
  if #self.all == self.n_window then return "" end
  return self:give(self:read(), 0)
end

return stream
