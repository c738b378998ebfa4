--- The command line: `perilune COMMAND ...`. Standard output is the result, standard
--- error the talk; exit status 0, 1 for a failure, 2 for a wrong call. One command a
--- file in this folder.
local base = require("perilune.core").base
local options = require "perilune.options"
local progress = require "perilune.study.progress"

local cli = {}

local COMMANDS = { "doctor", "help", "ledger", "plan", "recipes", "run", "runs", "serve" }

cli.usage = [[
usage: perilune                                  the shell
       perilune FILE.lua [ARGUMENTS]             runs a script
       perilune run RECIPE [key=value ...]       runs a study; RECIPE is a name or a file
       perilune plan RECIPE [key=value ...]      what it would do: stages, calls, tokens, dollars, hours
       perilune help [RECIPE]                    this text, or a recipe's parameters
       perilune recipes                          the recipes that come with perilune
       perilune runs [ID]                        finished and unfinished runs
       perilune ledger [by=stage|model|day|study]   what calls of services cost
       perilune ledger export [FILE]             every call and answer as JSONL
       perilune ledger import FILE               adds those of another ledger
       perilune ledger give-up BATCH             closes a batch that its service does not know any more
       perilune doctor [openai:MODEL...]         what this machine can do; what a service honours
       perilune serve DIR [key=value ...]        an OpenAI-compatible server for a model on disk

flags: --json (run, plan, runs, ledger, doctor: one JSON object on standard output)
       --quiet (no talk)   --home=DIR (where runs are kept; default ./runs or PL_HOME)
       --profile (any command; before a script or -e too: time by op on standard error;
                  --profile=json, or with --json: one line of JSON there)]]

local FLAGS = { "--json", "--quiet", "--home=DIR", "--profile" }

-- A wrong call: exit status 2.
---@param message string
function cli.misuse(message)
  error({ misuse = message }, 0)
end

-- Flags may stand anywhere; the rest are the command's words.
local function parse(args)
  local words, flags = {}, {}
  for _, arg in ipairs(args) do
    local name, value = arg:match "^%-%-([%w-]+)=(.*)$"
    if arg == "--json" or arg == "--quiet" or arg == "--help" then
      flags[arg:sub(3)] = true
    elseif arg == "--profile" or arg == "--profile=json" then
      flags.profile = name and "json" or "text"
    elseif name == "home" and value ~= "" then
      flags.home = value
    elseif arg == "-h" then
      flags.help = true
    elseif arg:sub(1, 1) == "-" and arg ~= "-" then
      cli.misuse(options.unknown("flag", arg, table.move(FLAGS, 1, #FLAGS, 1, {})))
    else
      words[#words + 1] = arg
    end
  end
  return words, flags
end

local function dispatch(args)
  local words, flags = parse(args)
  local command = table.remove(words, 1)
  if flags.help and command ~= "help" then
    if command == "run" or command == "plan" then
      command, words = "help", { words[1] }
    else
      command, words = "help", {}
    end
  end
  if not command then cli.misuse "no command given" end
  local known = false
  for _, name in ipairs(COMMANDS) do known = known or name == command end
  if not known then cli.misuse(options.unknown("command", command, table.move(COMMANDS, 1, #COMMANDS, 1, {}))) end
  if flags.home then require("perilune.study.store").set_home(flags.home) end
  local before = progress.quiet(flags.quiet or false)
  local run = require("perilune.cli." .. command)
  local profile = flags.profile and require "perilune.profile"
  if profile then profile.start() end
  local ending <close> = base.finally(function()
    if profile then pcall(profile.stop, flags.json and "json" or flags.profile) end
    progress.quiet(before)
  end)
  return run(words, flags) or 0
end

---@param args string[] the words after the program's name
---@return integer exit status
function cli.main(args)
  local ok, problem = pcall(dispatch, args)
  if ok then
    io.stdout:flush()
    return problem
  end
  if type(problem) == "table" and problem.misuse then
    progress.say("perilune: " .. problem.misuse)
    progress.say "try: perilune help"
    return 2
  end
  progress.say("perilune: " .. tostring(problem))
  return 1
end

return cli
