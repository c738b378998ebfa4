--- pl.ai(spec): a client of a teacher or critic, whatever stands behind it.
---   pl.ai "oracle:0.9"            built in, for the built-in world
---   pl.ai "local:DIR?temperature=1.5"   a model on disk
---   pl.ai "replay:FILE.jsonl"     what was recorded
---   pl.ai "openai:MODEL", "anthropic:MODEL", "gemini:MODEL"      a service over HTTP
---   pl.ai "openai:MODEL@http://127.0.0.1:8080/v1"                a server that speaks the same
---   pl.ai(function(request) ... end)    any Lua function
--- A client answers lists of requests, so that a provider may batch or overlap
--- them. One provider a file in providers/; this file knows none of their ways.
local options = require "perilune.options"

---@class perilune.ai.Request
---@field task "demonstrate"|"compare"|"rate"
---@field prompt string
---@field index? integer which sample of this prompt (demonstrate)
---@field a? any first answer: text, or {text, ids} (compare)
---@field b? any second answer
---@field answer? any (rate)

---@class perilune.ai.Provider
---@field key? fun(self): string|nil, string|nil what it is, for the keys of stages; nil and a reason if unknown
--- Replies, one a request: {text, ids?, finish} or {invalid = reason}; "a", "b", "tie" or
--- "invalid"; a number, or false for invalid.
---@field demonstrate? fun(self, requests: perilune.ai.Request[], opts: table): table[]
---@field compare? fun(self, requests: perilune.ai.Request[], opts: table): string[]
---@field rate? fun(self, requests: perilune.ai.Request[], opts: table): (number|false)[]

local BUILT_IN = { "anthropic", "func", "gemini", "local", "openai", "oracle", "replay" }

---@class perilune.ai.Client
---@field name string the spec it was made from
local Client = {}
Client.__index = Client
Client.__name = "perilune.ai.Client"

local constructors = {}

local ai = {}

---Adds a provider: `pl.ai.register("mine", function(rest, given, spec) return provider end)`
---serves "mine:rest?key=value".
---@param name string
---@param constructor fun(rest: string, given: table<string, string>, spec: any): perilune.ai.Provider
function ai.register(name, constructor)
  if type(name) ~= "string" or not name:match "^[%a][%w_-]*$" then
    error("pl.ai.register: the name must be a word, got " .. tostring(name), 2)
  end
  if type(constructor) ~= "function" then error("pl.ai.register: the constructor must be a function", 2) end
  constructors[name] = constructor
end

local function constructor(name)
  if constructors[name] then return constructors[name] end
  for _, built_in in ipairs(BUILT_IN) do
    if built_in == name then return require("perilune.ai.providers." .. name) end
  end
  local known = {}
  for _, built_in in ipairs(BUILT_IN) do
    if built_in ~= "func" then known[#known + 1] = built_in end
  end
  for registered in pairs(constructors) do known[#known + 1] = registered end
  error(("pl.ai: %s; a spec is PROVIDER:WHAT, such as oracle:0.9 or local:DIR"):format(
    options.unknown("provider", name, known)), 0)
end

-- "local:DIR?temperature=1.5&max_tokens=8" -> "local", "DIR", {temperature = "1.5", ...}
local function parse(spec)
  local name, rest = spec:match "^([%a][%w_-]*):(.*)$"
  if not name then name, rest = spec, "" end
  local given, path = {}, rest
  local where, query = rest:match "^(.-)%?(.*)$"
  if where then
    path = where
    for pair in query:gmatch "[^&]+" do
      local k, v = pair:match "^([^=]+)=(.*)$"
      if not k then error(("pl.ai: %s: %q is not key=value"):format(spec, pair), 0) end
      given[k] = v
    end
  end
  return name, path, given
end

---A client for a spec, a Lua function, a model, or a client itself.
---@param spec any
---@param more? table<string, any> options beside those in the spec: pl.ai("openai:gpt-4o", { temperature = 0 })
---@return perilune.ai.Client
function ai.client(spec, more)
  if getmetatable(spec) == Client then return spec end
  local name, rest, given, shown
  if type(spec) == "string" then
    name, rest, given = parse(spec)
    shown = spec
  elseif type(spec) == "function" then
    name, rest, given, shown = "func", "", {}, "a Lua function"
  elseif type(spec) == "table" and (spec.generate or getmetatable(spec) and getmetatable(spec).__call) then
    name = spec.generate and "local" or "func"
    rest, given, shown = "", {}, spec.generate and "a model" or "a Lua function"
  else
    error("pl.ai: needs a spec such as \"oracle:0.9\", a Lua function or a model, got a " .. type(spec), 2)
  end
  if name == "func" and type(spec) == "string" then
    error("pl.ai: a Lua function is passed as it is: pl.ai(function(request) ... end)", 2)
  end
  for key, value in pairs(more or {}) do
    if given[key] ~= nil then error(("pl.ai: %s: option %s is given twice"):format(shown, key), 2) end
    given[key] = value
  end
  local ok, provider = pcall(function() return constructor(name)(rest, given, spec) end)
  if not ok then error(provider, 0) end
  return setmetatable({ name = shown, provider = provider }, Client)
end

---What identifies the client in the key of a stage.
---@return string|nil key
---@return string|nil reason why there is none
function Client:key()
  if not self.provider.key then return nil, self.name .. " (its provider tells no key)" end
  return self.provider:key()
end

function Client:__tostring() return "client of " .. self.name end

local function ask(task)
  return function(self, requests, opts)
    local answer = self.provider[task]
    if not answer then error(("%s cannot %s"):format(self.name, task), 0) end
    local replies = answer(self.provider, requests, opts or {})
    if #replies ~= #requests then
      error(("%s: %d answers to %d requests"):format(self.name, #replies, #requests), 0)
    end
    return replies
  end
end

---Answers to prompts: {text, ids?, finish} each, or {invalid = reason}.
Client.demonstrate = ask "demonstrate"
---Verdicts: "a", "b", "tie" or "invalid".
Client.compare = ask "compare"
---Numbers, false where the answer was no number.
Client.rate = ask "rate"

---What a stage's calls will be, for `perilune plan`; nothing is sent.
---@param task "demonstrate"|"compare"|"rate"
---@param requests perilune.ai.Request[]
---@param opts table
---@return table estimate {calls, tokens, ...}; a service adds what perilune.ai.plan tells
function Client:plan(task, requests, opts)
  if self.provider.plan then return self.provider:plan(task, requests, opts) end
  return { calls = #requests }
end

---The text of an answer, which is a string or {text = ...}.
---@param answer any
---@return string
function ai.text(answer)
  return type(answer) == "table" and answer.text or answer
end

local TRUTH = { ["true"] = true, yes = true, on = true, ["false"] = false, no = false, off = false }

---Reads a provider's own options from the words of a spec.
---@param where string
---@param rows table<string, table> as for perilune.options
---@param given table<string, string>
---@return table
function ai.options(where, rows, given)
  local values = {}
  for name, word in pairs(given) do
    local row = rows[name]
    local text = row and row.type == "string"
    if type(word) == "string" and not text then
      values[name] = tonumber(word)
      if values[name] == nil and TRUTH[word] ~= nil then values[name] = TRUTH[word] end
    end
    if values[name] == nil then values[name] = word end
  end
  return options.resolve(where, rows, values)
end

return setmetatable(ai, { __call = function(_, spec, more) return ai.client(spec, more) end })
