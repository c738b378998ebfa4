--- The judged win rate of a model (or of answers at hand) against another: sample
--- both, compare prompt by prompt, report wins, ties, losses and invalid verdicts
--- with a standard error. Sampling and judging are stages of their own, so that a
--- reference is sampled once for all arms.
local ai = require "perilune.ai"
local common = require "perilune.feedback.common"
local feedback = require "perilune.feedback"
local judge = require "perilune.feedback.judge"
local options = require "perilune.options"
local progress = require "perilune.study.progress"
local standin = require "perilune.study.standin"
local stats = require "perilune.eval.stats"

local OPTIONS = {
  against = { type = "any", doc = "what to compare with: a model, or a dataset of answers" },
  prompts = { type = "any", doc = "dataset or list of prompts; not needed for answers at hand" },
  judge = { type = "any", doc = "what pl.ai takes, or a client" },
  n = { 1, min = 1, doc = "answers to each prompt" },
  order = judge.ORDER,
  template = { type = "string", doc = "judge prompt of an AI service, see feedback.templates.names()" },
  max_invalid = common.MAX_INVALID,
  max_tokens = { 128, min = 1, doc = "longest answer" },
  temperature = { 0.7, type = "number", min = 0, doc = "0: greedy" },
  top_p = { 0.9, type = "number", min = 0, max = 1 },
  dtype = common.DTYPE,
  seed = { 0, doc = "of the samples, the order coin and an oracle's noise" },
  cache = { type = "boolean", doc = "remember also outside a recipe" },
}

---@class perilune.WinRate
---@field win integer
---@field tie integer
---@field loss integer
---@field invalid integer
---@field unanswered integer how many of the invalid ones had an answer on one side only
---@field asked integer comparisons: win + tie + loss + invalid
---@field win_rate number|nil percent: 100 (win + tie/2) / (win + tie + loss), or of a judge that gives probabilities
--- 100 times their mean; nil if all are invalid
---@field discrete_win_rate number|nil from win, tie and loss, where win_rate is from probabilities
---@field se number|nil standard error in points, over prompts
---@field ci_low number|nil
---@field ci_high number|nil
---@field order_disagreement number|nil percent of pairs whose two orders disagreed
---@field p_prefers_first number|nil share, 0 to 1, of decided calls that preferred the answer shown first; 0.5 is
--- without bias when both orders are asked
---@field invalid_rate number percent of the pairs asked
---@field lc_win_rate number|nil percent at equal lengths (stats.length_controlled); nil for few verdicts
---@field lc_slope number|nil above 0: the longer answer wins
---@field length number mean characters of the answers
---@field length_against number
---@field scores (number|false)[] per prompt: mean of 1, 0.5, 0 or of probabilities; false if all are invalid. A prompt
--- that one side did not answer keeps its place
---@field rows table[] {prompt, a?, b?, verdict, weight?}, made when first read; weight: the judge's probability that
--- a is better, where it gave one
local WinRate = { __name = "perilune.WinRate" }

local pairs_of = setmetatable({}, { __mode = "k" })

function WinRate.__index(w, key)
  if key ~= "rows" or not pairs_of[w] then return nil end
  local source, rows = pairs_of[w], {}
  for i, pair in ipairs(source.pairs()) do
    rows[i] = {
      prompt = pair.prompt, a = common.text(pair.a), b = common.text(pair.b),
      verdict = judge.verdict(source.judgement.codes, i),
      weight = source.judgement.weights and judge.score(source.judgement, i),
    }
  end
  rawset(w, "rows", rows)
  return rows
end

