--- Judge prompts, one a file: what is sent to a judge, and how its reply is read. Published ones are quoted to the
--- letter and read by the rules of their authors, made strict; ours fence what they judge. Which answer is shown first
--- is not decided here (feedback/judge.lua), nor how a prompt is sent.
local options = require "perilune.options"

---@class perilune.feedback.Template
---@field name string
---@field doc string
---@field task "compare"|"rate"
---@field published boolean a protocol of others, to the letter
---@field sampling table what the protocol sets: temperature, max_tokens, top_logprobs
---@field reply_tokens integer about how long a reply is, for plans
--- A call is {prompt, a, b} or {prompt, answer, reference?, turns?}, all text; a is shown first.
---@field messages fun(call: table, ctx: {secret: string}, structured: boolean?): {role: string, content: string}[]
--- "a", "b", "tie", "invalid" or the probability that a is better; of a rating a number or false.
---@field parse fun(reply: {text: string, logprobs: table[]?}, call: table, ctx: {secret: string}): string|number|false

---@field schema? table JSON schema of a structured reply, which messages(..., true) asks for
---@field read_schema? fun(value: table): string|number|false the verdict in one

local NAMES = {
  "alpaca_claude", "alpaca_eval_1", "alpaca_eval_2", "alpaca_gpt4", "mt_bench_pair", "mt_bench_single", "pairwise",
  "rubric",
}

-- Used where a judge that needs a prompt is given none.
local DEFAULT = { compare = "pairwise", rate = "rubric" }

local templates = {}

---A judge prompt by its name.
---@param name string
---@return perilune.feedback.Template
function templates.get(name)
  for _, known in ipairs(NAMES) do
    if known == name then return require("perilune.feedback.templates." .. name) end
  end
  error(options.unknown("template", name, NAMES), 0)
end

---The names of all judge prompts, or of those for one task.
---@param task? "compare"|"rate"
---@return string[]
function templates.names(task)
  local out = {}
  for _, name in ipairs(NAMES) do
    if not task or templates.get(name).task == task then out[#out + 1] = name end
  end
  return out
end

---The judge prompt for a task: the named one, which must be made for it, or the default.
---@param task "compare"|"rate"
---@param name? string
---@return perilune.feedback.Template
function templates.of(task, name)
  local template = templates.get(name or DEFAULT[task])
  if template.task ~= task then
    error(("template %s is for %s, not %s (for %s: %s)"):format(name, template.task, task, task,
      table.concat(templates.names(task), ", ")), 0)
  end
  return template
end

return templates
