--- pl.data: rows of named columns, from a file or a table. A dataset is not changed
--- after it is made: columns, map, filter and the others return a new one. It knows
--- no tokenizer and no model.
---
---   local demos = pl.data.load "demos.jsonl"            -- strict JSONL, errors are file:line
---   local prefs = pl.data.from { { prompt = "..", chosen = "..", rejected = ".." } }
---   #demos, demos[1].prompt, demos:columns { "prompt", completion = "chosen" }
local core = require("perilune.core").base
local formats = require "perilune.data.formats"
local options = require "perilune.options"

local data = { formats = formats, answer = formats.answer }

---@class perilune.Dataset
---@field counts {read: integer, used: integer, dropped: table<string, integer>}
---@field list table[] the rows; use ds:rows()
local Dataset = {}

local meta = { __name = "perilune.Dataset" }

function meta.__index(ds, key)
  if math.type(key) == "integer" then
    return ds.list[key]
  end
  if key == "list" or key == "counts" then -- of a deferred dataset, read now
    if not rawget(ds, "list") then
      local rows, counts = rawget(ds, "load")()
      rawset(ds, "list", rows)
      if counts then rawset(ds, "counts", counts) end
    end
    return rawget(ds, key)
  end
  return Dataset[key]
end

function meta.__newindex()
  error("a dataset is not changed in place; use map, filter or columns", 2)
end

function meta.__len(ds)
  return #ds.list
end