function WinRate.__tostring(w)
  local function show(v) return v and ("%.1f"):format(v) or "-" end
  local controlled = w.lc_win_rate
    and ("\n  at equal lengths %.1f %% (slope %.2f)"):format(w.lc_win_rate, w.lc_slope) or ""
  return table.concat({
    ("win rate %s %%  (95 %%: %s to %s, standard error %s)"):format(show(w.win_rate), show(w.ci_low), show(w.ci_high),
      show(w.se)),
    ("  win %d  tie %d  loss %d  invalid %d%s  of %d asked%s"):format(w.win, w.tie, w.loss, w.invalid,
      w.unanswered > 0 and (" (%d answered on one side only)"):format(w.unanswered) or "", w.asked,
      w.discrete_win_rate and (" (counted whole: %s %%)"):format(show(w.discrete_win_rate)) or ""),
    ("  mean length %s against %s characters%s%s"):format(show(w.length), show(w.length_against),
      w.order_disagreement and (", orders disagree in %s %%"):format(show(w.order_disagreement)) or "",
      w.p_prefers_first and (", the first shown preferred in %s %%"):format(show(100 * w.p_prefers_first)) or ""),
  }, "\n") .. controlled
end

local function is_model(what)
  if standin.is(what) then return standin.kind(what) == "model" end
  return type(what) == "table" and type(what.generate) == "function"
end

