--- One run of a recipe and the trail it leaves: runs/NAME-ID/ with the resolved
--- parameters, a copy of the recipe, the manifest, and one JSON object a line of
--- metrics, samples, verdicts and stages. The report is made of what is noted here.
local base = require("perilune.core").base
local hash = require "perilune.study.hash"
local store = require "perilune.study.store"

---@class perilune.study.Run
---@field id string name of the run directory
---@field dir string
---@field planning boolean true under `perilune plan`
---@field study string what paid calls are filed under: the recipe and its parameters, but not the budget
---@field stages table[] the ledger: name, arm, seed, state, seconds, calls
---@field curves_of table[] histories of train stages
---@field sections table[] what the recipe asked the report to show
---@field logged table[] rows of run:log
---@field verdicts table[] {arm, seed, name, result}
---@field bill table|nil what services were paid: as ledger's spent, with .stages
local Run = {}
Run.__index = Run

local function must(ok, message)
  if ok == nil or ok == false then error(message or "a file operation failed", 0) end
  return ok
end

local function copy(t)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  return out
end

-- Parameters that name a file or a model directory, with the hash of its bytes.
local function data_hashes(params)
  local out = {}
  for name, value in pairs(params) do
    local path = type(value) == "string" and value:gsub("^%a[%w_-]*:", ""):gsub("%?.*$", "")
    if path and path ~= "" and base.exists(path) then
      if not base.is_dir(path) then
        out[name] = hash.file(path)
      elseif base.exists(path .. "/config.json") then
        out[name] = hash.model_dir(path)
      end
    end
  end
  return out
end

local function manifest(run)
  local recipe = run.recipe
  return {
    recipe = recipe.name, file = recipe.source, recipe_sha256 = recipe.bytes and base.sha256(recipe.bytes) or nil,
    perilune = require("perilune").version, lua = _VERSION, code_version = hash.code_version(),
    processor = base.cpu_name(), kernels = base.isa(), threads = base.threads(),
    started = os.date "!%Y-%m-%dT%H:%M:%SZ",
    parameters = run.params, data = data_hashes(run.params),
  }
end

-- Runs sort by time; two in one second get a counter. Who makes the directory has it: other processes
-- start runs, too.
local function new_dir(name, params)
  local mark = assert(hash.of(params)):sub(1, 6)
  local stem = ("%s-%s-%s"):format(name, os.date "!%Y%m%d-%H%M%S", mark)
  must(base.mkdirs(store.home()))
  for n = 1, math.huge do
    local id = n == 1 and stem or ("%s-%d"):format(stem, n)
    local dir = store.home() .. "/" .. id
    local made, message = base.mkdir(dir)
    if made == nil then error(message, 0) end
    if made then return id, dir end
  end
end

---@param recipe perilune.study.Recipe
---@param params table resolved parameters
---@param opts {planning: boolean?}
---@return perilune.study.Run
function Run.new(recipe, params, opts)
  local run = setmetatable({
    recipe = recipe, params = params, planning = opts.planning or false, began = base.now(), context = {},
    stages = {}, plan = {}, curves_of = {}, sections = {}, logged = {}, verdicts = {}, files = {},
  }, Run)
  local identity = copy(params)
  identity.budget = nil
  run.study = ("%s-%s"):format(recipe.name, assert(hash.of(identity)):sub(1, 8))
  if run.planning then return run end
  run.id, run.dir = new_dir(recipe.name, params)
  must(base.write_file(run.dir .. "/config.resolved.json", base.json_encode(params, { indent = 2 }) .. "\n"))
  must(base.write_file(run.dir .. "/recipe.lua", recipe.bytes or ""))
  run.facts = manifest(run)
  run:write_manifest()
  return run
end

function Run:write_manifest()
  must(base.write_file(self.dir .. "/manifest.json", base.json_encode(self.facts, { indent = 2 }) .. "\n"))
end

function Run:handle(file)
  local handle = self.files[file]
  if not handle then
    handle = must(io.open(self.dir .. "/" .. file, "a"))
    handle:setvbuf "full"
    self.files[file] = handle
  end
  return handle
end

-- Flushed at once: a killed run leaves at most its last line torn.
function Run:append(file, rows)
  if self.planning or #rows == 0 then return end
  local handle = self:handle(file)
  for _, row in ipairs(rows) do
    must(handle:write(base.json_encode(row), "\n"))
  end
  must(handle:flush())
end

-- Lines of JSON objects that a stage kept, with the arm and seed of this place put in front.
function Run:append_lines(file, text)
  if text == "" then return end
  local here = base.json_encode { arm = self.context.arm, seed = self.context.seed }
  local front = here == "{}" and "{" or here:sub(1, -2) .. ","
  local handle = self:handle(file)
  must(handle:write((("\n" .. text):gsub("\n{", function() return "\n" .. front end):sub(2))))
  must(handle:flush())
end

---Names what the following stages belong to: shown beside them everywhere.
---@param context {arm: string?, seed: any?} `run:at{}` clears
function Run:at(context)
  for name in pairs(context) do
    if name ~= "arm" and name ~= "seed" then
      error("run:at: " .. require("perilune.options").unknown("option", name, { "arm", "seed" }), 2)
    end
  end
  self.context = { arm = context.arm, seed = context.seed }
end

