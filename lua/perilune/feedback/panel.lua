--- Several judges on the same pairs: their majority, how far they agree, and what each leans to (the longer answer,
--- lists, the first shown), beside a judge that only measures length. Each judge is a stage of its own.
local agreement = require "perilune.eval.agreement"
local ai = require "perilune.ai"
local common = require "perilune.feedback.common"
local judge = require "perilune.feedback.judge"
local options = require "perilune.options"
local standin = require "perilune.study.standin"

local OPTIONS = {
  order = judge.ORDER,
  pairs = judge.PAIRS,
  seed = { 0, doc = "of the order coin and of an oracle's noise" },
  template = { type = "string", doc = "judge prompt for all of them; one alone: openai:MODEL?template=NAME" },
  max_invalid = common.MAX_INVALID,
  cache = { type = "boolean", doc = "remember also outside a recipe" },
}

-- An answer counts as longer by more than this many characters.
local LONGER = 30

local LENGTH = "length alone"

---@class perilune.Panel
---@field judges table[] a row a judge, and one of a judge that takes the longer answer: {judge, win, tie, loss,
--- invalid, win_rate, with_others (share of agreement with the majority of the others), prefers_longer,
--- prefers_lists, prefers_first, orders_disagree (shares, nil where nothing was decided)}
---@field agreement table[] a row for each two judges: {a, b, agreement, kappa, n}
---@field fleiss number|nil Fleiss' kappa, of three judges or more
---@field majority {win: integer, tie: integer, loss: integer, invalid: integer, asked: integer} of the panel
---@field verdicts table[] a row a pair: {majority, [judge] = verdict}
local Panel = { __name = "perilune.Panel" }
Panel.__index = Panel

local pairs_of = setmetatable({}, { __mode = "k" })