-- A model is sampled; rows of answers are taken as they are.
local function answers(what, role, o)
  if is_model(what) then
    if o.prompts == nil then error("eval.winrate: option prompts is needed to sample a model", 0) end
    return feedback.sample(what, o.prompts, {
      n = o.n, max_tokens = o.max_tokens, temperature = o.temperature, top_p = o.top_p, dtype = o.dtype, seed = o.seed,
      cache = o.cache,
    })
  end
  if type(what) == "table" and (standin.is(what) or type(what.rows) == "function" or #what > 0) then return what end
  error(("eval.winrate: %s must be a model or a dataset of answers, got a %s"):format(role, type(what)), 0)
end

-- The rows of each prompt, in order; nil where prompts are not there to be looked at: rows without them, or of a plan.
local function by_prompt(rows)
  local out = {}
  for i = 1, #rows do
    local prompt = rows[i].prompt
    if prompt == nil or standin.is(prompt) then return nil end
    out[prompt] = out[prompt] or {}
    table.insert(out[prompt], i)
  end
  return out
end

-- For each row of `rows` which of the others has its prompt, or false. Where the others have fewer rows of a prompt
-- theirs are used again.
local function partners(rows, others)
  local seen, out = {}, {}
  for i = 1, #rows do
    local prompt = rows[i].prompt
    local list = others[prompt]
    seen[prompt] = (seen[prompt] or 0) + 1
    out[i] = list and list[(seen[prompt] - 1) % #list + 1] or false
  end
  return out
end

-- Which row of b answers the prompt of each row of a, and the other way round: matched by prompt, in order of
-- appearance, for a teacher's refusal leaves no row behind.
local function match(a, b)
  local of_a, of_b = by_prompt(a), by_prompt(b)
  if not (of_a and of_b) then
    if #a ~= #b then
      error(("eval.winrate: %d and %d rows of answers, and not all have a \"prompt\" to match them by"):format(#a, #b), 0)
    end
    local same = {}
    for i = 1, #a do
      local left, right = a[i].prompt, b[i].prompt
      if left ~= right and not (standin.is(left) or standin.is(right)) then
        error(("eval.winrate: row %d has a \"prompt\" on one side, or another one; without prompts on both sides rows "
          .. "are taken as they come"):format(i), 0)
      end
      same[i] = i
    end
    return same, same
  end
  local to_b, to_a = partners(a, of_b), partners(b, of_a)
  for i = 1, #a do
    if to_b[i] then return to_b, to_a end
  end
  error(("eval.winrate: the two sides (%d and %d rows of answers) answer different prompts"):format(#a, #b), 0)
end

-- Prompt by prompt; where one side has fewer answers its own are used again, and where it has none the pair lacks it.
-- Rows of b that stand alone come where they stood, so that the scores of several models against one b line up.
local function build(a, b)
  local list, groups = {}, {}
  local function add(prompt, left, right)
    local n = math.max(#left, #right)
    for k = 1, n do
      list[#list + 1] = { prompt = prompt, a = left[(k - 1) % math.max(1, #left) + 1],
        b = right[(k - 1) % math.max(1, #right) + 1] }
    end
    groups[#groups + 1] = n
  end
  local to_b, to_a = match(a, b)
  local taken, at = {}, 1
  for i = 1, #a do
    if to_b[i] then taken[to_b[i]] = true end
  end
  local function rest(to)
    for j = at, to do
      if not taken[j] then add(b[j].prompt, to_a[j] and common.answers(a[to_a[j]]) or {}, common.answers(b[j])) end
    end
    at = math.max(at, to + 1)
  end
  for i = 1, #a do
    local j = to_b[i]
    if j then rest(j - 1) end
    add(a[i].prompt, common.answers(a[i]), j and common.answers(b[j]) or {})
  end
  rest(#b)
  return list, groups
end

-- Fewer verdicts than this say nothing about length.
local ENOUGH = 20

-- The rate at equal lengths: raw and controlled belong side by side.
local function control_length(w, judgement)
  local scores, gaps = {}, {}
  for i, gap in ipairs(judgement.gaps) do
    local value = judge.score(judgement, i)
    if value then scores[#scores + 1], gaps[#gaps + 1] = value, gap end
  end
  if #scores < ENOUGH then return end
  local fit = stats.length_controlled(scores, gaps)
  w.lc_win_rate, w.lc_slope = fit.rate, fit.slope
end

local function summary(judgement, groups)
  local clusters, scores, at = {}, {}, 0
  for i, n in ipairs(groups) do
    clusters[i] = {}
    for k = at + 1, at + n do
      local value = judge.score(judgement, k)
      if value then table.insert(clusters[i], value) end
    end
    at = at + n
    scores[i] = stats.mean(clusters[i]) or false
  end
  local c = judgement.counts
  local w = {
    win = c.win, tie = c.tie, loss = c.loss, invalid = c.invalid, asked = c.asked, scores = scores,
    unanswered = judgement.unanswered,
    length = judgement.length_a, length_against = judgement.length_b,
    order_disagreement = judgement.both > 0 and 100 * judgement.disagreements / judgement.both or nil,
    p_prefers_first = judge.prefers_first(judgement), invalid_rate = 100 * c.invalid / c.asked,
  }
  local valid = c.win + c.tie + c.loss
  if judgement.weights and valid > 0 then w.discrete_win_rate = 100 * (c.win + c.tie / 2) / valid end
  w.win_rate, w.se = stats.rate(clusters)
  if w.win_rate then w.ci_low, w.ci_high = stats.normal_interval(w.win_rate, w.se) end
  control_length(w, judgement)
  return w
end

---How often a judge prefers the model's answers to the other side's.
---@param what any a model, or a dataset of answers (feedback.sample, feedback.demonstrate)
---@param opts table see OPTIONS; against and judge are needed
---@return perilune.WinRate
return function(what, opts)
  local o = options.resolve("eval.winrate", OPTIONS, opts)
  for _, name in ipairs { "against", "judge" } do
    if o[name] == nil then error(("eval.winrate: option %s is needed"):format(name), 2) end
  end
  local client = ai.client(o.judge)
  client:check("compare", o)         -- before anything is sampled
  local a, b = answers(what, "the model", o), answers(o.against, "against", o)
  local judgement = judge.stage {
    name = "judge", client = client, inputs = { a, b }, order = o.order, seed = o.seed, cache = o.cache, options = {},
    template = o.template, max_invalid = o.max_invalid,
    pairs = function() return (build(a, b)) end,
    -- kept with the verdicts, so that a later run needs no answers to count them
    groups = function() return select(2, build(a, b)) end,
  }
  if standin.is(judgement) then return judgement end
  local w = summary(judgement, judgement.groups)
  if w.unanswered > 0 then
    progress.say(("  win rate: %d of %d comparisons have an answer on one side only (refused, empty or left out): they "
      .. "count as invalid"):format(w.unanswered, w.asked))
  end
  pairs_of[w] = { judgement = judgement, pairs = function() return (build(a, b)) end }
  return setmetatable(w, WinRate)
end
