--- Judgements in AlpacaEval's files: rows of its annotations.json, and what its leaderboard computes from them. There
--- output_1 is the reference and output_2 the model that is evaluated; a preference runs from 1 (the reference is
--- better) to 2 (the model is), 1.5 is a tie, null is no verdict; in old files a tie is 0.
local base = require("perilune.core").base
local judge = require "perilune.feedback.judge"
local options = require "perilune.options"
local stats = require "perilune.eval.stats"

local annotations = {}

local EXPORT = {
  generator_1 = { "reference", doc = "name of the reference, the side given as `against`" },
  generator_2 = { "model", doc = "name of the model that is evaluated" },
  annotator = { "judge", doc = "name of the judge" },
  dataset = { "perilune", doc = "name of the prompt set" },
}

---The pairs of a judged win rate as rows of annotations.json.
---@param judged perilune.WinRate
---@param opts? table see EXPORT
---@return table[] rows to write with pl.json; an invalid verdict is a preference of pl.json.null
function annotations.rows(judged, opts)
  local o = options.resolve("eval.annotations", EXPORT, opts)
  if type(judged) ~= "table" or type(judged.rows) ~= "table" then
    error("eval.annotations: needs what eval.winrate returned, got a " .. type(judged), 2)
  end
  local out = {}
  for i, row in ipairs(judged.rows) do
    local score = judge.value(row.verdict)
    if row.weight then score = row.weight end
    out[i] = {
      instruction = row.prompt, output_1 = row.b or base.null, generator_1 = o.generator_1, dataset = o.dataset,
      output_2 = row.a or base.null, generator_2 = o.generator_2, annotator = o.annotator,
      preference = score and 1 + score or base.null,
      price_per_example = base.null, time_per_example = base.null,
    }
  end
  return out
end

-- The preference of a row from 0 to 1; nil for null; raises for what is none.
local function score_of(row, where)
  local p = type(row) == "table" and row.preference
  if p == base.null or p == nil then return nil end
  if p == 0 then p = 1.5 end
  if type(p) ~= "number" or not (p >= 1 and p <= 2) then
    error(("%s: preference must be null or from 1 to 2, got %s"):format(where, tostring(p)), 0)
  end
  return p - 1
end

-- Whole preferences: to the nearer side, ties stay.
local function whole(score) return score > 0.5 and 1 or score < 0.5 and 0 or 0.5 end

---@class perilune.Annotations
---@field name string|nil generator_2 of the first row
---@field win_rate number|nil percent, of the model that is evaluated; nil without a valid row
---@field standard_error number|nil
---@field n_wins integer
---@field n_wins_base integer
---@field n_draws integer
---@field n_total integer rows with a preference
---@field invalid integer rows without one
---@field discrete_win_rate number|nil
---@field avg_length number characters of output_2

---A row of AlpacaEval's leaderboard from annotations.
---@param source string|table[] path of an annotations.json, or its rows
---@return perilune.Annotations
function annotations.read(source)
  local rows, where = source, "eval.from_annotations"
  if type(source) == "string" then
    local message
    where = source
    rows, message = base.json_read(source)
    if rows == nil then error("eval.from_annotations: " .. tostring(message), 0) end
  end
  if type(rows) ~= "table" or (#rows == 0 and next(rows) ~= nil) then
    error(where .. ": wanted a list of annotations", 0)
  end
  local out = { n_wins = 0, n_wins_base = 0, n_draws = 0, n_total = 0, invalid = 0 }
  local scores, discrete, length = {}, 0, 0
  for i, row in ipairs(rows) do
    local score = score_of(row, ("%s: row %d"):format(where, i))
    local text = row.output_2
    if type(text) == "string" then length = length + (utf8.len(text) or #text) end
    if score then
      scores[#scores + 1] = { score }
      discrete = discrete + whole(score)
      local field = score > 0.5 and "n_wins" or score < 0.5 and "n_wins_base" or "n_draws"
      out[field] = out[field] + 1
    else
      out.invalid = out.invalid + 1
    end
  end
  out.n_total = #scores
  out.name = rows[1] and rows[1].generator_2
  out.avg_length = #rows > 0 and length / #rows or 0
  if #scores > 0 then
    out.win_rate, out.standard_error = stats.rate(scores)
    out.discrete_win_rate = 100 * discrete / #scores
  end
  return out
end

return annotations
