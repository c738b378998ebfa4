--- Aligned tables of text for people.
local M = {}

local function width(text) return utf8.len(text) or #text end

-- A cell that reads as a number stands to the right.
local function numeric(text) return text:match "^[%s+-]*[%d.,]+[%d%s.,%%a-z/]*$" ~= nil and text:match "%d" ~= nil end

---@param columns string[]
---@param rows string[][]
---@return string without a last newline
function M.render(columns, rows)
  local widths, right = {}, {}
  for c, title in ipairs(columns) do
    widths[c], right[c] = width(title), #rows > 0
    for _, row in ipairs(rows) do
      local cell = row[c] or ""
      widths[c] = math.max(widths[c], width(cell))
      if cell ~= "" and cell ~= "-" and not numeric(cell) then right[c] = false end
    end
  end
  local function line(cells)
    local out = {}
    for c = 1, #columns do
      local cell = cells[c] or ""
      local pad = (" "):rep(widths[c] - width(cell))
      out[c] = right[c] and pad .. cell or cell .. pad
    end
    return (table.concat(out, "  "):gsub("%s+$", ""))
  end
  local rule = {}
  for c = 1, #columns do rule[c] = ("-"):rep(widths[c]) end
  local out = { line(columns), line(rule) }
  for _, row in ipairs(rows) do out[#out + 1] = line(row) end
  return table.concat(out, "\n")
end

---The keys of a table, sorted.
---@param t table<string, any>
---@return string[]
function M.sorted(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  table.sort(names)
  return names
end

return M