---@return string such as "sft-weak, seed 1"
function Run:place()
  local parts = {}
  if self.context.arm then parts[1] = tostring(self.context.arm) end
  if self.context.seed ~= nil then parts[#parts + 1] = "seed " .. tostring(self.context.seed) end
  return table.concat(parts, ", ")
end

local function with_context(self, row)
  row.arm, row.seed = row.arm or self.context.arm, row.seed or self.context.seed
  return row
end

---Free values: metrics.jsonl and the report.
---@param values table<string, any>
function Run:log(values)
  if self.planning then return end
  local row = with_context(self, copy(values))
  self.logged[#self.logged + 1] = copy(row)
  row.stage = "log"
  self:append("metrics.jsonl", { row })
end

---One row of metrics.jsonl.
---@param name string the stage
---@param row table<string, any>
function Run:metric(name, row)
  if self.planning then return end
  row = with_context(self, copy(row))
  row.stage = name
  self:append("metrics.jsonl", { row })
end

---A step of the recipe's own, remembered like a stage.
---@param spec perilune.study.StageSpec
---@return any
function Run:remember(spec)
  return require("perilune.study.stage").remember(spec)
end

local function section(kind, needs)
  return function(self, spec)
    if self.planning then return end
    if kind == "note" then spec = { text = tostring(spec) } end
    for _, name in ipairs(needs) do
      if spec[name] == nil then error(("run:%s: needs %s"):format(kind, name), 2) end
    end
    local row = copy(spec)
    row.kind = kind
    self.sections[#self.sections + 1] = row
    if kind == "samples" then self:append("samples.jsonl", spec.rows) end
  end
end

---A paragraph of the report.
Run.note = section("note", {})

---A note that is told at once, too.
---@param text string
function Run:warn(text)
  if self.planning then return end
  require("perilune.study.progress").say("  warning: " .. text)
  self:note(text)
end

---Horizontal bars: {title, unit?, rows = {{label, value, ci_low?, ci_high?, points?}}}.
Run.bars = section("bars", { "title", "rows" })
---Lines: {title, x?, y?, series = {{label, x = {...}, y = {...}}}}.
Run.curves = section("curves", { "title", "series" })
---{title, columns, rows}.
Run.table = section("table", { "title", "columns", "rows" })
---Side by side: {title, rows = {{prompt, answers = {{label, text, score?, better?}}, verdict?}}}.
Run.samples = section("samples", { "title", "rows" })

---Books a stage (stage.lua calls it).
---@param spec perilune.study.StageSpec
---@param state "computed"|"kept"|"not remembered"
---@param facts {key: string?, hash: string?, seconds: number, calls: integer, value: any, trail: table}
function Run:stage(spec, state, facts)
  local row = with_context(self, {
    name = spec.label or spec.name, state = state, key = facts.key, hash = facts.hash, seconds = facts.seconds,
    calls = facts.calls,
  })
  self.stages[#self.stages + 1] = row
  self:append("stages.jsonl", { row })
  local value = facts.value
  if spec.kind == "model" and value.history and #value.history > 0 then
    self.curves_of[#self.curves_of + 1] = with_context(self, { name = spec.name, history = value.history })
  end
  for file, text in pairs(facts.trail or {}) do self:append_lines(file, text) end
  if spec.name == "judge" then
    self.verdicts[#self.verdicts + 1] = with_context(self, { result = value })
  end
end

---Books a stage of a plan.
---@param spec perilune.study.StageSpec
---@param facts {cached: boolean, calls: integer, tokens: integer, note: string?, service: perilune.ai.Plan?}
function Run:planned(spec, facts)
  self.plan[#self.plan + 1] = with_context(self, {
    name = spec.label or spec.name, cached = facts.cached, calls = facts.calls, tokens = facts.tokens,
    note = facts.note, service = facts.service,
  })
end

-- What services were paid for this study, over all its runs; nil where none was asked.
local function bill_of(run)
  local ledger = require "perilune.ai.ledger"
  if not base.exists(ledger.path()) then return nil end
  local book = ledger.default()
  local sum = book:spent { study = run.study }
  if sum.attempts == 0 then return nil end
  sum.stages = book:summary { by = "stage", study = run.study }
  return sum
end

---Ends the run: closes the files, completes the manifest, writes the result and the report.
---@param result any
function Run:finish(result)
  self.seconds = base.now() - self.began
  local seeds, keys = {}, {}
  for _, row in ipairs(self.stages) do
    if row.seed ~= nil then seeds[tostring(row.seed)] = true end
    if row.key then keys[#keys + 1] = row.key:sub(1, 16) end
  end
  local list = {}
  for seed in pairs(seeds) do list[#list + 1] = seed end
  table.sort(list)
  self.facts.seconds, self.facts.seeds, self.facts.stage_keys = self.seconds, list, keys
  self.facts.memory = base.memory()
  self.bill = bill_of(self)
  self.facts.services = self.bill
  self:write_manifest()
  must(base.write_file(self.dir .. "/result.json", base.json_encode(result, { indent = 2 }) .. "\n"))
  local page = require("perilune.study.report").page(self, result)
  must(base.write_file(self.dir .. "/report.html", page))
end

---Closes what is open; also after a failure.
function Run:close()
  for _, handle in pairs(self.files) do handle:close() end
  self.files = {}
end

return Run
