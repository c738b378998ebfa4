--- How far judges agree: raw agreement, Cohen's kappa of two, Fleiss' kappa of many, and what a judge leans to. Labels
--- are any plain values, one list a judge; false is missing. Plain Lua on plain lists.
local agreement = {}

local function share(part, whole) return whole > 0 and part / whole or nil end

-- Calls f(label of a, label of b) for every item that both have labelled.
local function each(a, b, f)
  if #a ~= #b then error(("eval.agreement: lists of %d and %d labels"):format(#a, #b), 3) end
  for i = 1, #a do
    if a[i] and b[i] then f(a[i], b[i]) end
  end
end

---The share of items on which two judges agree.
---@param a (any|false)[]
---@param b (any|false)[]
---@return number|nil share nil without an item that both have labelled
---@return integer n such items
function agreement.raw(a, b)
  local same, n = 0, 0
  each(a, b, function(x, y)
    n = n + 1
    if x == y then same = same + 1 end
  end)
  return share(same, n), n
end

---Cohen's kappa: agreement beyond what two judges with these shares of labels would reach by chance, 1 at best.
---@param a (any|false)[]
---@param b (any|false)[]
---@return number|nil kappa nil where chance alone agrees always, or nothing was labelled by both
---@return integer n
function agreement.kappa(a, b)
  local same, n, left, right = 0, 0, {}, {}
  each(a, b, function(x, y)
    n = n + 1
    if x == y then same = same + 1 end
    left[x], right[y] = (left[x] or 0) + 1, (right[y] or 0) + 1
  end)
  if n == 0 then return nil, 0 end
  local chance = 0
  for label, times in pairs(left) do chance = chance + times * (right[label] or 0) end
  chance = chance / (n * n)
  if chance >= 1 then return nil, n end
  return (same / n - chance) / (1 - chance), n
end

---Fleiss' kappa of any number of judges, over the items that all of them labelled.
---@param lists (any|false)[][] one list of labels a judge; two judges or more
---@return number|nil kappa nil where chance alone agrees always, or there is no such item
---@return integer n
function agreement.fleiss(lists)
  local judges, n, within, totals = #lists, 0, 0, {}
  if judges < 2 then error("eval.agreement: Fleiss' kappa needs two judges or more", 2) end
  for i = 1, #lists[1] do
    local times, complete = {}, true
    for _, list in ipairs(lists) do
      local label = list[i]
      complete = complete and label
      if label then times[label] = (times[label] or 0) + 1 end
    end
    if complete then
      n = n + 1
      local pairs_alike = 0
      for label, k in pairs(times) do
        pairs_alike, totals[label] = pairs_alike + k * (k - 1), (totals[label] or 0) + k
      end
      within = within + pairs_alike / (judges * (judges - 1))
    end
  end
  if n == 0 then return nil, 0 end
  local chance = 0
  for _, k in pairs(totals) do chance = chance + k * k end
  chance = chance / (n * judges) ^ 2
  if chance >= 1 then return nil, n end
  return (within / n - chance) / (1 - chance), n
end

---The label that more than half of the judges gave; "tie" where they gave labels and none has a majority; false where
---nobody gave one.
---@param labels (string|false)[]
---@return string|false
function agreement.majority(labels)
  local times, n = {}, 0
  for i = 1, #labels do
    if labels[i] then times[labels[i]], n = (times[labels[i]] or 0) + 1, n + 1 end
  end
  for label, k in pairs(times) do
    if 2 * k > n then return label end
  end
  return n > 0 and "tie" or false
end

---The share of verdicts that went to the side that has more of something, among those that were decided and where one
---side has: 0.5 is no leaning.
---@param verdicts (string|false)[] "win" (the first answer), "loss", "tie" or false
---@param gaps number[] how much more the first answer has
---@param more? number a gap counts above this (default 0)
---@return number|nil share
---@return integer n
function agreement.leaning(verdicts, gaps, more)
  local with, n = 0, 0
  for i, verdict in ipairs(verdicts) do
    if (verdict == "win" or verdict == "loss") and math.abs(gaps[i]) > (more or 0) then
      n = n + 1
      if (verdict == "win") == (gaps[i] > 0) then with = with + 1 end
    end
  end
  return share(with, n), n
end

return agreement
