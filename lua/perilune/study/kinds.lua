--- What a stage's value looks like on disk, one kind a table: `save(value, dir)`
--- fills a directory and returns what to note of the value, `load(entry)` brings
--- the value back. Models and datasets come back as handles that read the disk on
--- first touch: a second run of a study mostly needs only their hashes.
local base = require("perilune.core").base

local kinds = {}

local function must(ok, message)
  if ok == nil or ok == false then error(message or "a file operation failed", 0) end
  return ok
end

local function write_lines(path, rows)
  local lines = {}
  for i = 1, #rows do lines[i] = base.json_encode(rows[i]) end
  lines[#lines + 1] = ""
  must(base.write_file(path, table.concat(lines, "\n")))
end

local function read_lines(path)
  local rows, n = {}, 0
  local text = must(base.read_file(path))
  for line in text:gmatch "[^\n]+" do
    n = n + 1
    rows[n] = must(base.json_decode(line, ("%s:%d"):format(path, n)))
  end
  return rows
end

-- A model that is read from disk when anything but a known field is asked of it. Its
-- methods can be named without that; calling one reads it.
local function lazily(known, load)
  local handle = {}
  local function real()
    setmetatable(handle, nil)
    local value = load()
    for k, v in next, value do rawset(handle, k, v) end
    rawset(handle, "history", known.history)
    return setmetatable(handle, getmetatable(value))
  end
  local class = require "perilune.model"
  return setmetatable(handle, {
    __index = function(_, k)
      if known[k] ~= nil then return known[k] end
      if type(class[k]) == "function" then
        return function(self, ...)
          real()
          return class[k](self, ...)
        end
      end
      return real()[k]
    end,
    __newindex = function(_, k, v) real()[k] = v end,
    __tostring = function() return tostring(real()) end,
  })
end

kinds.model = {
  save = function(model, dir)
    must(model:save(dir .. "/model"))
    local history, frozen = model.history or {}, model:frozen()
    write_lines(dir .. "/history.jsonl", history)
    return { hash = model:hash(), meta = { frozen = frozen, summary = history.summary } }
  end,
  load = function(entry)
    local meta = entry.meta or {}
    local frozen = meta.frozen or {}
    return lazily({
      hash = function() return entry.hash end,
      frozen = function() return frozen end,
      -- the totals are no record: they stand behind the list, as training left them
      history = setmetatable(read_lines(entry.dir .. "/history.jsonl"), { __index = { summary = meta.summary } }),
    }, function() return require("perilune.models").load(entry.dir .. "/model"):freeze(frozen) end)
  end,
}

kinds.dataset = {
  save = function(dataset, dir)
    write_lines(dir .. "/rows.jsonl", dataset)
    return { hash = dataset:hash(), meta = { counts = dataset.counts } }
  end,
  load = function(entry)
    return require("perilune.data").deferred {
      hash = entry.hash, counts = (entry.meta or {}).counts,
      load = function() return read_lines(entry.dir .. "/rows.jsonl") end,
    }
  end,
}

kinds.table = {
  save = function(value, dir)
    must(base.write_file(dir .. "/value.json", base.json_encode({ value = value }) .. "\n"))
    return {}
  end,
  load = function(entry) return must(base.json_read(entry.dir .. "/value.json")).value end,
}

return kinds
