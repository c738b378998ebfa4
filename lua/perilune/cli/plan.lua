--- perilune plan RECIPE [key=value ...]: what a run would do, without doing it or sending
--- anything: stages, and for calls to services tokens, dollars and hours.
local base = require("perilune.core").base
local find = require "perilune.cli.find"
local prices = require "perilune.ai.prices"
local text = require "perilune.cli.table"

local function thousands(n)
  local digits, k = ("%d"):format(math.floor(n + 0.5)), nil
  repeat
    digits, k = digits:gsub("^(%d+)(%d%d%d)", "%1,%2")
  until k == 0
  return digits
end

local function dollars(sum) return sum and ("%.2f"):format(sum) or "unknown" end

local function hours(seconds)
  return seconds >= 360 and ("%.1f h"):format(seconds / 3600) or require("perilune.study.progress").duration(seconds)
end

local function note_of(stage)
  if stage.cached then return "kept from an earlier run" end
  local s = stage.service
  if not s then return stage.note or "" end
  local parts = { s.model }
  if s.batch then parts[2] = "in batches, which may take a day" end
  if s.kept > 0 then parts[#parts + 1] = thousands(s.kept) .. " answers are in the ledger" end
  return table.concat(parts, "; ")
end

-- Sums over the stages that call services; dollars of unknown price stay apart.
local function bill(stages)
  local sum = { calls = 0, kept = 0, seconds = 0, unknown = {}, counted = {}, low = 0, expected = 0, max = 0,
    prompt_tokens = 0, completion_tokens = 0 }
  for _, stage in ipairs(stages) do
    local s = stage.service
    if s then
      sum.calls, sum.kept, sum.seconds = sum.calls + s.calls, sum.kept + s.kept, sum.seconds + s.seconds
      sum.prompt_tokens = sum.prompt_tokens + s.prompt_tokens.expected
      sum.completion_tokens = sum.completion_tokens + s.completion_tokens.expected
      sum.counted[s.counted] = true
      if s.guessed and s.calls > 0 then sum.guessed = s.latency end
      if s.dollars then
        for _, share in ipairs { "low", "expected", "max" } do sum[share] = sum[share] + s.dollars[share] end
      elseif s.calls > 0 then
        sum.unknown[s.model] = (sum.unknown[s.model] or 0) + s.calls
      end
    end
  end
  return sum
end

local function say_budget(budget, sum)
  local word = budget >= sum.max and "enough in any case" or budget >= sum.expected and "enough for what is expected"
    or budget >= sum.low and "enough only if answers are short" or "not enough"
  return ("budget=%g: %s%s"):format(budget, word, next(sum.unknown) and ", without what has no price" or "")
end

local function say_bill(sum, budget)
  local known = sum.max > 0 or not next(sum.unknown)
  local lines = { ("\n%s calls to services, %s answered by the ledger; %s input and %s output tokens expected"):format(
    thousands(sum.calls), thousands(sum.kept), thousands(sum.prompt_tokens), thousands(sum.completion_tokens)) }
  if known then
    lines[#lines + 1] = ("dollars: %s expected, %s to %s (prices of %s; PL_PRICES=FILE gives others)"):format(
      dollars(sum.expected), dollars(sum.low), dollars(sum.max), prices.AS_OF)
  end
  for _, model in ipairs(text.sorted(sum.unknown)) do
    lines[#lines + 1] = ("dollars: the price of %s is unknown (%s calls): price_in= and price_out= in its spec, or PL_PRICES")
      :format(model, thousands(sum.unknown[model]))
  end
  if budget then lines[#lines + 1] = say_budget(budget, sum) end
  lines[#lines + 1] = ("time: %s of calls under the limits given (concurrency=, rpm=, tpm=)%s"):format(hours(sum.seconds),
    sum.guessed and ("; where the ledger knows no reply of a model, %g s each are assumed"):format(sum.guessed) or "")
  lines[#lines + 1] = ("tokens counted with %s; nothing was sent"):format(table.concat(text.sorted(sum.counted), ", "))
  return table.concat(lines, "\n")
end

---@param words string[]
---@param flags {json: boolean?}
return function(words, flags)
  local recipe, given = find.call(words)
  local run, ended = recipe:plan(given)
  local sum = bill(run.plan)
  if flags.json then
    io.stdout:write(base.json_encode {
      recipe = recipe.name, stages = base.json_array(run.plan), ended = ended, services = next(sum.counted) and {
        calls = sum.calls, kept = sum.kept, seconds = sum.seconds, prompt_tokens = sum.prompt_tokens,
        completion_tokens = sum.completion_tokens, unknown_price = next(sum.unknown) and sum.unknown or nil,
        dollars = { low = sum.low, expected = sum.expected, max = sum.max },
      } or nil,
    }, "\n")
    return 0
  end
  local rows, calls, tokens, cached = {}, 0, 0, 0
  for i, stage in ipairs(run.plan) do
    calls, tokens = calls + stage.calls, tokens + stage.tokens
    if stage.cached then cached = cached + 1 end
    local s = stage.service
    rows[i] = {
      stage.arm or "", stage.seed ~= nil and tostring(stage.seed) or "", stage.name,
      stage.calls > 0 and thousands(stage.calls) or "-", stage.tokens > 0 and thousands(stage.tokens) or "-",
      s and (s.calls > 0 and dollars(s.dollars and s.dollars.expected) or "0.00") or "-",
      s and hours(s.seconds) or "-", note_of(stage),
    }
  end
  rows[#rows + 1] = { "total", "", ("%d stages"):format(#run.plan), thousands(calls), thousands(tokens),
    next(sum.counted) and dollars(sum.expected) or "-", next(sum.counted) and hours(sum.seconds) or "-",
    ("%d kept"):format(cached) }
  io.stdout:write(text.render({ "arm", "seed", "stage", "calls", "tokens at most", "dollars", "time", "" }, rows), "\n")
  if next(sum.counted) then io.stdout:write(say_bill(sum, given.budget), "\n") end
  if ended then io.stdout:write(ended, "\n") end
  return 0
end
