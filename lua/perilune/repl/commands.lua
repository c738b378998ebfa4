--- What is no Lua in the session: ?name and ??name, and :commands. An entry that
--- begins so never compiles as Lua (only ::label:: does), so nothing is shadowed.
local base = require("perilune.core").base
local options = require "perilune.options"
local show = require "perilune.repl.show"

local commands = {}

local list = {}

local help_text = [[
?NAME          what it does: ?randn, ?x:matmul, ?pl.train.sft      ??NAME  its source
:time EXPR     how long it takes, over several runs
:load FILE     runs a file; its globals stay      :reload [MODULE]  runs it, or loads a module, again
:ls [TEXT]     variables of the session           :mem              memory in use
:quit          leaves (so does Ctrl-D)
A value is printed and kept in _; a ; at the end keeps it silent. Ctrl-C stops what runs.]]

---@param text string
---@return boolean
function commands.is_command(text)
  return text:find "^%s*%?" ~= nil or text:find "^%s*:%a" ~= nil
end

function list.help()
  print(help_text)
end

function list.quit()
  return "quit"
end

function list.time(state, rest)
  if rest == "" then error(":time wants an expression, for example :time x:matmul(y)", 0) end
  local f, message = load("return " .. rest .. "\n", "=session", "t", state.env)
  if not f then f, message = load(rest .. "\n", "=session", "t", state.env) end
  if not f then error(message, 0) end
  local best, total, n = math.huge, 0, 0
  while n < 3 or (total < 0.5 and n < 1000) do
    local start = base.now()
    f()
    local seconds = base.now() - start
    best, total, n = math.min(best, seconds), total + seconds, n + 1
    if total > 10 then break end
  end
  local function human(s)
    if s >= 1 then return ("%.2f s"):format(s) end
    if s >= 1e-3 then return ("%.2f ms"):format(s * 1e3) end
    return ("%.1f us"):format(s * 1e6)
  end
  print(("best %s, mean %s of %d runs"):format(human(best), human(total / n), n))
end

local function run_file(state, path)
  local text, message = base.read_file(path)
  if not text then error(message, 0) end
  text = text:gsub("^#[^\n]*", "")
  local f, wrong = load(text, "@" .. path, "t", state.env)
  if not f then error(wrong, 0) end
  f()
end

function list.load(state, rest)
  if rest == "" then error(":load wants a file", 0) end
  run_file(state, rest)
  state.last_file = rest
end

function list.reload(state, rest)
  if rest == "" then
    if not state.last_file then error(":reload: nothing was loaded yet; use :load FILE", 0) end
    return run_file(state, state.last_file)
  end
  if package.loaded[rest] == nil then
    local names = {}
    for name in pairs(package.loaded) do names[#names + 1] = name end
    error(":reload: " .. options.unknown("module", rest, names), 0)
  end
  if rest == "perilune.core" then error(":reload: perilune.core is C and stays loaded", 0) end
  local old = package.loaded[rest]
  package.loaded[rest] = nil
  local ok, new = pcall(require, rest)
  if not ok then
    package.loaded[rest] = old
    error(new, 0)
  end
  -- who holds the old table sees the new functions
  if type(old) == "table" and type(new) == "table" then
    for k, v in pairs(new) do old[k] = v end
    package.loaded[rest] = old
  end
end

function list.ls(state, rest)
  local names = {}
  for name in next, state.env do
    if type(name) == "string" and name:find(rest, 1, true) and name ~= "pl" then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    print(("%-16s %s"):format(name, show.brief(rawget(state.env, name))))
  end
  if #names == 0 then print "(no variables yet)" end
end

function list.mem()
  local m = base.memory()
  print(("tensors and buffers %.1f MB (peak %.1f MB), Lua %.1f MB, process peak %.1f MB"):format(
    m.live / 1e6, m.peak / 1e6, collectgarbage "count" * 1024 / 1e6, m.rss_peak / 1e6))
end

---Runs an entry that is no Lua. Raises on a wrong one.
---@param state table
---@param text string
---@return string|nil # "quit" ends the session
function commands.run(state, text)
  local marks, name = text:match "^%s*(%?+)%s*(.-)%s*$"
  if marks then
    if name == "" then return list.help() end
    local help = require "perilune.help"
    print(#marks == 1 and help.text(name, state.env) or help.source(name, state.env))
    return nil
  end
  local command, rest = text:match "^%s*:(%a+)%s*(.-)%s*$"
  if not list[command] then
    local names = {}
    for k in pairs(list) do names[#names + 1] = k end
    error(options.unknown("command", command, names), 0)
  end
  return list[command](state, rest)
end

return commands
