--- Reading a judge's reply. One rule for all: nothing found, or several findings that differ, is no verdict; there is
--- no default that wins. A reply is data: it is matched, never executed.
local read = {}

---@param text string
---@return fun(): string|nil its lines, without line ends
function read.lines(text)
  local following = (text .. "\n"):gmatch "(.-)\r?\n"
  return function() return following() end
end

---The one value of a list, or nil if it is empty or its values differ.
---@param list any[]
---@return any
function read.agreed(list)
  for i = 2, #list do
    if list[i] ~= list[1] then return nil end
  end
  return list[1]
end

---The verdict of lines that begin with "Output (a)" or "Output (b)", with one blank before it at most (AlpacaEval's
---pattern). AlpacaEval takes the first; here all must agree.
---@param text string
---@return "a"|"b"|"invalid"
function read.output_letter(text)
  local found = {}
  for line in read.lines(text) do found[#found + 1] = line:match "^ ?Output %(([ab])%)" end
  return read.agreed(found) or "invalid"
end

---The mark on the last line that is not empty; with none there, the one on which all marks of the text agree.
---@param text string
---@param pattern string with one capture
---@param convert fun(captured: string): any
---@return any value nil where there is none, or several that differ
function read.final_mark(text, pattern, convert)
  local all, last = {}, {}
  for line in read.lines(text) do
    if line:find "%S" then
      last = {}
      for captured in line:gmatch(pattern) do
        local value = convert(captured)
        last[#last + 1], all[#all + 1] = value, value
      end
    end
  end
  return read.agreed(#last > 0 and last or all)
end

---A rating from 1 to 10: "7", "8.5", "10/10". All else ("N/A", "0", "11", "7/5") is false.
---@param text string
---@return number|false
function read.rating(text)
  local word, of = text:match "^%s*(%d+%.?%d*)%s*/?%s*(%d*)%s*$"
  if not word or (of ~= "" and of ~= "10") or (of == "" and text:find("/", 1, true)) then return false end
  local value = tonumber(word)
  if value < 1 or value > 10 then return false end
  return math.tointeger(value) or value
end

return read
