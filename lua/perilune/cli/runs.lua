--- perilune runs [ID]: the runs in the home directory; with an id (its beginning is
--- enough) what that run returned and where its report is.
local base = require("perilune.core").base
local progress = require "perilune.study.progress"
local render = require("perilune.cli.table").render
local result_text = require "perilune.cli.result"
local store = require "perilune.study.store"

local function list()
  local runs = {}
  if not base.is_dir(store.home()) then return runs end
  for _, id in ipairs(base.list_dir(store.home()) or {}) do
    local dir = store.home() .. "/" .. id
    local path = dir .. "/manifest.json"
    local manifest = base.is_dir(dir) and base.exists(path) and base.json_read(path)
    if manifest then
      runs[#runs + 1] = {
        id = id, recipe = manifest.recipe, started = manifest.started, seconds = manifest.seconds, dir = dir,
        finished = base.exists(dir .. "/result.json"),
      }
    end
  end
  table.sort(runs, function(a, b)
    if a.started ~= b.started then return a.started < b.started end
    return a.id < b.id
  end)
  return runs
end

local function show(run, flags)
  local result, message = nil, nil
  if run.finished then
    local read
    read, message = base.json_read(run.dir .. "/result.json")
    if message then error(message, 0) end
    result = read
  end
  if flags.json then
    run.result = result
    io.stdout:write(base.json_encode(run), "\n")
  elseif run.finished then
    io.stdout:write(result_text(result), "\n\nreport: ", run.dir, "/report.html\n")
  else
    io.stdout:write(run.id, " did not finish; the same command goes on where it stopped\n")
  end
  return 0
end

---@param words string[]
---@param flags {json: boolean?}
return function(words, flags)
  local runs = list()
  local wanted = words[1]
  if wanted then
    local found = {}
    for _, run in ipairs(runs) do
      if run.id == wanted then return show(run, flags) end
      if run.id:sub(1, #wanted) == wanted then found[#found + 1] = run end
    end
    if #found == 1 then return show(found[1], flags) end
    error(("%s: %s in %s"):format(wanted, #found == 0 and "no such run" or ("%d runs begin so"):format(#found),
      store.home()), 0)
  end
  if flags.json then
    io.stdout:write(base.json_encode { runs = base.json_array(runs) }, "\n")
    return 0
  end
  local rows = {}
  for i, run in ipairs(runs) do
    rows[i] = { run.id, run.recipe, run.started, run.seconds and progress.duration(run.seconds) or "not finished" }
  end
  io.stdout:write(#rows > 0 and render({ "run", "recipe", "started", "took" }, rows)
    or ("no runs in " .. store.home()), "\n")
  return 0
end
