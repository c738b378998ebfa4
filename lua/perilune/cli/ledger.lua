--- perilune ledger [by=stage|model|day|study]: what the calls of services cost.
--- perilune ledger export [FILE], import FILE: the calls and their answers as JSONL.
--- perilune ledger give-up BATCH: closes a batch that its service does not know any more.
local base = require("perilune.core").base
local cli = require "perilune.cli"
local ledger = require "perilune.ai.ledger"
local options = require "perilune.options"
local progress = require "perilune.study.progress"
local render = require("perilune.cli.table").render

local BY = { "stage", "model", "day", "study" }

local SUMS = {
  "calls", "attempts", "possibly_paid", "prompt_tokens", "completion_tokens", "usd", "usd_possibly", "unknown_price",
  "seconds",
}
local TITLES = {
  "calls", "attempts", "possibly paid", "tokens in", "tokens out", "USD", "USD possibly", "price unknown", "seconds",
}

local function must(ok, message)
  if not ok then error(message, 0) end
  return ok
end

local function cell(name, value)
  if name == "usd" or name == "usd_possibly" then return ("%.4f"):format(value) end
  if name == "seconds" then return ("%.1f"):format(value) end
  return tostring(value)
end

local function summary(words, flags)
  local by = "stage"
  for _, word in ipairs(words) do
    local name, value = word:match "^(%w+)=(.*)$"
    if name ~= "by" then cli.misuse(options.unknown("word", word, { "by=stage", "export", "import", "give-up" })) end
    by = value
  end
  local known = false
  for _, name in ipairs(BY) do known = known or name == by end
  if not known then cli.misuse(options.unknown("choice of by", by, BY)) end
  local path, rows = ledger.path(), {}
  local there = base.exists(path)
  if there then rows = ledger.default():summary { by = by } end
  local total = {}
  for _, name in ipairs(SUMS) do
    total[name] = 0
    for _, row in ipairs(rows) do total[name] = total[name] + row[name] end
  end
  if flags.json then
    io.stdout:write(base.json_encode { ledger = path, by = by, rows = base.json_array(rows), total = total }, "\n")
    return 0
  end
  if #rows == 0 then
    io.stdout:write(there and "no calls in " or "no ledger yet, so no calls: ", path, "\n")
    return 0
  end
  local lines = {}
  total[by] = "total"
  for i, row in ipairs(table.move({ total }, 1, 1, #rows + 1, rows)) do
    lines[i] = { row[by] }
    for c, name in ipairs(SUMS) do lines[i][c + 1] = cell(name, row[name]) end
  end
  io.stdout:write(render({ by == "day" and "day (UTC)" or by, table.unpack(TITLES) }, lines), "\n")
  if total.unknown_price > 0 then
    io.stdout:write(("\nthe price of %d attempt%s is unknown: the dollars are without %s\n"):format(total.unknown_price,
      total.unknown_price == 1 and "" or "s", total.unknown_price == 1 and "it" or "them"))
  end
  return 0
end

local function existing()
  local path = ledger.path()
  if not base.exists(path) then error(path .. ": there is no ledger yet", 0) end
  return ledger.default()
end

-- To write the export over the ledger would be the end of both.
local function refuse_own(l, file)
  local target = base.realpath(file)
  for _, suffix in ipairs { "", "-wal", "-shm" } do
    if target and target == base.realpath(l.path .. suffix) then
      error(file .. ": is the ledger itself; name another file for the export", 0)
    end
  end
end

local function export(words)
  if #words > 1 then cli.misuse "ledger export takes one file, or none for standard output" end
  local l, file = existing(), words[1]
  if not file then
    l:export(function(line) io.stdout:write(line) end)
    return 0
  end
  refuse_own(l, file)
  local writer <close> = must(base.writer(file))
  local n = l:export(function(line) must(writer:add(line)) end)
  must(writer:commit())
  progress.say(("%s: %d attempts"):format(file, n))
  return 0
end

local SECRET = {
  adopted = "its secret was taken over, so judge prompts stay the same bytes",
  kept = "this ledger keeps its own secret: judge prompts with fences from the imported one will be asked again",
}

local function import(words)
  if #words ~= 1 then cli.misuse "ledger import takes one file" end
  local file <close> = must(io.open(words[1], "r"))
  local l = ledger.default()
  local ok, done = pcall(l.import, l, file:lines())
  if not ok then error(("%s: %s"):format(words[1], done), 0) end
  progress.say(("%s: %d new attempts, %d brought up to date, %d known already"):format(words[1], done.new, done.updated,
    done.known))
  if done.double > 0 then
    progress.say(("%d of the answers were to calls that had one here; these count as spending only"):format(done.double))
  end
  if SECRET[done.secret] then progress.say(SECRET[done.secret]) end
  return 0
end

local function give_up(words)
  if #words ~= 1 then cli.misuse "ledger give-up takes the service's name of a batch" end
  local l = existing()
  local calls = l:give_up(words[1])
  if not calls then error(("%s: no batch %s is open"):format(l.path, words[1]), 0) end
  progress.say(("%s: %d calls count as possibly paid, and can be asked again"):format(words[1], calls))
  return 0
end

local VERBS = { export = export, import = import, ["give-up"] = give_up }

---@param words string[]
---@param flags {json: boolean?}
return function(words, flags)
  local verb = words[1]
  if VERBS[verb] then
    if flags.json then
      cli.misuse(("ledger %s has no --json%s"):format(verb, verb == "give-up" and "" or ": it is JSONL already"))
    end
    return VERBS[verb](table.move(words, 2, #words, 1, {}))
  end
  return summary(words, flags)
end
