--- Prompts as a base model is to see them. A service answers an instruction; a base model
--- continues a text. `plain` leaves prompt and answer as they are: the answer then has to
--- begin with its blank, as a model's own continuation does. `paper` is the format of the
--- study (section 3): "\n\nHuman: {prompt}\n\nAssistant: {answer}". Teachers, critics and
--- judges see the bare prompt always.
local common = require "perilune.feedback.common"
local options = require "perilune.options"
local standin = require "perilune.study.standin"

local FORMATS = { paper = { "\n\nHuman: ", "\n\nAssistant:" } }

local OPTIONS = { format = { "paper", choices = { "plain", "paper" }, doc = "of prompts and answers for a base model" } }

local wrap = {}

-- An answer that follows the prompt with one blank. Ids that the model itself drew stay.
local function after_blank(answer)
  if standin.is(answer) or type(answer) == "table" and (answer.ids or standin.is(answer.text)) then return answer end
  local text = " " .. common.text(answer):gsub("^%s+", "")
  if type(answer) ~= "table" then return text end
  local out = {}
  for k, v in pairs(answer) do out[k] = v end
  out.text = text
  return out
end

local ANSWERS = { "completion", "chosen", "rejected" }

local function mapped(rows, f)
  return type(rows.map) == "function" and rows:map(f) or require("perilune.data").from(rows):map(f)
end

---Rows {prompt}, {prompt, completion} or {prompt, chosen, rejected} in the format a base model is trained on.
---@param rows any dataset or list
---@param opts? {format: "plain"|"paper"}
---@return any rows
function wrap.wrap(rows, opts)
  local format = FORMATS[options.resolve("feedback.wrap", OPTIONS, opts).format]
  if not format then return rows end
  return mapped(rows, function(row)
    local out = {}
    if not standin.is(row) then
      for k, v in pairs(row) do out[k] = v end
    end
    out.prompt = format[1] .. row.prompt .. format[2]
    for _, name in ipairs(ANSWERS) do
      if row[name] ~= nil and not (name == "completion" and row.ids) then out[name] = after_blank(row[name]) end
    end
    return out
  end)
end

---Samples of wrapped prompts under their bare prompts again.
---@param rows any dataset
---@param opts? {format: "plain"|"paper"}
---@return any rows
function wrap.unwrap(rows, opts)
  local format = FORMATS[options.resolve("feedback.unwrap", OPTIONS, opts).format]
  if not format then return rows end
  return mapped(rows, function(row)
    local out, prompt = {}, row.prompt
    if not standin.is(row) then
      for k, v in pairs(row) do out[k] = v end
    else
      out.completions = row.completions
    end
    out.prompt = prompt:sub(#format[1] + 1, #prompt - #format[2])
    if format[1] .. out.prompt .. format[2] ~= prompt then
      error(("feedback.unwrap: the prompt %q is not in this format"):format(prompt:sub(1, 60)), 0)
    end
    return out
  end)
end

return wrap
