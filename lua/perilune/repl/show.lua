--- How the session prints a value: tables as trees with limits on depth and
--- number of entries, everything that has its own __tostring through that.
local show = {}

local codes = { red = "31", green = "32", yellow = "33", blue = "34", cyan = "36", dim = "2" }

---@param color boolean|nil
---@return fun(name: string, text: string): string
function show.painter(color)
  return function(name, text)
    if not color then return text end
    return "\27[" .. codes[name] .. "m" .. text .. "\27[0m"
  end
end

local function is_name(k)
  return type(k) == "string" and k:find "^[%a_][%w_]*$" ~= nil
end

local function quoted(s)
  local cut = #s > 2000
  local text = ("%q"):format(cut and s:sub(1, 2000) or s):gsub("\\\n", "\\n"):gsub("\r", "\\r")
  return cut and ("%s... (%d bytes)"):format(text, #s) or text
end

local function described_function(f)
  local info = debug.getinfo(f, "S")
  if info.what == "C" then return "function (C)" end
  return ("function (%s:%d)"):format(info.short_src, info.linedefined)
end

-- numbers before names, each in order
local function before(a, b)
  local ta, tb = type(a), type(b)
  if ta == tb and (ta == "number" or ta == "string") then return a < b end
  if ta ~= tb then return ta < tb end
  return tostring(a) < tostring(b)
end

local render

local function table_text(t, o, depth, seen, indent)
  if next(t) == nil then return "{}" end
  if seen[t] then return "{ ... a table that contains itself }" end
  if depth >= o.depth then return ("{ ... %d entries }"):format(#t > 0 and #t or 1) end
  seen[t] = true
  local parts, left = {}, 0
  local n = #t
  for i = 1, math.min(n, o.items) do
    parts[#parts + 1] = render(t[i], o, depth + 1, seen, indent .. "  ")
  end
  left = n - math.min(n, o.items)
  local keys = {}
  for k in next, t do
    if not (math.type(k) == "integer" and k >= 1 and k <= n) then keys[#keys + 1] = k end
  end
  table.sort(keys, before)
  for i, k in ipairs(keys) do
    if i > o.items then
      left = left + #keys - o.items
      break
    end
    local name = is_name(k) and k or "[" .. render(k, o, depth + 1, seen, indent) .. "]"
    parts[#parts + 1] = name .. " = " .. render(rawget(t, k), o, depth + 1, seen, indent .. "  ")
  end
  if left > 0 then parts[#parts + 1] = ("... %d more"):format(left) end
  seen[t] = nil
  local one_line = "{ " .. table.concat(parts, ", ") .. " }"
  if #one_line <= 78 - #indent and not one_line:find "\n" then return one_line end
  return "{\n" .. indent .. "  " .. table.concat(parts, ",\n" .. indent .. "  ") .. "\n" .. indent .. "}"
end

function render(v, o, depth, seen, indent)
  local kind = type(v)
  local paint = o.paint
  if kind == "string" then return depth == 0 and quoted(v) or paint("green", quoted(v)) end
  if kind == "number" then return paint("cyan", tostring(v)) end
  if kind == "boolean" or kind == "nil" then return paint("yellow", tostring(v)) end
  if kind == "function" then return paint("dim", described_function(v)) end
  local mt = getmetatable(v)
  if kind ~= "table" or (type(mt) == "table" and mt.__tostring) then
    return (tostring(v):gsub("\n", "\n" .. indent))
  end
  return table_text(v, o, depth, seen, indent)
end

---@param v any
---@param opts? { color?: boolean, depth?: integer, items?: integer }
---@return string
function show.value(v, opts)
  opts = opts or {}
  local o = { depth = opts.depth or 4, items = opts.items or 40, paint = show.painter(opts.color) }
  return render(v, o, 0, {}, "")
end

---A value in a few words, for lists of variables.
---@param v any
---@return string
function show.brief(v)
  local kind = type(v)
  if kind == "table" then
    local mt = getmetatable(v)
    if not (type(mt) == "table" and mt.__tostring) then
      local n = 0
      for _ in next, v do n = n + 1 end
      return ("table, %d entries"):format(n)
    end
  elseif kind == "function" then
    return described_function(v)
  end
  local mt = getmetatable(v)
  if kind == "userdata" and type(mt) == "table" and mt.__name == "perilune.Tensor" then
    return ("tensor %s [%s]"):format(v:dtype(), table.concat(v:shape(), ", "))
  end
  local text = kind == "string" and quoted(v) or tostring(v)
  local line = text:match "^[^\n]*"
  return #line > 60 and line:sub(1, 57) .. "..." or line
end

return show
