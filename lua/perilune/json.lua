--- pl.json: strict JSON. Reading gives nil, message on malformed text; writing
--- sorts keys, so that equal tables are equal text.
local base = require("perilune.core").base

local json = {
  ---stands for JSON's null inside tables, where nil would lose the key
  null = base.null,
}

---@param value any
---@param opts? { indent?: integer }
---@return string
function json.encode(value, opts)
  return base.json_encode(value, opts)
end

---@param text string
---@param source? string what the text is called in an error
---@return any value
---@return string|nil message
function json.decode(text, source)
  return base.json_decode(text, source)
end

---@param path string
---@return any value
---@return string|nil message
function json.read(path)
  return base.json_read(path)
end

---Replaces the file in one step: a reader sees the old text or the new one.
---@param path string
---@param value any
---@param opts? { indent?: integer }
---@return true|nil ok
---@return string|nil message
function json.write(path, value, opts)
  return base.write_file(path, base.json_encode(value, opts or { indent = 2 }) .. "\n")
end

---Marks a table as a list, so that an empty one is written as [].
---@param t? table
---@return table
function json.array(t)
  return base.json_array(t)
end

return json