local function make(rows, counts)
  counts = counts or { read = #rows, used = #rows, dropped = {} }
  return setmetatable({ list = rows, counts = counts }, meta)
end

---Is this a dataset? A remembered one that was not read from disk yet is, too.
---@param v any
---@return boolean
function data.is_dataset(v)
  return type(v) == "table" and (getmetatable(v) == meta or type(v.columns) == "function")
end

---A dataset from a list of rows. Rows are checked (types, roles, UTF-8) but not copied.
---@param rows table[]
---@return perilune.Dataset
function data.from(rows)
  if data.is_dataset(rows) then
    return rows
  end
  if type(rows) ~= "table" then
    error("data.from: wanted a list of rows, got " .. type(rows), 2)
  end
  local n = #rows
  for key in pairs(rows) do
    if math.type(key) ~= "integer" or key < 1 or key > n then
      error(("data.from: wanted a list of rows, got a table with the key %s"):format(tostring(key)), 2)
    end
  end
  for i = 1, n do
    local bad = formats.check(rows[i])
    if bad then
      error(("data.from: row %d: %s"):format(i, bad), 2)
    end
  end
  return make(table.move(rows, 1, n, 1, {}))
end

---A dataset whose rows are read when first asked for: what a study remembers is
---mostly needed by its hash alone.
---@param spec {hash: string, counts: table?, load: fun(): table[], table?} load gives rows that were checked before,
--- and the counts where they are not known without the rows
---@return perilune.Dataset
function data.deferred(spec)
  return setmetatable({ load = spec.load, digest = spec.hash, counts = spec.counts }, meta)
end

local LOAD = {
  format = { type = "string", doc = "declared conversion: sharegpt, sharegpt-first, alpaca, hh" },
  on_error = { "raise", choices = { "raise", "drop" }, doc = "what a bad row does; dropped ones are counted" },
}

-- JSON null is no value.
local function without_null(row)
  if type(row) == "table" then
    for k, v in pairs(row) do
      if v == core.null then
        row[k] = nil
      end
    end
  end
  return row
end

local function lines_of(text)
  local at, n = 1, 0
  return function()
    if at > #text then
      return nil
    end
    local to = text:find("\n", at, true) or #text + 1
    local line = text:sub(at, to - 1)
    at, n = to + 1, n + 1
    return line, n
  end
end

---Reads .jsonl (one object a line) or .json (a list of objects). A bad row is an error
---`file:line: what`, or with on_error = "drop" it is left out and counted in ds.counts.
---@param path string
---@param opts {format: string?, on_error: string?}?
---@return perilune.Dataset
function data.load(path, opts)
  if type(path) ~= "string" then
    error("data.load: wanted a path, got " .. type(path), 2)
  end
  local o = options.resolve("data.load", LOAD, opts or {})
  if path:find "%.gz$" or path:find "%.zst$" or path:find "%.parquet$" then
    error(("data.load: %s: compressed and Parquet files are not read; convert it to .jsonl"):format(path), 2)
  end
  local convert = o.format and formats.conversion("data.load", o.format)
  local text, why = core.read_file(path)
  if not text then
    error(("data.load: %s"):format(why), 2)
  end
  local rows, counts = {}, { read = 0, used = 0, dropped = {} }
  local function take(row, where, bad)
    counts.read = counts.read + 1
    if not bad then
      without_null(row)
      bad = type(row) ~= "table" and formats.check(row)
    end
    if not bad and convert then
      row, bad = convert(row)
    end
    bad = bad or formats.check(row)
    if not bad then
      local empty = formats.empty_answer(row)
      bad = empty and (empty .. " is empty")
    end
    if not bad then
      rows[#rows + 1] = row
      counts.used = counts.used + 1
    elseif o.on_error == "raise" then
      error(("%s: %s"):format(where, bad), 0)
    else
      local reason = bad:gsub("%[%d+%]", "[..]"):gsub("byte %d+", "byte ..")
      counts.dropped[reason] = (counts.dropped[reason] or 0) + 1
    end
  end
  local ok, message = pcall(function()
    if path:find "%.json$" then
      local list, bad = core.json_decode(text, path)
      if bad then
        error(bad, 0)
      elseif type(list) ~= "table" or (#list == 0 and next(list) ~= nil) then
        error(path .. ": wanted a list of rows; one object a line belongs in a .jsonl file", 0)
      end
      for i, row in ipairs(list) do
        take(row, ("%s: row %d"):format(path, i))
      end
    else
      for line, n in lines_of(text) do
        if line:find "%S" then
          local where = ("%s:%d"):format(path, n)
          local row, bad = core.json_decode(line, where)
          if bad and bad:sub(1, #where + 1) == where .. ":" then
            bad = bad:sub(#where + 2):gsub("^%s+", "")
          end
          take(row, where, bad)
        end
      end
    end
  end)
  if not ok then
    error(message, 2)
  end
  return make(rows, counts)
end

---All rows as a list. It is the dataset's own: read it, do not change it.
---@return table[]
function Dataset:rows()
  return self.list
end

---"preference", "completion", "messages", "text" or "prompt", from the first row.
---@return string|nil
function Dataset:kind()
  local first = self.list[1]
  return first and formats.kind(first)
end

---Selects and renames: positions keep a name, NEW = "OLD" renames. Token ids, finish and
---tokenizer of an answer go with it (NAME_ids, NAME_finish, NAME_tokenizer).
---@param spec table
---@return perilune.Dataset
function Dataset:columns(spec)
  if type(spec) ~= "table" then
    error("columns: wanted { \"prompt\", completion = \"chosen\" }, got " .. type(spec), 2)
  end
  local pairs_of = {}
  for k, v in pairs(spec) do
    if type(v) ~= "string" then
      error(("columns: %s must name a column, got %s"):format(tostring(k), type(v)), 2)
    end
    pairs_of[#pairs_of + 1] = { math.type(k) and v or k, v }
  end
  local seen = {}
  local out = {}
  for i, row in ipairs(self.list) do
    local new = {}
    for _, p in ipairs(pairs_of) do
      new[p[1]] = row[p[2]]
      seen[p[2]] = seen[p[2]] or row[p[2]] ~= nil
      for _, extra in ipairs { "_ids", "_finish", "_tokenizer" } do
        if row[p[2] .. extra] ~= nil then
          new[p[1] .. extra] = row[p[2] .. extra]
        end
      end
    end
    out[i] = new
  end
  for _, p in ipairs(pairs_of) do
    if #out > 0 and not seen[p[2]] then
      error(("columns: %s"):format(options.unknown("column", p[2], self:column_names())), 2)
    end
  end
  return make(out)
end

---The names of all columns, sorted.
---@return string[]
function Dataset:column_names()
  local seen, names = {}, {}
  for _, row in ipairs(self.list) do
    for name in pairs(row) do
      if not seen[name] then
        seen[name] = true
        names[#names + 1] = name
      end
    end
  end
  table.sort(names)
  return names
end

---A dataset of f(row, i); a nil drops the row and counts it.
---@param f fun(row: table, i: integer): table|nil
---@return perilune.Dataset
function Dataset:map(f)
  local out, dropped = {}, 0
  for i, row in ipairs(self.list) do
    local new = f(row, i)
    if new == nil then
      dropped = dropped + 1
    else
      local bad = formats.check(new)
      if bad then
        error(("map: row %d: %s"):format(i, bad), 2)
      end
      out[#out + 1] = new
    end
  end
  local counts = { read = #self, used = #out, dropped = {} }
  if dropped > 0 then
    counts.dropped["map gave nil"] = dropped
  end
  return make(out, counts)
end

---The rows for which f(row, i) is true; the others are counted under `reason`.
---@param f fun(row: table, i: integer): any
---@param reason string?
---@return perilune.Dataset
function Dataset:filter(f, reason)
  local out = {}
  for i, row in ipairs(self.list) do
    if f(row, i) then
      out[#out + 1] = row
    end
  end
  local counts = { read = #self, used = #out, dropped = {} }
  if #out < #self then
    counts.dropped[reason or "filtered"] = #self - #out
  end
  return make(out, counts)
end

---Rows a to b, both included; negative positions count from the end.
---@param a integer
---@param b integer?
---@return perilune.Dataset
function Dataset:slice(a, b)
  local n = #self
  b = b or n
  a, b = a < 0 and n + 1 + a or a, b < 0 and n + 1 + b or b
  a, b = math.max(a, 1), math.min(b, n)
  return make(table.move(self.list, a, b, 1, {}))
end

---The rows in another order, the same for the same seed.
---@param seed integer?
---@return perilune.Dataset
function Dataset:shuffle(seed)
  local rows, out = self.list, {}
  for i, at in ipairs(core.permutation(seed or 0, 0x73687566, #rows)) do
    out[i] = rows[at]
  end
  return make(out)
end

---Two datasets, shuffled by seed: the first holds `first` rows (a share where below 1).
---@param first number
---@param opts {seed: integer?, shuffle: boolean?}?
---@return perilune.Dataset
---@return perilune.Dataset
function Dataset:split(first, opts)
  local o = options.resolve("split", { seed = { 0 }, shuffle = { true } }, opts or {})
  local n = math.floor(first < 1 and #self * first + 0.5 or first)
  if n < 0 or n > #self then
    error(("split: wanted 0 to %d rows, got %s"):format(#self, tostring(first)), 2)
  end
  local from = o.shuffle and self:shuffle(o.seed) or self
  return from:slice(1, n), from:slice(n + 1)
end

---Writes JSONL, atomically.
---@param path string
---@return boolean
function Dataset:save(path)
  local lines = {}
  for i, row in ipairs(self.list) do
    lines[i] = core.json_encode(row)
  end
  lines[#lines + 1] = ""
  local ok, why = core.write_file(path, table.concat(lines, "\n"))
  if not ok then
    error(("save: %s"):format(why), 2)
  end
  return true
end

---SHA-256 of the content: equal rows in the same order have the same hash.
---@return string
function Dataset:hash()
  if not self.digest then
    local h = core.sha256_new()
    for _, row in ipairs(self.list) do
      h:add(core.json_encode(row))
      h:add "\n"
    end
    rawset(self, "digest", h:hex())
  end
  return self.digest
end

local function thousands(n)
  local s, k = tostring(n), nil
  repeat
    s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until k == 0
  return s
end

local function describe(rows, name)
  local texts, chars, count, kinds = 0, 0, 0, {}
  for _, row in ipairs(rows) do
    local v = row[name]
    if v ~= nil then
      count = count + 1
      if type(v) == "string" then
        texts, chars = texts + 1, chars + #v
      else
        kinds[type(v) == "table" and "list" or type(v)] = true
      end
    end
  end
  local parts = {}
  if texts > 0 then
    parts[1] = ("text, %.0f bytes on average"):format(chars / texts)
  end
  for kind in pairs(kinds) do
    parts[#parts + 1] = kind
  end
  table.sort(parts)
  local missing = #rows - count
  return table.concat(parts, " or ") .. (missing > 0 and (", missing in %d"):format(missing) or "")
end

function meta.__tostring(ds)
  local rows = ds.list
  local out = { ("Dataset: %s row%s%s"):format(thousands(#rows), #rows == 1 and "" or "s",
    ds:kind() and (" (" .. ds:kind() .. ")") or "") }
  local names, width = ds:column_names(), 0
  for _, name in ipairs(names) do
    width = math.max(width, #name)
  end
  for _, name in ipairs(names) do
    out[#out + 1] = ("  %-" .. width .. "s  %s"):format(name, describe(rows, name))
  end
  local reasons = {}
  for reason in pairs(ds.counts.dropped or {}) do
    reasons[#reasons + 1] = reason
  end
  table.sort(reasons)
  for _, reason in ipairs(reasons) do
    out[#out + 1] = ("  dropped %s: %s"):format(thousands(ds.counts.dropped[reason]), reason)
  end
  return table.concat(out, "\n")
end

return data
