--- The money of a study: the most it may spend on services, over all its runs and stages
--- (`budget=`), and what is spent. It sends nothing and writes nothing.
local stage = require "perilune.study.stage"

local budget = {
  ---The most dollars that this process may spend outside of recipes; nil: no limit. Theirs is `budget=`.
  ---@type number|nil
  script = nil,
}

local SCRIPT = "script"        -- what calls outside of recipes are filed under

local before = {}              -- spent by scripts before this process, by path of the ledger

local function sum_of(book, study)
  local spent = book:spent { study = study }
  return spent.paid + spent.possibly
end

---@class perilune.ai.Budget
---@field study string what calls are filed under
---@field limit number|nil dollars
---@field spent number dollars that are paid or possibly paid, without what is reserved
local Budget = {}
Budget.__index = Budget

---@param book perilune.Ledger
---@return perilune.ai.Budget
function budget.open(book)
  local current = stage.current()
  local self = setmetatable({ book = book, study = current and current.study or SCRIPT }, Budget)
  self.spent, self.version = sum_of(book, self.study), book:version()
  if current then
    self.shown, self.base = current.params and current.params.budget, 0
  else
    before[book.path] = before[book.path] or self.spent
    self.shown, self.base = budget.script, before[book.path]
  end
  self.limit = self.shown and self.base + self.shown
  return self
end

---A cap needs prices. Raises where there is one and the service's are not known.
---@param service perilune.ai.Service
function Budget:check(service)
  if self.limit and not service.price then
    error(("%s: budget=%g needs a price, and the price of %s is not known: give price_in= and price_out= (dollars "
      .. "per million tokens), or a table in PL_PRICES"):format(service.name, self.shown, service.model), 0)
  end
end

---Looks again where another process has written since: it may spend for the same study.
---@param noted? number dollars of our own that the ledger counts already and that are reserved
function Budget:refresh(noted)
  if not self.limit then return end
  local version = self.book:version()
  if version == self.version then return end
  self.version, self.spent = version, sum_of(self.book, self.study) - (noted or 0)
end

---@param dollars number what is reserved and what comes on top
---@return boolean
function Budget:affords(dollars) return not self.limit or self.spent + dollars <= self.limit end

---@param service perilune.ai.Service
---@param estimate number of the next call
---@param done integer
---@param n integer
---@return string
function Budget:message(service, estimate, done, n)
  return ("%s: budget=%g is reached: %.4f dollars are spent or possibly spent, and the next call may cost %.4f. "
    .. "%d of %d answers are kept; a larger budget goes on from here"):format(service.name, self.shown,
    self.spent - self.base, estimate, done, n)
end

return budget