---What the majority preferred, as training data; ties and pairs without a verdict are left out.
---@return perilune.Dataset rows {prompt, chosen, rejected}
function Panel:preferences()
  local rows = {}
  for i, pair in ipairs(pairs_of[self]) do
    local verdict = self.verdicts[i].majority
    if verdict == "win" then
      rows[#rows + 1] = { prompt = pair.prompt, chosen = pair.a, rejected = pair.b }
    elseif verdict == "loss" then
      rows[#rows + 1] = { prompt = pair.prompt, chosen = pair.b, rejected = pair.a }
    end
  end
  return require("perilune.data").from(rows)
end

local JUDGES = {
  "judge", "win", "tie", "loss", "invalid", "with others", "longer", "lists", "first", "orders differ",
}
local TWO_JUDGES = { "judge", "and", "agreement", "kappa", "pairs" }

local function show(value) return value and ("%.2f"):format(value) or "-" end

function Panel.__tostring(p)
  local render = require("perilune.cli.table").render
  local rows, twos = {}, {}
  for i, r in ipairs(p.judges) do
    rows[i] = {
      r.judge, tostring(r.win), tostring(r.tie), tostring(r.loss), tostring(r.invalid), show(r.with_others),
      show(r.prefers_longer), show(r.prefers_lists), show(r.prefers_first), show(r.orders_disagree),
    }
  end
  for i, r in ipairs(p.agreement) do
    twos[i] = { r.a, r.b, show(r.agreement), show(r.kappa), tostring(r.n) }
  end
  local m = p.majority
  return table.concat({
    render(JUDGES, rows), "", render(TWO_JUDGES, twos),
    "",
    ("majority: win %d  tie %d  loss %d  invalid %d  of %d asked%s"):format(m.win, m.tie, m.loss, m.invalid, m.asked,
      p.fleiss and (", Fleiss' kappa %.2f"):format(p.fleiss) or ""),
  }, "\n")
end

local function clients_of(critics)
  if type(critics) ~= "table" or critics.provider or #critics < 2 then
    error("feedback.panel: needs a list of two judges or more", 0)
  end
  local clients, times, keys = {}, {}, {}
  for i, critic in ipairs(critics) do
    local client = ai.client(critic)
    local name, key = client.name, client.provider.whole and client:key()
    -- the second would be answered by the ledger with the words of the first
    if key and keys[key] then error(("feedback.panel: %s and %s are the same judge"):format(keys[key], name), 0) end
    if key then keys[key] = name end
    times[name] = (times[name] or 0) + 1
    clients[i] = { client = client, name = times[name] > 1 and ("%s (%d)"):format(name, times[name]) or name }
  end
  return clients
end

local function has_list(text)
  for _, mark in ipairs { "[-*]", "\u{2022}", "%d+[.)]" } do
    if ("\n" .. text):find("\n[ \t]*" .. mark .. "[ \t]+%S") then return true end
  end
  return false
end

-- What the first answer of each pair has more of: characters, lists.
local function gaps_of(pairs)
  local length, lists = {}, {}
  for i, pair in ipairs(pairs) do
    length[i] = judge.characters(pair.a) - judge.characters(pair.b)
    lists[i] = (has_list(common.text(pair.a)) and 1 or 0) - (has_list(common.text(pair.b)) and 1 or 0)
  end
  return length, lists
end

-- "win", "tie", "loss", or false for invalid, pair by pair.
local function labels_of(codes)
  local out = {}
  for i = 1, #codes do
    local verdict = judge.verdict(codes, i)
    out[i] = verdict ~= "invalid" and verdict
  end
  return out
end

local function majority_of(lists, skip)
  local out = {}
  for i = 1, #lists[1] do
    local labels = {}
    for k, list in ipairs(lists) do
      if k ~= skip then labels[#labels + 1] = list[i] end
    end
    out[i] = agreement.majority(labels)
  end
  return out
end

local function count(labels)
  local out = { asked = #labels, win = 0, tie = 0, loss = 0, invalid = 0 }
  for _, label in ipairs(labels) do out[label or "invalid"] = out[label or "invalid"] + 1 end
  return out
end

-- One row of the table of judges.
local function row_of(name, labels, others, length, lists)
  local c = count(labels)
  local valid = c.win + c.tie + c.loss
  return {
    judge = name, win = c.win, tie = c.tie, loss = c.loss, invalid = c.invalid,
    win_rate = valid > 0 and 100 * (c.win + c.tie / 2) / valid or nil,
    with_others = agreement.raw(labels, others),
    prefers_longer = agreement.leaning(labels, length, LONGER), prefers_lists = agreement.leaning(labels, lists),
  }
end

local function summary(pairs, clients, judgements)
  local length, lists = gaps_of(pairs)
  local labels = {}
  for k, judgement in ipairs(judgements) do labels[k] = labels_of(judgement.codes) end
  local majority = majority_of(labels)
  local p = { judges = {}, agreement = {}, majority = count(majority), verdicts = {} }
  for k, entry in ipairs(clients) do
    local row, judgement = row_of(entry.name, labels[k], majority_of(labels, k), length, lists), judgements[k]
    row.prefers_first = judge.prefers_first(judgement)
    row.orders_disagree = judgement.both > 0 and judgement.disagreements / judgement.both or nil
    p.judges[k] = row
    for other = k + 1, #clients do
      local kappa, n = agreement.kappa(labels[k], labels[other])
      p.agreement[#p.agreement + 1] = {
        a = entry.name, b = clients[other].name, agreement = agreement.raw(labels[k], labels[other]),
        kappa = kappa, n = n,
      }
    end
  end
  local longer = {}
  for i, gap in ipairs(length) do longer[i] = gap > 0 and "win" or gap < 0 and "loss" or "tie" end
  p.judges[#p.judges + 1] = row_of(LENGTH, longer, majority, length, lists)
  if #clients > 2 then p.fleiss = agreement.fleiss(labels) end
  for i in ipairs(pairs) do
    p.verdicts[i] = { majority = majority[i] or "invalid" }
    for k, entry in ipairs(clients) do p.verdicts[i][entry.name] = labels[k][i] or "invalid" end
  end
  pairs_of[p] = pairs
  return setmetatable(p, Panel)
end

---Lets several judges compare the same pairs.
---@param critics any[] two or more of what pl.ai takes, or clients
---@param candidates any rows {prompt, completions = {...}} with two or more answers each, or {prompt, a, b}
---@param opts? table see OPTIONS
---@return perilune.Panel
return function(critics, candidates, opts)
  local o = options.resolve("feedback.panel", OPTIONS, opts)
  local clients = clients_of(critics)
  local function pairs() return judge.pairs_of("feedback.panel", candidates, o.pairs) end
  local judgements = {}
  for k, entry in ipairs(clients) do
    judgements[k] = judge.stage {
      name = "panel", label = "panel: " .. entry.name, client = entry.client, inputs = { candidates }, pairs = pairs,
      order = o.order, seed = o.seed, template = o.template, max_invalid = o.max_invalid, cache = o.cache,
      options = { pairs = o.pairs },
    }
  end
  if standin.is(judgements[1]) then return judgements[1] end
  return summary(pairs(), clients, judgements)
end
