--- One judgement of many pairs: the stage under feedback.compare and eval.winrate.
--- A verdict is win (the first answer), tie, loss or invalid, and the four add up to
--- what was asked. Nothing is imputed. `asked` counts comparisons; with both orders
--- one comparison is two calls, and where the orders disagree it is a tie.
local base = require("perilune.core").base
local coin = require "perilune.feedback.coin"
local common = require "perilune.feedback.common"
local progress = require "perilune.study.progress"
local stage = require "perilune.study.stage"
local standin = require "perilune.study.standin"

local judge = {}

judge.ORDER = { "both", choices = { "both", "coin", "given" },
  doc = "ask in both orders, in one drawn by a coin of the prompt (as AlpacaEval), or as given" }

---@class perilune.feedback.Pair
---@field prompt string
---@field a any first answer
---@field b any second answer

-- Requests a call to the client: small enough to show progress, large enough to batch.
local CHUNK = 256

local NAMES = { w = "win", t = "tie", l = "loss", x = "invalid" }
local CODE = { a = "w", b = "l", tie = "t" }
local SWAPPED = { w = "l", l = "w", t = "t" }

local function ask(client, requests, seed, label)
  local out = {}
  local bar = progress.start { label = label, total = #requests, unit = "call" }
  for first = 1, #requests, CHUNK do
    base.check_interrupt()
    local last = math.min(first + CHUNK - 1, #requests)
    local verdicts = client:compare(table.move(requests, first, last, 1, {}), { seed = seed })
    table.move(verdicts, 1, #verdicts, first, out)
    bar:update(last)
  end
  bar:done()
  return out
end

---Verdicts on pairs, without a stage.
---@param client perilune.ai.Client
---@param pairs perilune.feedback.Pair[]
---@param o {order: string, seed: integer, label: string?}
---@return table judgement {codes: one letter a pair (w t l x), counts, calls, disagreements, both}
function judge.pairs(client, pairs, o)
  local requests, first, second = {}, {}, {}
  local function request(pair, swapped)
    requests[#requests + 1] = {
      task = "compare", prompt = pair.prompt, a = swapped and pair.b or pair.a, b = swapped and pair.a or pair.b,
    }
    return { at = #requests, swapped = swapped }
  end
  for i, pair in ipairs(pairs) do
    if common.text(pair.a) ~= common.text(pair.b) then
      if o.order == "both" then
        first[i], second[i] = request(pair, false), request(pair, true)
      else
        first[i] = request(pair, o.order == "coin" and coin.switched(pair.prompt, o.seed))
      end
    end
  end
  local replies = ask(client, requests, o.seed, o.label or "compare")
  local function code(asked)
    local c = CODE[replies[asked.at]] or "x"
    return asked.swapped and SWAPPED[c] or c
  end
  local codes = {}
  local disagreements, both = 0, 0
  for i in ipairs(pairs) do
    if not first[i] then
      codes[i] = "t"                       -- equal texts
    elseif not second[i] then
      codes[i] = code(first[i])
    else
      local one, two = code(first[i]), code(second[i])
      if one == "x" or two == "x" then
        codes[i] = "x"
      else
        both = both + 1
        if one ~= two then disagreements = disagreements + 1 end
        codes[i] = one == two and one or "t"
      end
    end
  end
  local text = table.concat(codes)
  local counts = { asked = #pairs, win = 0, tie = 0, loss = 0, invalid = 0 }
  for letter in text:gmatch "." do counts[NAMES[letter]] = counts[NAMES[letter]] + 1 end
  assert(counts.win + counts.tie + counts.loss + counts.invalid == counts.asked)
  return { codes = text, counts = counts, calls = #requests, disagreements = disagreements, both = both }
end

---The name of a verdict's letter.
---@param codes string
---@param i integer
---@return "win"|"tie"|"loss"|"invalid"
function judge.verdict(codes, i) return NAMES[codes:sub(i, i)] end

local function characters(answer)
  local text = common.text(answer)
  return utf8.len(text) or #text
end

local function mean_length(pairs, side)
  local sum = 0
  for _, pair in ipairs(pairs) do sum = sum + characters(pair[side]) end
  return #pairs > 0 and sum / #pairs or 0
end

-- How much longer the first answer of each pair is.
local function length_gaps(pairs)
  local out = {}
  for i, pair in ipairs(pairs) do out[i] = characters(pair.a) - characters(pair.b) end
  return out
end

local function trail(pairs, codes, name)
  local lines = {}
  for i, pair in ipairs(pairs) do
    lines[i] = base.json_encode {
      stage = name, prompt = pair.prompt, a = common.text(pair.a), b = common.text(pair.b),
      verdict = judge.verdict(codes, i),
    }
  end
  lines[#lines + 1] = ""
  return table.concat(lines, "\n")
end

-- Pairs kept with the judgement, for a report.
local EXAMPLES = 12

---The remembered form. `spec.pairs()` is called only when there is something to compute.
---@class perilune.feedback.JudgeSpec
---@field name string
---@field client perilune.ai.Client
---@field inputs table what the pairs are made of
---@field pairs fun(): perilune.feedback.Pair[]
---@field groups? fun(): integer[] how many pairs each prompt has, where that is wanted later
---@field order "both"|"coin"|"given"
---@field seed integer
---@field options table what else the pairs depend on
---@field cache? boolean

---@param spec perilune.feedback.JudgeSpec
---@return table judgement as judge.pairs, with length_a, length_b (mean characters) and examples; a stand-in in a plan
function judge.stage(spec)
  return stage.remember {
    name = spec.name, kind = "table", cache = spec.cache, inputs = { spec.client, spec.inputs },
    options = { order = spec.order, seed = spec.seed, more = spec.options },
    estimate = function()
      local n, tokens = 0, 0
      for _, pair in ipairs(spec.pairs()) do
        n = n + 1
        tokens = tokens + common.prompt_tokens { pair.prompt } + 2 * (spec.answer_tokens or 32)
      end
      local orders = spec.order == "both" and 2 or 1
      return { calls = n * orders, tokens = tokens * orders }
    end,
    standin = function() return standin.unknown(spec.name) end,
    compute = function(ctx)
      local pairs = spec.pairs()
      if #pairs == 0 then error(spec.name .. ": there is nothing to compare", 0) end
      local out = judge.pairs(spec.client, pairs, { order = spec.order, seed = spec.seed, label = spec.name })
      ctx.calls = out.calls
      ctx.trail["judgements.jsonl"] = trail(pairs, out.codes, spec.name)
      if spec.groups then out.groups, out.gaps = spec.groups(), length_gaps(pairs) end
      out.length_a, out.length_b = mean_length(pairs, "a"), mean_length(pairs, "b")
      out.examples = {}
      for i = 1, math.min(EXAMPLES, #pairs) do
        out.examples[i] = {
          prompt = pairs[i].prompt, a = common.text(pairs[i].a), b = common.text(pairs[i].b),
          verdict = judge.verdict(out.codes, i),
        }
      end
      return out
    end,
  }
end

return judge
