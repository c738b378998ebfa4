--- replay:FILE.jsonl: answers and verdicts that were recorded. A row is
--- {prompt, completion}, {prompt, a, b, verdict} or {prompt, answer, rating}. What
--- was not recorded, also a pair in its other order, is invalid: nothing is made up.
local base = require("perilune.core").base
local ai = require "perilune.ai"

---@class perilune.ai.Replay : perilune.ai.Provider
local Replay = {}
Replay.__index = Replay

local VERDICTS = { a = "a", b = "b", tie = "tie", invalid = "invalid" }

local function name(...) return table.concat({ ... }, "\0") end

-- Sorts one row into its table, or tells what is wrong with it.
local function take(self, row)
  if type(row) ~= "table" or type(row.prompt) ~= "string" then return "a row needs a text \"prompt\"" end
  if type(row.completion) == "string" then
    local list = self.completions[row.prompt] or {}
    self.completions[row.prompt] = list
    list[#list + 1] = { text = row.completion, finish = row.finish or "stop" }
  elseif type(row.a) == "string" and type(row.b) == "string" then
    if not VERDICTS[row.verdict] then return "\"verdict\" must be a, b, tie or invalid" end
    self.verdicts[name(row.prompt, row.a, row.b)] = row.verdict
  elseif type(row.answer) == "string" and type(row.rating) == "number" then
    self.ratings[name(row.prompt, row.answer)] = row.rating
  else
    return "a row needs \"completion\", or \"a\", \"b\" and \"verdict\", or \"answer\" and \"rating\""
  end
  return nil
end

function Replay:key() return "replay:" .. self.sum end

function Replay:demonstrate(requests)
  local out = {}
  for i, request in ipairs(requests) do
    local list = self.completions[request.prompt]
    local record = list and list[request.index or 1]
    out[i] = record or { invalid = "not recorded in " .. self.path }
  end
  return out
end

function Replay:compare(requests)
  local out = {}
  for i, request in ipairs(requests) do
    out[i] = self.verdicts[name(request.prompt, ai.text(request.a), ai.text(request.b))] or "invalid"
  end
  return out
end

function Replay:rate(requests)
  local out = {}
  for i, request in ipairs(requests) do
    out[i] = self.ratings[name(request.prompt, ai.text(request.answer))] or false
  end
  return out
end

return function(path, given)
  ai.options("replay", {}, given)
  local text, message = base.read_file(path)
  if not text then error("replay: " .. message, 0) end
  local self = setmetatable({
    path = path, sum = base.sha256(text), completions = {}, verdicts = {}, ratings = {},
  }, Replay)
  local n = 0
  for line in (text:sub(-1) == "\n" and text or text .. "\n"):gmatch "(.-)\n" do
    n = n + 1
    if line:find "%S" then
      local where = ("%s:%d"):format(path, n)
      local row, bad = base.json_decode(line, where)
      if row == nil then error(bad, 0) end
      bad = take(self, row)
      if bad then error(("%s: %s"):format(where, bad), 0) end
    end
  end
  return self
end
