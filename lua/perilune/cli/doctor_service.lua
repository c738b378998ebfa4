--- perilune doctor openai:MODEL...: what an endpoint really honours. Compatible servers
--- drop unknown fields without a word, so each is tried: a dozen short calls, filed in
--- the ledger under "doctor" and never answered from it.
local ai = require "perilune.ai"
local base = require("perilune.core").base
local engine = require "perilune.ai.engine"
local render = require("perilune.cli.table").render

local QUESTION = "Name a fruit, a colour and a number, in one short line."
local SCHEMA = { type = "object", properties = { fruit = { type = "string" } },
  required = base.json_array { "fruit" }, additionalProperties = false }

local asked = 0

-- One fresh call; an answer, or nil and why.
local function try(client, fields)
  local service, answer = client.provider, nil
  asked = asked + 1
  local call = { messages = { { role = "user", content = QUESTION } }, max_tokens = 32, about = "doctor",
    sample = ("doctor %.6f %d %d"):format(base.walltime(), base.pid(), asked) }
  for k, v in pairs(fields) do call[k] = v end
  local ok, problem = pcall(engine.run, service, {
    n = 1, stage = "doctor", make = function() return call end, done = function(_, a) answer = a end,
  })
  if not ok then return nil, problem end
  if answer.outcome ~= "answered" then return nil, answer.problem or answer.outcome end
  return answer
end

local function yes(ok, detail) return { ok and "yes" or "no", detail or "" } end
local function failed(why) return { "refused", (tostring(why):gsub("%s+", " "):sub(1, 100)) } end

local CHECKS = {}
local function check(name, f) CHECKS[#CHECKS + 1] = { name = name, run = f } end

check("answers", function(spec)
  local began = base.now()
  local a, why = try(ai.client(spec), {})
  if not a then return failed(why) end
  return yes(true, ("%.2f s: %s"):format(base.now() - began, (a.text:gsub("%s+", " "):sub(1, 60))))
end)

check("counts tokens", function(spec)
  local a, why = try(ai.client(spec), {})
  if not a then return failed(why) end
  local u = a.usage or {}
  return yes(u.prompt_tokens and u.completion_tokens, u.prompt_tokens
    and ("%d in, %d out"):format(u.prompt_tokens, u.completion_tokens or 0) or "costs will be estimated")
end)

check("max_tokens", function(spec)
  local a, why = try(ai.client(spec), { max_tokens = 2 })
  if not a then return failed(why) end
  return yes(a.finish == "length", "finish: " .. tostring(a.finish))
end)

check("seed", function(spec)
  local client = ai.client(spec)
  if not client.provider.can.seed then return yes(false, "the interface has none") end
  local one, why = try(client, { seed = 7, temperature = 1 })
  if not one then return failed(why) end
  local two, other = try(client, { seed = 7, temperature = 1 }), try(client, { seed = 8, temperature = 1 })
  if not two or not other then return failed "a second call failed" end
  local same, differs = one.text == two.text, one.text ~= other.text
  return yes(same, same and (differs and "same seed, same text; another seed, another" or "but another seed gives it too")
    or "the same seed gave two texts")
end)

check("temperature", function(spec)
  local a, why = try(ai.client(spec), { temperature = 0 })
  if not a then return failed(why) end
  local b = try(ai.client(spec), { temperature = 0 })
  return yes(b and a.text == b.text, b and a.text == b.text and "0 repeats itself" or "0 does not repeat itself")
end)

check("log-probabilities", function(spec)
  local client = ai.client(spec)
  if not client.provider.can.logprobs then return yes(false, "the interface has none") end
  local a, why = try(client, { top_logprobs = 5, max_tokens = 2 })
  if not a then return failed(why) end
  local first = a.logprobs and a.logprobs[1]
  return yes(first, first and ("%d likeliest tokens at each place"):format(#first.top) or "asked for and left out")
end)

check("structured output", function(spec)
  local client = ai.client(spec)
  if not client.provider.can.schema then return yes(false, "the interface has none") end
  local a, why = try(client, { schema = SCHEMA, max_tokens = 64 })
  if not a then return failed(why) end
  local value = base.json_decode(a.text, "answer")
  return yes(type(value) == "table" and type(value.fruit) == "string", a.text:gsub("%s+", " "):sub(1, 60))
end)

check("streaming", function(spec)
  local client = ai.client(spec)
  client.provider.options.stream = true
  local a, why = try(client, {})
  if not a then return failed(why) end
  return yes(true, a.usage and a.usage.completion_tokens and "with token counts" or "without token counts")
end)

check("rate limits", function(spec)
  local client = ai.client(spec)
  local a, why = try(client, {})
  if not a then return failed(why) end
  local g, parts = client.provider.gate, {}
  if g.requests_limit then parts[#parts + 1] = ("%.0f requests a window"):format(g.requests_limit) end
  if g.tokens_limit then parts[#parts + 1] = ("%.0f tokens a window"):format(g.tokens_limit) end
  return yes(#parts > 0, #parts > 0 and table.concat(parts, ", ") or "not told: rpm= and tpm= set them")
end)

check("errors", function(spec)
  local head, tail = spec:match "^([^@?]*)(.*)$"
  local a, why = try(ai.client(head .. "-that-does-not-exist" .. tail), {})
  if a then return yes(false, "a model that does not exist answers") end
  return yes(true, (tostring(why):gsub("%s+", " "):sub(1, 100)))
end)

---@param spec string
---@param flags {json: boolean?}
return function(spec, flags)
  local service = ai.client(spec).provider
  if not service.request then error(("doctor: %s is no service over HTTP"):format(spec), 0) end
  if service.options.batch then error("doctor: its calls are single ones: leave batch out", 0) end
  local rows, report = {}, { spec = spec, address = service.base, checks = {} }
  for i, c in ipairs(CHECKS) do
    local row = c.run(spec)
    rows[i] = { c.name, row[1], row[2] }
    report.checks[c.name] = { result = row[1], detail = row[2] }
    if i == 1 and row[1] ~= "yes" then break end    -- what follows would only repeat it
  end
  if flags.json then
    io.stdout:write(base.json_encode(report), "\n")
  else
    local price = service.price
    io.stdout:write(("%s at %s\n"):format(service.model, service.base), render({ "", "", "" }, rows), "\n",
      price and ("price: %g dollars in, %g out per million tokens (%s)\n"):format(price.input, price.output, price.as_of)
        or "price: unknown (price_in=, price_out= or PL_PRICES)\n")
  end
  return rows[1][2] == "yes" and 0 or 1
end
