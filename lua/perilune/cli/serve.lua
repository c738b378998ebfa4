--- perilune serve DIR [key=value ...]: an OpenAI-compatible server for a model on disk.
local base = require("perilune.core").base
local cli = require "perilune.cli"
local options = require "perilune.options"
local progress = require "perilune.study.progress"

local TOKEN_ENV = "PERILUNE_TOKEN"

local SPEC = {
  port = { 8080, min = 0, max = 65535, doc = "0 takes any free one" },
  address = { "127.0.0.1", doc = "of this machine; beyond loopback a token is needed" },
  name = { type = "string", doc = "what the model is called; default: the directory's name" },
  template = { type = "string", choices = { "chatml", "llama3", "paper", "plain" },
    doc = "of chats; default: what the model's files ask for, else plain" },
  batch_size = { 64, min = 1, max = 4096, doc = "answers that run at a time" },
  dtype = { "f32", choices = { "f32", "bf16", "int8" },
    doc = "numbers of the weights: bf16 and int8 are faster and rounded" },
  max_queue = { 512, min = 0, max = 65536, doc = "answers that may wait; more get status 429" },
  token_env = { type = "string", doc = "environment variable with the token that clients must send; default: "
    .. TOKEN_ENV .. " where it is set" },
}

local function parse(words)
  local given = {}
  for _, word in ipairs(words) do
    local key, value = word:match "^([^=]+)=(.*)$"
    if not key then cli.misuse(("serve: %q is no option; write key=value"):format(word)) end
    if given[key] ~= nil then cli.misuse(("serve: %s is given twice"):format(key)) end
    local row = SPEC[key]
    local numeric = row and math.type(row[1]) == "integer"
    given[key] = numeric and (math.tointeger(tonumber(value)) or value) or value
  end
  local ok, o = pcall(options.resolve, "serve", SPEC, given)
  if not ok then cli.misuse(o) end
  return o
end

local function shown_address(address)
  return address:find(":", 1, true) and "[" .. address .. "]" or address
end

---@param words string[]
return function(words)
  local dir = words[1]
  if not dir or dir:find("=", 1, true) then
    cli.misuse("serve what? the directory of a model: perilune serve DIR [key=value ...], with\n  "
      .. table.concat(options.describe(SPEC), "\n  "))
  end
  local o = parse(table.move(words, 2, #words, 1, {}))
  local model = require("perilune.models").load(dir)
  o.name = o.name or (base.realpath(dir) or dir):match "([^/]+)/*$"
  o.token_optional = o.token_env == nil
  o.token_env = o.token_env or TOKEN_ENV
  local server <close> = require("perilune.serve").new(model, o)
  local ctx = server.ctx
  progress.say(("serve: %s at http://%s:%d/v1  template %s  (Ctrl-C ends)"):format(ctx.name, shown_address(o.address),
    server:port(), ctx.template_name))
  if ctx.no_template then progress.say("serve: chat completions are refused: " .. ctx.no_template) end
  server:run()
  return 0
end
