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

judge.PAIRS = { "neighbours", choices = { "neighbours", "all", "first" },
  doc = "1-2, 3-4, ...; every two; or the first with each other" }

local PAIRINGS = {
  neighbours = function(n, add)
    for i = 1, n - 1, 2 do add(i, i + 1) end
  end,
  all = function(n, add)
    for i = 1, n do
      for j = i + 1, n do add(i, j) end
    end
  end,
  first = function(n, add)
    for j = 2, n do add(1, j) end
  end,
}

---The pairs of candidates: rows with two or more answers each.
---@param where string the function's name, for errors
---@param candidates any
---@param pairing "neighbours"|"all"|"first"
---@return perilune.feedback.Pair[]
function judge.pairs_of(where, candidates, pairing)
  local list = {}
  for i = 1, #candidates do
    local row = candidates[i]
    local answers = common.answers(row)
    if #answers < 2 then error(("%s: row %d has fewer than two completions"):format(where, i), 0) end
    PAIRINGS[pairing](#answers, function(a, b)
      list[#list + 1] = { prompt = row.prompt, a = answers[a], b = answers[b] }
    end)
  end
  return list
end

---@class perilune.feedback.Pair
---@field prompt string
---@field a any first answer; nil: there is none, and the pair is invalid without a call
---@field b any second answer, the same

local NAMES = { w = "win", t = "tie", l = "loss", x = "invalid" }

-- A client's reply as the probability that the first shown is better; nil: invalid.
local REPLY = { a = 1, tie = 0.5, b = 0 }
local function value_of(reply)
  if type(reply) == "number" then return reply >= 0 and reply <= 1 and reply or nil end
  return REPLY[reply]
end

local function letter_of(value)
  if not value then return "x" end
  return value > 0.5 and "w" or value < 0.5 and "l" or "t"
end

local function known(answer) return not standin.is(common.text(answer)) end

local function answered(pair) return pair.a ~= nil and pair.b ~= nil end

-- The calls that pairs need, and which of them are a pair's: in the order given, in the other. Two
-- equal texts need none, nor does an answer that has no other. Answers that do not exist yet, in a
-- plan, count as different.
local function calls_of(pairs, o)
  local requests, first, second = {}, {}, {}
  local function request(pair, swapped)
    requests[#requests + 1] = {
      task = "compare", prompt = pair.prompt, a = swapped and pair.b or pair.a, b = swapped and pair.a or pair.b,
    }
    return { at = #requests, swapped = swapped }
  end
  for i, pair in ipairs(pairs) do
    local differ = answered(pair)
      and (not (known(pair.a) and known(pair.b)) or common.text(pair.a) ~= common.text(pair.b))
    if differ then
      if o.order == "both" then
        first[i], second[i] = request(pair, false), request(pair, true)
      else
        first[i] = request(pair, o.order == "coin" and coin.switched(pair.prompt, o.seed))
      end
    end
  end
  return requests, first, second
end

local function ask(client, requests, o)
  local label = o.label or "compare"
  local bar = progress.start { label = label, total = #requests, unit = "call" }
  local guard = common.guard(label, client, o.max_invalid or common.MAX_INVALID[1])
  local replies = client:compare(requests, {
    seed = o.seed, template = o.template, stage = label, on_invalid = guard.on_invalid,
    on_progress = function(done, figures)
      bar:update(done, figures)
      guard.early(done)
    end,
  })
  bar:done()
  return replies, guard
end

-- What was said of the calls themselves, whichever way the pairs stood.
local function tally(replies)
  local out = { weighted = false, invalid_calls = 0, prefers_first = 0, decided = 0 }
  for _, reply in ipairs(replies) do
    local value = value_of(reply)
    if type(reply) == "number" then out.weighted = true end
    if not value then
      out.invalid_calls = out.invalid_calls + 1
    elseif value ~= 0.5 then
      out.decided = out.decided + 1
      if value > 0.5 then out.prefers_first = out.prefers_first + 1 end
    end
  end
  return out
end

---Verdicts on pairs, without a stage. A client may answer a probability p that the first shown is
---better: then `weights` holds that of each pair's first answer (false where invalid; both orders: the
---mean of p and 1 - p), and the letters are read from them.
---@param client perilune.ai.Client
---@param pairs perilune.feedback.Pair[]
---@param o {order: string, seed: integer, label: string?, template: string?, max_invalid: number?}
---@return table judgement {codes: one letter a pair (w t l x), weights?, counts {win, tie, loss, invalid, asked},
--- unanswered: pairs with one answer, which are invalid, calls, disagreements of `both` pairs, invalid_calls,
--- prefers_first of `decided` calls}
function judge.pairs(client, pairs, o)
  local requests, first, second = calls_of(pairs, o)
  local replies, guard = ask(client, requests, o)
  local said = tally(replies)
  guard.finish(#requests, said.invalid_calls)
  local function value(asked)
    local v = value_of(replies[asked.at])
    return v and asked.swapped and 1 - v or v
  end
  local codes, weights = {}, {}
  local disagreements, both, unanswered = 0, 0, 0
  for i, pair in ipairs(pairs) do
    local one
    if first[i] then
      one = value(first[i])
    elseif answered(pair) then
      one = 0.5                        -- equal texts are a tie
    else
      unanswered = unanswered + 1
    end
    local two = one
    if second[i] then two = value(second[i]) end
    local mean = one and two and (one + two) / 2
    if mean and second[i] then
      both = both + 1
      if letter_of(one) ~= letter_of(two) then
        disagreements = disagreements + 1
        if not said.weighted then mean = 0.5 end
      end
    end
    codes[i], weights[i] = letter_of(mean), mean or false
  end
  local text = table.concat(codes)
  local counts = { asked = #pairs, win = 0, tie = 0, loss = 0, invalid = 0 }
  for letter in text:gmatch "." do counts[NAMES[letter]] = counts[NAMES[letter]] + 1 end
  assert(counts.win + counts.tie + counts.loss + counts.invalid == counts.asked)
  return {
    codes = text, weights = said.weighted and weights or nil, counts = counts, calls = #requests,
    unanswered = unanswered, disagreements = disagreements, both = both,
    invalid_calls = said.invalid_calls, prefers_first = said.prefers_first, decided = said.decided,
  }
end

local OF_NAME = { win = 1, tie = 0.5, loss = 0 }

---The value of a verdict's name: 1, 0.5 or 0; nil for invalid.
---@param name "win"|"tie"|"loss"|"invalid"
---@return number|nil
function judge.value(name) return OF_NAME[name] end

---How well the first answer of a pair did: 1, 0.5 or 0, or the judge's probability; nil if invalid.
---@param judgement table of judge.pairs
---@param i integer
---@return number|nil
function judge.score(judgement, i)
  if judgement.weights then return judgement.weights[i] or nil end
  return judge.value(judge.verdict(judgement.codes, i))
end

---The share of decided calls that preferred the answer shown first; nil where none was decided.
---@param judgement table of judge.pairs
---@return number|nil
function judge.prefers_first(judgement)
  return judgement.decided > 0 and judgement.prefers_first / judgement.decided or nil
end

---The name of a verdict's letter.
---@param codes string
---@param i integer
---@return "win"|"tie"|"loss"|"invalid"
function judge.verdict(codes, i) return NAMES[codes:sub(i, i)] end

---@param answer any text, or {text = ...}
---@return integer
function judge.characters(answer)
  local text = common.text(answer)
  return utf8.len(text) or #text
end

local function mean_length(pairs, side)
  local sum, n = 0, 0
  for _, pair in ipairs(pairs) do
    if pair[side] ~= nil then sum, n = sum + judge.characters(pair[side]), n + 1 end
  end
  return n > 0 and sum / n or 0
end

-- How much longer the first answer of each pair is; false where one is missing.
local function length_gaps(pairs)
  local out = {}
  for i, pair in ipairs(pairs) do
    out[i] = answered(pair) and judge.characters(pair.a) - judge.characters(pair.b)
  end
  return out
end

local function trail(pairs, judgement, name)
  local lines = {}
  for i, pair in ipairs(pairs) do
    lines[i] = base.json_encode {
      stage = name, prompt = pair.prompt, a = common.text(pair.a), b = common.text(pair.b),
      verdict = judge.verdict(judgement.codes, i), weight = judgement.weights and judge.score(judgement, i),
    }
  end
  lines[#lines + 1] = ""
  return table.concat(lines, "\n")
end

-- Pairs kept with the judgement, for a report.
local EXAMPLES = 12

-- Tokens of an answer, roughly, where a client does not tell what its calls will be.
local ANSWER_TOKENS = 32

---The remembered form. `spec.pairs()` is called only when there is something to compute.
---@class perilune.feedback.JudgeSpec
---@field name string
---@field client perilune.ai.Client
---@field inputs table what the pairs are made of
---@field pairs fun(): perilune.feedback.Pair[]
---@field groups? fun(): integer[] how many pairs each prompt has, where that is wanted later
---@field order "both"|"coin"|"given"
---@field seed integer
---@field template? string the judge prompt
---@field max_invalid? number
---@field label? string shown instead of the name
---@field options table what else the pairs depend on
---@field cache? boolean

---@param spec perilune.feedback.JudgeSpec
---@return table judgement as judge.pairs, with length_a, length_b (mean characters) and examples; a stand-in in a plan
function judge.stage(spec)
  local o = {
    order = spec.order, seed = spec.seed, template = spec.template, max_invalid = spec.max_invalid, label = spec.name,
  }
  spec.client:check("compare", o)
  return stage.remember {
    name = spec.name, kind = "table", cache = spec.cache, inputs = { spec.client, spec.inputs }, label = spec.label,
    options = { order = spec.order, seed = spec.seed, template = spec.template, more = spec.options },
    estimate = function()
      local requests = calls_of(spec.pairs(), o)
      local plan = spec.client:plan("compare", requests, { seed = o.seed, template = o.template })
      if not plan.tokens then
        plan.tokens = 0
        for _, request in ipairs(requests) do
          plan.tokens = plan.tokens + common.prompt_tokens { request.prompt } + 2 * ANSWER_TOKENS
        end
      end
      return plan
    end,
    standin = function() return standin.unknown(spec.name) end,
    compute = function(ctx)
      local pairs = spec.pairs()
      if #pairs == 0 then error(spec.name .. ": there is nothing to compare", 0) end
      local out = judge.pairs(spec.client, pairs, o)
      ctx.calls = out.calls
      ctx.trail["judgements.jsonl"] = trail(pairs, out, spec.name)
      if spec.groups then out.groups, out.gaps = spec.groups(), length_gaps(pairs) end
      out.length_a, out.length_b = mean_length(pairs, "a"), mean_length(pairs, "b")
      out.examples = {}
      for i, pair in ipairs(pairs) do
        if #out.examples == EXAMPLES then break end
        if answered(pair) then
          table.insert(out.examples, {
            prompt = pair.prompt, a = common.text(pair.a), b = common.text(pair.b),
            verdict = judge.verdict(out.codes, i),
          })
        end
      end
      return out
    end,
  }
end

return judge
