--- pl.ai(spec): a client of a teacher or critic, whatever stands behind it.
---   pl.ai "oracle:0.9"            built in, for the built-in world
---   pl.ai "local:DIR?temperature=1.5"   a model on disk
---   pl.ai "replay:FILE.jsonl"     what was recorded
---   pl.ai "openai:MODEL", "anthropic:MODEL", "gemini:MODEL"      a service over HTTP
---   pl.ai "openai:MODEL@http://127.0.0.1:8080/v1"                a server that speaks the same
---   pl.ai(function(request) ... end)    any Lua function
--- A client answers lists of requests, so that a provider may batch or overlap
--- them. One provider a file in providers/; this file knows none of their ways.
local base = require("perilune.core").base
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
--- Replies, one a request: {text, ids?, finish} or {invalid = reason}; "a", "b", "tie", "invalid" or
--- the probability that the first shown is better; a number, or false for invalid.
---@field demonstrate? fun(self, requests: perilune.ai.Request[], opts: table): table[]
---@field compare? fun(self, requests: perilune.ai.Request[], opts: table): (string|number)[]
---@field rate? fun(self, requests: perilune.ai.Request[], opts: table): (number|false)[]
--- The judge prompt for opts.template, or an error; a provider without this takes no judge prompt.
---@field template? fun(self, task: string, opts: table): perilune.feedback.Template
---@field check? fun(self, task: "compare"|"rate") raises where its options do not allow it to judge
--- It takes all requests of a stage at once, calls opts.on_progress(done, figures?) as they are answered
--- and opts.on_invalid(text) for a judge's answer that is no verdict, and lets itself be interrupted.
---@field whole? boolean

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
      if given[k] ~= nil then error(("pl.ai: %s: option %s is given twice"):format(spec, k), 0) end
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

---Raises where the client cannot judge as a stage will ask it to: a judge prompt that it does not
---take, or that there is not, or options of its own that are not for judging.
---@param task "compare"|"rate"
---@param opts {template: string?}
function Client:check(task, opts)
  if self.provider.check then self.provider:check(task) end
  if self.provider.template then
    self.provider:template(task, opts)
  elseif opts.template ~= nil then
    error(("%s takes no judge prompt: option template = %q is for AI services, which are asked in words"):format(
      self.name, opts.template), 0)
  end
end

-- Requests a call to a provider that answers one after the other: few enough to show progress and
-- to be interrupted, enough to batch.
local CHUNK = 256

-- Replies to all requests, `size` at a time (default: in one call).
local function ask(self, task, requests, opts, size)
  local answer, out = self.provider[task], {}
  if not answer then error(("%s cannot %s"):format(self.name, task), 0) end
  size = size or math.max(1, #requests)
  for first = 1, #requests, size do
    base.check_interrupt()
    local some = table.move(requests, first, math.min(first + size - 1, #requests), 1, {})
    local replies = answer(self.provider, some, opts)
    if #replies ~= #some then
      error(("%s: %d answers to %d requests"):format(self.name, #replies, #some), 0)
    end
    table.move(replies, 1, #replies, first, out)
    if opts.on_progress and not self.provider.whole then opts.on_progress(#out) end
  end
  return out
end

---Answers to prompts: {text, ids?, finish} each, or {invalid = reason}.
function Client:demonstrate(requests, opts) return ask(self, "demonstrate", requests, opts or {}) end

local function judged(task)
  return function(self, requests, opts)
    opts = opts or {}
    self:check(task, opts)
    return ask(self, task, requests, opts, not self.provider.whole and CHUNK or nil)
  end
end

---Verdicts: "a", "b", "tie", "invalid" or the probability that the first shown is better.
Client.compare = judged "compare"
---Numbers, false where the answer was no number.
Client.rate = judged "rate"

---What a stage's calls will be, for `perilune plan`; nothing is sent.
---@param task "demonstrate"|"compare"|"rate"
---@param requests perilune.ai.Request[]
---@param opts table
---@return table estimate {calls, tokens, ...}; a service adds what perilune.ai.plan tells
function Client:plan(task, requests, opts)
  if self.provider.plan then return self.provider:plan(task, requests, opts) end
  return { calls = #requests }
end

---The most dollars that this process may spend on services outside of recipes, which have
---`budget=`. nil: no limit.
---@param dollars number|nil
function ai.budget(dollars)
  if dollars ~= nil and (type(dollars) ~= "number" or dollars ~= dollars or dollars < 0) then
    error("pl.ai.budget: must be dollars (0 or more) or nil, got " .. tostring(dollars), 2)
  end
  require("perilune.ai.budget").script = dollars
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
