--- What all services share on the wire: replies read leniently, waits in all the
--- forms they come in, failures sorted into what may be tried again. It knows no
--- service and sends nothing.
local base = require("perilune.core").base
local clean = require("perilune.feedback.common").clean

local wire = {}

-- A \u escape that no UTF-8 text can hold: NUL, or half of a surrogate pair. The strict
-- reader refuses them; in a reply they stand for an unreadable character.
local function mend_escapes(text)
  if not text:find "\\u[dD0]" then return text end
  local out, at = {}, 1
  while true do
    local first, last = text:find("\\+u%x%x%x%x", at)
    if not first then break end
    local slashes = last - first - 4
    local code = tonumber(text:sub(last - 3, last), 16)
    local bad = false
    if slashes % 2 == 1 then
      if code == 0 or (code >= 0xDC00 and code <= 0xDFFF) then
        bad = true
      elseif code >= 0xD800 and code <= 0xDBFF then
        local low = tonumber(text:match("^\\u(%x%x%x%x)", last + 1) or "0", 16)
        if low >= 0xDC00 and low <= 0xDFFF then last = last + 6 else bad = true end
      end
    end
    out[#out + 1] = text:sub(at, bad and last - 4 or last)
    if bad then out[#out + 1] = "fffd" end
    at = last + 1
  end
  out[#out + 1] = text:sub(at)
  return table.concat(out)
end

---A reply's JSON. Bytes that are no UTF-8 and escapes that name no character become
---U+FFFD; what is no JSON gives nil and a reason.
---@param text string
---@return any value
---@return string|nil message
function wire.decode(text)
  return base.json_decode(mend_escapes(clean(text)), "reply")
end

---A field of nested tables; nil where the way there is no table (or JSON's null).
---@param value any
---@param ... string|integer
---@return any
function wire.get(value, ...)
  for _, name in ipairs { ... } do
    if type(value) ~= "table" then return nil end
    value = value[name]
  end
  if value == base.null then return nil end
  return value
end

---A field that must be a text.
---@return string|nil
function wire.text(value, ...)
  local found = wire.get(value, ...)
  return type(found) == "string" and found or nil
end

-- No call has so many tokens: a larger count is a mistake, and its price would be one.
local COUNT_MAX = 1e9

---A field that must be a count: a number from 0 on, made whole.
---@return integer|nil
function wire.count(value, ...)
  local found = wire.get(value, ...)
  return type(found) == "number" and found >= 0 and found < COUNT_MAX and math.ceil(found) or nil
end

-- ------------------------------------------------------------------- waiting

local MONTHS = { Jan = 1, Feb = 2, Mar = 3, Apr = 4, May = 5, Jun = 6, Jul = 7, Aug = 8, Sep = 9, Oct = 10, Nov = 11,
  Dec = 12 }

-- Days since 1970 of a civil date (proleptic Gregorian).
local function days(y, m, d)
  if m <= 2 then y = y - 1 end
  local era = y // 400
  local yoe = y - era * 400
  local doy = (153 * ((m + 9) % 12) + 2) // 5 + d - 1
  return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468
end

local function seconds_of(y, mo, d, h, mi, s)
  return days(y, mo, d) * 86400 + h * 3600 + mi * 60 + s
end

---Unix seconds of an HTTP date ("Wed, 21 Oct 2026 07:28:00 GMT").
---@param text string
---@return number|nil
function wire.http_date(text)
  local d, name, y, h, mi, s = text:match "^%a+, (%d%d) (%a%a%a) (%d%d%d%d) (%d%d):(%d%d):(%d%d) GMT$"
  local month = MONTHS[name or ""]
  if not month then return nil end
  return seconds_of(tonumber(y), month, tonumber(d), tonumber(h), tonumber(mi), tonumber(s))
end

---Unix seconds of an RFC 3339 time ("2026-10-21T07:28:00Z", fractions and offsets too).
---@param text string
---@return number|nil
function wire.rfc3339(text)
  local y, mo, d, h, mi, s, zone = text:match "^(%d%d%d%d)-(%d%d)-(%d%d)[Tt](%d%d):(%d%d):(%d%d%.?%d*)(.*)$"
  if not y then return nil end
  local offset = 0
  if zone ~= "Z" and zone ~= "z" then
    local sign, oh, om = zone:match "^([+-])(%d%d):(%d%d)$"
    if not sign then return nil end
    offset = (tonumber(oh) * 3600 + tonumber(om) * 60) * (sign == "-" and -1 or 1)
  end
  return seconds_of(tonumber(y), tonumber(mo), tonumber(d), tonumber(h), tonumber(mi), tonumber(s)) - offset
end

local UNITS = { h = 3600, m = 60, s = 1, ms = 1e-3, us = 1e-6, ["µs"] = 1e-6, ns = 1e-9 }

---Seconds of a duration as Go writes it: "6m0s", "12ms", "1h2m3.5s".
---@param text string
---@return number|nil
function wire.duration(text)
  local sum, at = 0, 1
  while at <= #text do
    local number, unit, stop = text:match("^(%d+%.?%d*)([%aµ]+)()", at)
    if not number or not UNITS[unit] then return nil end
    sum, at = sum + tonumber(number) * UNITS[unit], stop
  end
  return #text > 0 and sum or nil
end

---How long a reply asks to wait, in seconds from now: retry-after-ms, or retry-after as
---(fractional) seconds or an HTTP date. nil without a usable one; never negative, at most `most`.
---@param headers table<string, string>
---@param most number
---@return number|nil
function wire.retry_after(headers, most)
  local ms = tonumber(headers["retry-after-ms"])
  local wait = ms and ms / 1000
  local given = headers["retry-after"]
  if not wait and given then
    local date = wire.http_date(given)
    wait = tonumber(given) or date and date - base.walltime()
  end
  if not wait or wait ~= wait or wait < 0 then return nil end
  return math.min(wait, most)
end

-- ------------------------------------------------------------------ failures

-- Statuses after which the same request may succeed.
local AGAIN = { [408] = true, [409] = true, [425] = true, [429] = true }

-- Words of a code or type that mean "the account, not the moment": waiting does not help.
local SPENT = { "insufficient_quota", "credit_balance", "billing", "spend_limit", "usage_limit", "quota_exceeded" }

-- The same in words: Anthropic's empty account and Gemini's wrong key are a plain 400.
local SPENT_WORDS = { "credit balance", "billing", "api key" }

---What a failed reply means.
---@param status integer
---@param headers table<string, string>
---@param problem {message: string?, code: string?}
---@return "again"|"stop"|"failed" verdict try again; the whole stage is hopeless; this call is
function wire.verdict(status, headers, problem)
  local code = (problem.code or ""):lower()
  for _, word in ipairs(SPENT) do
    if code:find(word, 1, true) then return "stop" end
  end
  local message = status == 400 and (problem.message or ""):lower() or ""
  for _, words in ipairs(SPENT_WORDS) do
    if message:find(words, 1, true) then return "stop" end
  end
  if headers["x-should-retry"] == "true" then return "again" end
  local again = AGAIN[status] or status >= 500
  if headers["x-should-retry"] == "false" then again = false end
  if again then return "again" end
  if status == 401 or status == 402 or status == 403 or status == 404 or status == 429 then return "stop" end
  if status >= 300 and status < 400 then return "stop" end
  return "failed"
end

local ADVICE = {
  [400] = "the service does not accept the request: a sampling field it does not know? a text too long?",
  [401] = "the key was not accepted: is the right variable set?",
  [402] = "the account has no money left",
  [403] = "the key may not use this model",
  [404] = "is the model's name right, and does the address end where the service's does (/v1)?",
  [413] = "the request is too large",
  [429] = "too many requests, or the account's limit: rpm= and concurrency= slow it down",
}

---A line that says which service and model failed, how, and what to try.
---@param name string the client's spec
---@param status integer|nil
---@param text string|nil
---@param request_id string|nil
---@return string
function wire.message(name, status, text, request_id)
  local parts = { name .. ":" }
  if status then parts[#parts + 1] = ("status %d:"):format(status) end
  local shown = clean(text or "no explanation"):gsub("%s+", " ")
  if #shown > 300 then shown = clean(shown:sub(1, 297)) .. "..." end
  parts[#parts + 1] = shown
  if request_id then parts[#parts + 1] = ("(request %s)"):format(request_id:sub(1, 80)) end
  local advice = ADVICE[status]
  if not advice and status and status >= 300 and status < 400 then
    advice = "redirects are not followed, for they could carry the key elsewhere: give the final address"
  end
  if advice then parts[#parts + 1] = "- " .. advice end
  return table.concat(parts, " ")
end

return wire
