--- What calls cost: a dated table of list prices, which a file of the user's extends
--- or corrects. A price that is not known is unknown, never 0.
---   PL_PRICES=prices.json   {"my-model": {"input": 0.1, "output": 0.4, "as_of": "2026-11-01"}}
---   openai:MODEL?price_in=0&price_out=0      for one client
local base = require("perilune.core").base

local prices = {}

---The day the table below was last looked at. Services change prices without notice.
prices.AS_OF = "2026-11-25"

---@class perilune.ai.Price dollars per million tokens
---@field input number
---@field output number
---@field cached number of input tokens the service had cached; input where it tells none
---@field batch number share of the price that a batch costs
---@field as_of string

-- Name of a model, or its beginning before a dated suffix: input, output, cached input. A dated one that costs
-- something else than its name does today has a row of its own.
local LIST = {
  ["gpt-3.5-turbo"] = { 0.5, 1.5 },
  ["gpt-3.5-turbo-0301"] = { 1.5, 2 },
  ["gpt-3.5-turbo-0613"] = { 1.5, 2 },
  ["gpt-3.5-turbo-1106"] = { 1, 2 },
  ["gpt-3.5-turbo-16k"] = { 3, 4 },
  ["gpt-4"] = { 30, 60 },
  ["gpt-4-turbo"] = { 10, 30 },
  ["gpt-4-1106-preview"] = { 10, 30 },
  ["gpt-4-0125-preview"] = { 10, 30 },
  ["gpt-4o"] = { 2.5, 10, 1.25 },
  ["gpt-4o-2024-05-13"] = { 5, 15 },
  ["gpt-4o-mini"] = { 0.15, 0.6, 0.075 },
  ["gpt-4.1"] = { 2, 8, 0.5 },
  ["gpt-4.1-mini"] = { 0.4, 1.6, 0.1 },
  ["gpt-4.1-nano"] = { 0.1, 0.4, 0.025 },
  ["gpt-5"] = { 1.25, 10, 0.125 },
  ["gpt-5-mini"] = { 0.25, 2, 0.025 },
  ["gpt-5-nano"] = { 0.05, 0.4, 0.005 },
  ["o1"] = { 15, 60, 7.5 },
  ["o3"] = { 2, 8, 0.5 },
  ["o3-mini"] = { 1.1, 4.4, 0.55 },
  ["o4-mini"] = { 1.1, 4.4, 0.275 },
  ["claude-3-haiku"] = { 0.25, 1.25, 0.03 },
  ["claude-3-5-haiku"] = { 0.8, 4, 0.08 },
  ["claude-haiku-4-5"] = { 1, 5, 0.1 },
  ["claude-3-5-sonnet"] = { 3, 15, 0.3 },
  ["claude-3-7-sonnet"] = { 3, 15, 0.3 },
  ["claude-sonnet-4"] = { 3, 15, 0.3 },
  ["claude-sonnet-4-5"] = { 3, 15, 0.3 },
  ["claude-3-opus"] = { 15, 75, 1.5 },
  ["claude-opus-4"] = { 15, 75, 1.5 },
  ["claude-opus-4-1"] = { 15, 75, 1.5 },
  ["claude-opus-4-5"] = { 5, 25, 0.5 },
  ["gemini-1.5-flash"] = { 0.075, 0.3 },
  ["gemini-1.5-pro"] = { 1.25, 5 },
  ["gemini-2.0-flash"] = { 0.1, 0.4, 0.025 },
  ["gemini-2.5-flash-lite"] = { 0.1, 0.4, 0.01 },
  ["gemini-2.5-flash"] = { 0.3, 2.5, 0.03 },
  ["gemini-2.5-pro"] = { 1.25, 10, 0.125 },
}

local function row(input, output, cached, as_of)
  return { input = input, output = output, cached = cached or input, batch = 0.5, as_of = as_of }
end

-- "gpt-4o-2024-08-06", "gpt-4-0314", "claude-3-opus-20240229", "...-latest": the model without its date.
local function undated(model)
  return (model:gsub("%-%d%d%d%d%-%d%d%-%d%d$", ""):gsub("%-20%d%d%d%d%d%d$", ""):gsub("%-latest$", "")
    :gsub("%-%d%d%d%d$", ""):gsub("%-%d%d%d$", ""))
end

local function user_table()
  local path = os.getenv "PL_PRICES"
  if not path or path == "" then return {} end
  local list, message = base.json_read(path)
  if not list then error("PL_PRICES: " .. message, 0) end
  for model, p in pairs(list) do
    if type(p) ~= "table" or type(p.input) ~= "number" or type(p.output) ~= "number" or p.input < 0 or p.output < 0 then
      error(("PL_PRICES: %s: %q needs \"input\" and \"output\", dollars per million tokens"):format(path, model), 0)
    end
  end
  return list
end

---The price of a model, nil if it is not known. PL_PRICES goes before the built-in table,
---a full name before one without its date.
---@param model string
---@return perilune.ai.Price|nil
function prices.of(model)
  local mine = user_table()
  local plain = undated(model)
  for _, name in ipairs { model, plain } do
    local p = mine[name]
    if p then return row(p.input, p.output, p.cached, p.as_of or "PL_PRICES") end
  end
  local p = LIST[model] or LIST[plain]
  return p and row(p[1], p[2], p[3], prices.AS_OF) or nil
end

---Dollars of one call; nil without a price.
---@param price perilune.ai.Price|nil
---@param prompt_tokens number all input tokens, cached ones among them
---@param completion_tokens number
---@param o? {cached: number?, batch: boolean?}
---@return number|nil
function prices.cost(price, prompt_tokens, completion_tokens, o)
  if not price then return nil end
  local cached = o and o.cached or 0
  local dollars = ((prompt_tokens - cached) * price.input + cached * price.cached + completion_tokens * price.output) / 1e6
  return o and o.batch and dollars * price.batch or dollars
end

return prices
