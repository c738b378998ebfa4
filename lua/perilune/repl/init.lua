--- The session's Lua half: reads an entry, runs it, prints what came. The line
--- editor and Ctrl-C are the host's (src/host/repl.c). Nothing here patches
--- print, require or _G: the session's variables live in a table of their own.
local commands = require "perilune.repl.commands"
local options = require "perilune.options"
local show = require "perilune.repl.show"

local repl = {}

-- Variables of the session over _G. Reading what does not exist is an error
-- with a suggestion; assigning creates only at the top level.
local function new_env()
  local env = { pl = require "perilune" }
  local meta = {}
  function meta.__index(_, key)
    local v = _G[key]
    if v ~= nil or key == "_" then return v end
    local names = {}
    for _, from in ipairs { env, _G } do
      for name in next, from do
        if type(name) == "string" then names[#names + 1] = name end
      end
    end
    local near = options.nearest(tostring(key), names)
    error(("undefined variable '%s'%s"):format(tostring(key), near and (" (did you mean '%s'?)"):format(near) or ""), 2)
  end
  function meta.__newindex(t, key, v)
    local info = debug.getinfo(2, "S")
    if info and info.what == "Lua" then
      error(("assignment to undefined variable '%s' inside a function: declare it with local, "
        .. "or assign to it once at the top level"):format(tostring(key)), 2)
    end
    rawset(t, key, v)
  end
  return setmetatable(env, meta)
end

---Compiles an entry: as an expression first, else as a statement.
---@param text string
---@param env table
---@return function|nil chunk
---@return string|nil message
---@return boolean incomplete more lines are needed
---@return boolean is_expression
function repl.compile(text, env)
  -- With a newline an open quote is an error of its own; without it would look unfinished.
  local f, first = load("return " .. text .. "\n", "=session", "t", env)
  if f then return f, nil, false, true end
  local g, second = load(text .. "\n", "=session", "t", env)
  if g then return g, nil, false, false end
  local open = "<eof>'?$"
  return nil, second, first:find(open) ~= nil or second:find(open) ~= nil, false
end

-- Is the last thing on the line a ; outside of strings and comments? Then the value is not shown.
local function silenced(text)
  return text:find(";%s*$") ~= nil
end

---@class perilune.repl.Host
---@field readline fun(prompt: string): string|nil, string|nil
---@field add_history fun(entry: string)
---@field call fun(f: function, ...): boolean, ...
---@field edits boolean is there a line editor (a terminal)?

local function report(state, message)
  io.stdout:flush()
  io.stderr:write(state.paint("red", tostring(message)), "\n")
end

-- Runs a compiled entry and shows its values.
local function run(state, chunk, is_expression, quiet)
  local start = state.base.now()
  local results = table.pack(state.host.call(chunk))
  local seconds = state.base.now() - start
  if not results[1] then
    report(state, results[2])
    return
  end
  if is_expression and results.n > 1 then
    rawset(state.env, "_", results[2])
    if not quiet then
      local ok, message = state.host.call(function()
        for i = 2, results.n do
          io.write(show.value(results[i], state.show), "\n")
        end
      end)
      if not ok then report(state, message) end
    end
  end
  if seconds > 0.1 then
    io.write(state.paint("dim", ("(%.2f s)"):format(seconds)), "\n")
  end
end

-- One entry, over as many lines as it needs. Returns false when the session is over.
local function step(state)
  local lines = {}
  while true do
    local line, why = state.host.readline(#lines == 0 and state.prompt or state.more)
    if not line then
      if why == "interrupt" then return true end
      if #lines > 0 and why == nil then
        local _, message = repl.compile(table.concat(lines, "\n"), state.env)
        report(state, message)
      end
      return false
    end
    lines[#lines + 1] = line
    local text = table.concat(lines, "\n")
    if #lines == 1 and not text:find "%S" then return true end
    if #lines == 1 and commands.is_command(text) then
      state.host.add_history(text)
      local ok, again = state.host.call(commands.run, state, text)
      if not ok then report(state, again) end
      return not ok or again ~= "quit"
    end
    local chunk, message, incomplete, is_expression = repl.compile(text, state.env)
    if chunk then
      state.host.add_history(text)
      run(state, chunk, is_expression, silenced(text))
      return true
    elseif not incomplete then
      state.host.add_history(text)
      report(state, message)
      return true
    end
  end
end

---Begins a session.
---@param host perilune.repl.Host
---@return fun(): boolean step reads and runs one entry; false ends the session
function repl.start(host)
  local base = require("perilune.core").base
  local color = host.edits and not os.getenv "NO_COLOR"
  local state = {
    host = host,
    base = base,
    env = new_env(),
    paint = show.painter(color),
    show = { color = color },
    prompt = host.edits and "> " or "",
    more = host.edits and ">> " or "",
  }
  require("perilune.repl.complete").use(state.env)
  if host.edits then
    print(("perilune %s on %s. pl is loaded; ?NAME explains, :help lists commands, :quit leaves."):format(
      state.env.pl.version, _VERSION))
  end
  return function() return step(state) end
end

return repl
