--- Fills the placeholders of a prompt in one pass: {name} is replaced by values.name, and what was put in is never
--- looked at again, so that an answer with "{output_1}" in it stays what it is. Control words of chat formats
--- (<|im_end|>) mean nothing here: messages are sent as messages, never as one text that is cut again.
local fill = {}

---Text without white space at its ends; linear also in megabytes of blanks.
---@param text string
---@return string
function fill.strip(text)
  local first = text:find "%S"
  return first and text:match("^.*%S", first) or ""
end

---@param text string with {name} placeholders; other braces stand for themselves
---@param values table<string, string> one for each placeholder
---@return string the filled text, without white space at its ends
function fill.text(text, values)
  local filled = text:gsub("{([%a][%w_]*)}", function(name)
    local value = values[name]
    if type(value) ~= "string" then
      error(("judge prompt: {%s} must be text, got a %s"):format(name, type(value)), 0)
    end
    return value
  end)
  return fill.strip(filled)
end

return fill
