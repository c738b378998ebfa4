--- The ledger of paid calls, one SQLite file. Each request is noted before it is sent
--- and its reply is written before it is used, so that a process killed at any moment
--- has lost no answer and hidden no spending. It knows no service and no price: those
--- who call it do. Keys of services never come here.
---
---   local l = ledger.default()
---   local id
---   l:transaction(function() id = l:note { key = k, provider = "openai", model = m, endpoint = e, estimate = 0.002 } end)
---   ... send; the reply comes ...
---   l:record(id, { status = 200, reply = body, final = true, outcome = "answered", price = 0.0017 })
---   l:find(k).reply                      -- from now on, without a call
---
--- The states of an attempt: noted -> answered (a whole reply came, whatever its status),
--- unsent (surely never reached the service) or lost (sent, no whole reply). Possibly paid
--- are those that are noted or lost.
local core = require "perilune.core"
local options = require "perilune.options"
local process = require "perilune.study.process"
local study_store = require "perilune.study.store"

local base = core.base

local ledger = {}

local FORMAT = 1

local SCHEMA = [[
CREATE TABLE meta (
  name  TEXT PRIMARY KEY,           -- format, secret
  value TEXT NOT NULL
) WITHOUT ROWID, STRICT;

CREATE TABLE attempts (
  id                INTEGER PRIMARY KEY,
  key               TEXT NOT NULL,  -- of the call: hash of everything sent and the index of the sample
  state             TEXT NOT NULL CHECK (state IN ('noted', 'answered', 'unsent', 'lost')),
  final             INTEGER NOT NULL DEFAULT 0,  -- 1: its reply is the answer of the call
  owner             TEXT NOT NULL,  -- mark of the process that noted it (study/process.lua)
  started           REAL NOT NULL,  -- unix seconds when it was noted
  ended             REAL,           -- when its end was written
  provider          TEXT NOT NULL,
  model             TEXT NOT NULL,
  endpoint          TEXT NOT NULL,
  study             TEXT,           -- on whose behalf; NULL outside of studies
  stage             TEXT,
  sample            TEXT,           -- index among several samples of one prompt
  batch             INTEGER REFERENCES batches (id),  -- NULL: sent on its own
  estimate          REAL,           -- USD it was expected to cost at most; NULL: unknown
  price             REAL,           -- USD it cost; NULL: unknown, or no reply
  estimated         INTEGER NOT NULL DEFAULT 0,  -- 1: tokens and price are ours, the reply named none
  prompt_tokens     INTEGER,        -- expected; once answered, those of the bill
  completion_tokens INTEGER,
  cached_tokens     INTEGER,        -- the part of prompt_tokens that the service had in its cache
  status            INTEGER,        -- of HTTP
  outcome           TEXT,           -- answered, refused, invalid, failed
  seconds           REAL,           -- from sending to the whole reply
  request_id        TEXT,           -- as the service calls it
  reason            TEXT,           -- why unsent or lost
  CHECK (final IN (0, 1) AND estimated IN (0, 1) AND estimate >= 0 AND price >= 0 AND prompt_tokens >= 0
    AND completion_tokens >= 0)
) STRICT;
CREATE UNIQUE INDEX one_answer ON attempts (key) WHERE final = 1;
CREATE INDEX in_flight ON attempts (key) WHERE state = 'noted';
CREATE INDEX by_time ON attempts (started);
CREATE INDEX by_study ON attempts (study);

-- Apart from attempts, so that sums over those do not read through gigabytes of text.
CREATE TABLE replies (
  attempt INTEGER PRIMARY KEY REFERENCES attempts (id),
  text    TEXT NOT NULL             -- the raw body
) STRICT;

CREATE TABLE batches (
  id       INTEGER PRIMARY KEY,
  provider TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  remote   TEXT,                    -- id at the service; NULL: it was not told to us yet
  state    TEXT NOT NULL,           -- 'noted', 'running', 'left' (its process waits for it no more), or how it ended
  open     INTEGER NOT NULL DEFAULT 1,  -- 0: all its results were read, or it is given up
  started  REAL NOT NULL,
  detail   TEXT                     -- what its provider needs to go on
) STRICT;
]]

local USD_MAX, COUNT_MAX = 1e9, 1 << 53

local NOTE = {
  key = { type = "string", doc = "hash of everything sent and the index of the sample" },
  provider = { type = "string", doc = "such as openai" },
  model = { type = "string", doc = "the service's name of it" },
  endpoint = { type = "string", doc = "URL without secrets" },
  study = { type = "string", doc = "on whose behalf" },
  stage = { type = "string", doc = "which stage of it" },
  sample = { type = "string|integer", doc = "index among several samples" },
  batch = { type = "integer", doc = "id from l:batch" },
  estimate = { type = "number", min = 0, max = USD_MAX, doc = "USD at most; none: unknown" },
  prompt_tokens = { type = "integer", min = 0, max = COUNT_MAX, doc = "expected" },
}

local OUTCOMES = { answered = true, refused = true, invalid = true, failed = true }

local RECORD = {
  status = { type = "integer", doc = "of HTTP" },
  reply = { type = "string", doc = "raw body, keys of services taken out" },
  final = { false, doc = "this is the answer of the call; it is never sent again" },
  outcome = { type = "string", choices = { "answered", "refused", "invalid", "failed" }, doc = "how the call ended" },
  prompt_tokens = { type = "integer", min = 0, max = COUNT_MAX, doc = "of the bill" },
  completion_tokens = { type = "integer", min = 0, max = COUNT_MAX, doc = "of the bill" },
  cached_tokens = { type = "integer", min = 0, max = COUNT_MAX, doc = "of the bill" },
  price = { type = "number", min = 0, max = USD_MAX, doc = "USD; 0 for a reply that costs nothing; none: unknown" },
  estimated = { false, doc = "tokens and price are our estimate" },
  seconds = { type = "number", min = 0, doc = "from sending to the whole reply" },
  request_id = { type = "string", doc = "as the service calls it" },
}

local BATCH = {
  provider = { type = "string", doc = "such as openai" },
  endpoint = { type = "string", doc = "URL without secrets" },
  detail = { type = "string", doc = "what the provider needs to go on" },
}

local BATCH_CHANGE = {
  remote = { type = "string", doc = "id at the service" },
  state = { type = "string", doc = "in the service's words" },
  open = { type = "boolean", doc = "false: all results were read, or it is given up" },
  detail = { type = "string", doc = "what the provider needs to go on" },
}

-- What one statement text is prepared to, once a ledger.
local SQL = {
  find = [[
    SELECT a.id AS attempt, a.outcome, a.status, r.text AS reply, a.model, a.prompt_tokens, a.completion_tokens,
      a.price, a.seconds, a.request_id
    FROM attempts a LEFT JOIN replies r ON r.attempt = a.id WHERE a.key = ? AND a.final = 1]],
  note = [[
    INSERT INTO attempts (key, state, owner, started, provider, model, endpoint, study, stage, sample, batch, estimate,
      prompt_tokens) VALUES (?, 'noted', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)]],
  record = [[
    UPDATE attempts SET state = 'answered', ended = ?, status = ?, final = ?, outcome = ?, prompt_tokens = ?,
      completion_tokens = ?, cached_tokens = ?, price = ?, estimated = ?, seconds = ?, request_id = ?
    WHERE id = ? AND state IN ('noted', 'lost')]],
  reply = "INSERT INTO replies (attempt, text) VALUES (?, ?)",
  accept = "UPDATE OR IGNORE attempts SET final = 1 WHERE id = ? AND state = 'answered' AND outcome IS NOT NULL",
  ended = "UPDATE attempts SET state = ?, ended = ?, reason = ? WHERE id = ? AND state = 'noted'",
  state = "SELECT state FROM attempts WHERE id = ?",
  ours = "SELECT 1 FROM attempts WHERE id = ? AND key = ? AND owner = ? AND state = 'noted'",
  answer = "SELECT id FROM attempts WHERE final = 1 AND key = (SELECT key FROM attempts WHERE id = ?)",
  busy = [[
    SELECT id AS attempt, key, owner, started, provider, model, endpoint, study, stage
    FROM attempts WHERE key = ? AND state = 'noted' AND owner <> ?
      AND NOT EXISTS (SELECT 1 FROM batches WHERE batches.id = attempts.batch AND batches.state = 'left')
    ORDER BY id DESC]],
  batch = "INSERT INTO batches (provider, endpoint, detail, state, started) VALUES (?, ?, ?, 'noted', ?)",
  batch_change = [[
    UPDATE batches SET remote = coalesce(?, remote), state = coalesce(?, state), open = coalesce(?, open),
      detail = coalesce(?, detail) WHERE id = ?]],
  batches = "SELECT id, provider, endpoint, remote, state, started, detail FROM batches WHERE open = 1 ORDER BY id",
  batch_attempts = "SELECT id AS attempt, key, prompt_tokens FROM attempts WHERE batch = ? AND state = 'noted' ORDER BY id",
  own_batch = "UPDATE attempts SET owner = ? WHERE batch = ? AND state = 'noted'",
  knows_batch = "SELECT 1 FROM batches WHERE remote = ? AND endpoint = ?",
  version = "PRAGMA data_version",
}

-- Sums over a group of attempts; tokens and seconds of those that were answered.
local SUMS = [[
  sum(final) AS calls, count(*) AS attempts, sum(state = 'answered') AS answered,
  sum(state IN ('noted', 'lost')) AS possibly_paid,
  coalesce(sum(CASE WHEN state = 'answered' THEN prompt_tokens END), 0) AS prompt_tokens,
  coalesce(sum(completion_tokens), 0) AS completion_tokens,
  total(price) AS usd,
  total(CASE WHEN state IN ('noted', 'lost') THEN estimate END) AS usd_possibly,
  coalesce(sum((state = 'answered' AND price IS NULL) OR (state IN ('noted', 'lost') AND estimate IS NULL)), 0)
    AS unknown_price,
  total(seconds) AS seconds]]

local GROUPS = {
  stage = "coalesce(stage, '-')",
  study = "coalesce(study, '-')",
  model = "provider || ':' || model",
  day = "strftime('%Y-%m-%d', started, 'unixepoch')",
}

---@class perilune.Ledger
---@field path string
local Ledger = {}
Ledger.__index = Ledger

function Ledger:__tostring() return "ledger " .. self.path end

---Where the ledger lies: PL_LEDGER, or ledger.db in the home directory.
---@return string
function ledger.path()
  local path = os.getenv "PL_LEDGER"
  return path and path ~= "" and path or study_store.home() .. "/ledger.db"
end

-- A word as a shell takes it; the names of batches are a service's, and may hold anything.
local function shell_word(text)
  if text:find "^[%w_./=:@%%+-]+$" then return text end
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

---`perilune ledger WORDS` for a shell, with what it takes to come to the same ledger as this process.
---@param ... string
---@return string
function ledger.command(...)
  local path, home = os.getenv "PL_LEDGER", study_store.home()
  local words = { "perilune", "ledger", ... }
  local named = path and path ~= ""
  if not named and (study_store.override or home ~= "runs") then words[#words + 1] = "--home=" .. home end
  for i, word in ipairs(words) do words[i] = shell_word(word) end
  if named then table.insert(words, 1, "PL_LEDGER=" .. shell_word(path)) end
  return table.concat(words, " ")
end

local function fail(path, message) error(("%s: %s"):format(path, message), 0) end

-- 256 bits from the system, in hex.
local function random_secret()
  local file = assert(io.open("/dev/urandom", "rb"))
  local bytes = file:read(32)
  file:close()
  if not bytes or #bytes < 32 then error("/dev/urandom: gave too few bytes", 0) end
  return (bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

-- Raises unless this is a ledger that we know; false: it is empty.
local function check(db, path)
  if db:prepare("SELECT count(*) FROM sqlite_schema"):value() == 0 then return false end
  local other = "is a SQLite database, but no ledger; it was left as it is. Name another file with PL_LEDGER"
  if db:prepare("SELECT count(*) FROM sqlite_schema WHERE name IN ('meta', 'attempts')"):value() < 2 then
    fail(path, other)
  end
  local format = math.tointeger(tonumber(db:prepare("SELECT value FROM meta WHERE name = 'format'"):value()))
  if not format then fail(path, other) end
  if format > FORMAT then
    fail(path, ("a ledger of format %d, made by a newer perilune; this one knows format %d. It was left as it is: "
      .. "update perilune, or name another file with PL_LEDGER"):format(format, FORMAT))
  end
  return true
end

local function create(db)
  db:exec(SCHEMA)
  local put = db:prepare "INSERT INTO meta VALUES (?, ?)"
  put:run("format", tostring(FORMAT))
  put:run("secret", random_secret())
end

-- Opens with these options and runs f on it; when f raises, the file is closed first.
local function open_with(path, store_options, f)
  local db, message = core.store.open(path, store_options)
  if not db then error(message, 0) end
  local ok, problem = pcall(f, db)
  if not ok then
    db:close()
    error(problem, 0)
  end
  return db
end

---Opens a ledger and makes it where there is none.
---@param path string
---@return perilune.Ledger
function ledger.open(path)
  local parent = path:match "^(.+)/[^/]*$"
  if parent and not base.is_dir(parent) then
    local ok, message = base.mkdirs(parent)
    if not ok then error(message, 0) end
  end
  if base.exists(path) then                               -- to open for writing would change a file that is not ours
    open_with(path, { readonly = true }, function(db) check(db, path) end):close()
  end
  local db = open_with(path, {}, function(db)
    if check(db, path) then return end
    db:transaction(function()
      if not check(db, path) then create(db) end          -- another process may have been faster
    end)
  end)
  local s = {}
  for name, sql in pairs(SQL) do s[name] = db:prepare(sql) end
  return setmetatable({ path = path, db = db, s = s, owner = process.mine() }, Ledger)
end

local opened = {}
---The ledger of this process: one for each path, opened when first asked for.
---@return perilune.Ledger
function ledger.default()
  local path = ledger.path()
  if not opened[path] then opened[path] = ledger.open(path) end
  return opened[path]
end

function Ledger:close() self.db:close() end

---64 hexadecimal digits, made once for each ledger: the key of the fences in judge prompts.
---@return string
function Ledger:secret()
  if not self.known_secret then
    self.known_secret = self.db:prepare("SELECT value FROM meta WHERE name = 'secret'"):value()
  end
  return self.known_secret
end

---The one final answer of a call.
---@param key string
---@return {attempt: integer, outcome: string, status: integer, reply: string, model: string, prompt_tokens: integer?, completion_tokens: integer?, price: number?, seconds: number?, request_id: string?}|nil
function Ledger:find(key) return self.s.find:row(key) end

---Runs f; what it notes and records is on disk when this returns, all of it or, if f
---raises, nothing. Inside another transaction f becomes a part of that.
---@param f fun(...): ...
---@return ... # what f returns
function Ledger:transaction(f, ...)
  if self.db:in_transaction() then return f(...) end
  return self.db:transaction(f, ...)
end

local KINDS = { string = "string", boolean = "boolean" }

-- What options.resolve would take as it is, at a tenth of its cost: calls come by the
-- thousand. Whatever is not plainly right goes there, for its message.
local function checked(where, spec, given)
  for name, value in pairs(given) do
    local row = spec[name]
    local kind = row and (row.type or type(row[1]))
    local fine
    if kind == "number" or kind == "integer" then
      fine = (kind == "number" and type(value) or math.type(value)) == kind and value >= (row.min or 0)
        and value <= (row.max or COUNT_MAX)
    else
      fine = kind and not row.choices and type(value) == KINDS[kind]
    end
    if not fine and not (row and row.choices and OUTCOMES[value]) then return options.resolve(where, spec, given) end
  end
  return given
end

---Notes a request before it is sent. From here on it is possibly paid.
---@param call {key: string, provider: string, model: string, endpoint: string, study: string?, stage: string?, sample: integer?, batch: integer?, estimate: number?, prompt_tokens: integer?}
---@return integer attempt
function Ledger:note(call)
  local c = checked("ledger.note", NOTE, call)
  for _, name in ipairs { "key", "provider", "model", "endpoint" } do
    if not c[name] or c[name] == "" then error(("ledger.note: %s is missing"):format(name), 2) end
  end
  local _, id = self.s.note:run(c.key, self.owner, base.walltime(), c.provider, c.model, c.endpoint, c.study, c.stage,
    c.sample, c.batch, c.estimate, c.prompt_tokens)
  return id
end

-- Why an attempt could not be ended.
local function not_open(self, attempt)
  local state = self.s.state:value(attempt)
  error(("%s: attempt %s %s"):format(self.path, attempt, state and "has its end already: " .. state
    or "is not in this ledger"), 0)
end

local function write_reply(self, attempt, r)
  local ok, changed = pcall(self.s.record.run, self.s.record, base.walltime(), r.status, r.final or false, r.outcome,
    r.prompt_tokens, r.completion_tokens, r.cached_tokens, r.price, r.estimated or false, r.seconds, r.request_id, attempt)
  if not ok then
    if tostring(changed):find("UNIQUE constraint failed: attempts.key", 1, true) then
      error(("%s: attempt %d: this call has its answer already, from attempt %s; a second final answer is refused")
        :format(self.path, attempt, self.s.answer:value(attempt)), 0)
    end
    error(changed, 0)
  end
  if changed == 0 then not_open(self, attempt) end
  if r.reply then self.s.reply:run(attempt, r.reply) end
end

---A whole reply came. Outside of a transaction it is on disk when this returns.
---@param attempt integer
---@param reply {status: integer?, reply: string?, final: boolean?, outcome: "answered"|"refused"|"invalid"|"failed"|nil, prompt_tokens: integer?, completion_tokens: integer?, cached_tokens: integer?, price: number?, estimated: boolean?, seconds: number?, request_id: string?}
function Ledger:record(attempt, reply)
  local r = checked("ledger.record", RECORD, reply)
  if r.final and not r.outcome then error("ledger.record: a final reply needs an outcome", 2) end
  self:transaction(write_reply, self, attempt, r)
end

---A recorded reply becomes the answer of its call, unless the call has one by now.
---@param attempt integer
function Ledger:accept(attempt) self.s.accept:run(attempt) end

---The request surely never reached the service: it costs nothing.
---@param attempt integer
---@param reason string
function Ledger:unsent(attempt, reason)
  if self.s.ended:run("unsent", base.walltime(), reason, attempt) == 0 then not_open(self, attempt) end
end

---The request was sent and no whole reply came: it stays possibly paid.
---@param attempt integer
---@param reason string
function Ledger:lost(attempt, reason)
  if self.s.ended:run("lost", base.walltime(), reason, attempt) == 0 then not_open(self, attempt) end
end

---Is this an attempt that this process noted, and that has no end yet?
---@param attempt integer
---@param key string
---@return boolean
function Ledger:ours(attempt, key) return self.s.ours:value(attempt, key, self.owner) ~= nil end

---Is another living process asking this right now? What a killed one left behind is not busy, nor a batch that
---nobody waits for.
---@param key string
---@return {attempt: integer, owner: string, started: number}|nil
function Ledger:busy(key)
  local found
  -- to the end, for a loop left halfway would keep an old view of the file
  for row in self.s.busy:rows(key, self.owner) do
    if not found and process.alive(row.owner) then found = row end
  end
  return found
end

---A number that changes when another process has written to the ledger.
---@return integer
function Ledger:version() return self.s.version:value() end

---What was spent, in USD, by one study or by all.
---@param which? {study: string?}
---@return {paid: number, possibly: number, unknown: integer, answered: integer, possibly_n: integer, attempts: integer}
function Ledger:spent(which)
  local study = options.resolve("ledger.spent", { study = { type = "string", doc = "only this one" } }, which).study
  local name = study and "spent_study" or "spent"
  self.s[name] = self.s[name] or self.db:prepare(("SELECT %s FROM attempts %s"):format(SUMS,
    study and "WHERE study = ?" or ""))
  local row = study and self.s[name]:row(study) or self.s[name]:row()
  return {
    paid = row.usd, possibly = row.usd_possibly, unknown = row.unknown_price, answered = row.answered or 0,
    possibly_n = row.possibly_paid or 0, attempts = row.attempts,
  }
end

---Spending by stage, model, day (UTC) or study, sorted by name.
---@param opts? {by: "stage"|"model"|"day"|"study", study: string?} study: only what was asked on its behalf
---@return table[] rows {<by>, calls, attempts, answered, possibly_paid, prompt_tokens, completion_tokens, usd, usd_possibly, unknown_price, seconds}
function Ledger:summary(opts)
  local o = options.resolve("ledger.summary", {
    by = { "stage", choices = { "stage", "model", "day", "study" }, doc = "what the rows are" },
    study = { type = "string", doc = "only this one" },
  }, opts)
  local rows = {}
  local s <close> = self.db:prepare(("SELECT %s AS %s, %s FROM attempts WHERE study = ?1 OR ?1 IS NULL GROUP BY 1 ORDER BY 1")
    :format(GROUPS[o.by], o.by, SUMS))
  for row in s:rows(o.study) do rows[#rows + 1] = row end
  return rows
end

---Notes a batch before it is handed to a service; its attempts name it in note{batch=}.
---@param b {provider: string, endpoint: string, detail: string?}
---@return integer id
function Ledger:batch(b)
  b = options.resolve("ledger.batch", BATCH, b)
  local _, id = self.s.batch:run(b.provider, b.endpoint, b.detail, base.walltime())
  return id
end

---Changes what is known of a batch.
---@param id integer
---@param change {remote: string?, state: string?, open: boolean?, detail: string?}
function Ledger:batch_change(id, change)
  local c = options.resolve("ledger.batch_change", BATCH_CHANGE, change)
  if self.s.batch_change:run(c.remote, c.state, c.open, c.detail, id) == 0 then
    fail(self.path, ("batch %d is not in this ledger"):format(id))
  end
end

---The attempts of a batch whose end is not written yet.
---@param id integer
---@return {attempt: integer, key: string, prompt_tokens: integer?}[]
function Ledger:batch_attempts(id)
  local list = {}
  for attempt in self.s.batch_attempts:rows(id) do list[#list + 1] = attempt end
  return list
end

---The batches whose results were not all read, of this process and of earlier ones.
---@return {id: integer, provider: string, endpoint: string, remote: string?, state: string, started: number, detail: string?, attempts: table[]}[]
function Ledger:batches()
  local list = {}
  for row in self.s.batches:rows() do list[#list + 1] = row end
  for _, row in ipairs(list) do row.attempts = self:batch_attempts(row.id) end
  return list
end

---A batch that another process left is waited for by this one.
---@param id integer
function Ledger:own_batch(id) self.s.own_batch:run(self.owner, id) end

---Gives up an open batch, by the service's name of it: its calls stay possibly paid, and are free to be asked again.
---@param remote string
---@return integer|nil calls nil: no open batch has that name
function Ledger:give_up(remote)
  local given
  self:transaction(function()
    for _, row in ipairs(self:batches()) do
      if row.remote == remote then
        for _, attempt in ipairs(row.attempts) do self:lost(attempt.attempt, "its batch was given up") end
        self:batch_change(row.id, { state = "given up", open = false })
        given = (given or 0) + #row.attempts
      end
    end
  end)
  return given
end

---Is this batch of a service one of ours?
---@param remote string
---@param endpoint string
---@return boolean
function Ledger:knows_batch(remote, endpoint) return self.s.knows_batch:value(remote, endpoint) ~= nil end

---Writes the ledger as JSONL: see ledger_jsonl.lua.
---@param write fun(line: string) is given each line with its newline
---@return integer attempts
function Ledger:export(write) return require("perilune.ai.ledger_jsonl").export(self, write) end

---Reads what export wrote: all of it or, after an error, nothing. The same attempt is known
---by key, owner and time; where both have an answer of a call, the one that is here wins.
---@param lines fun(): string|nil such as file:lines()
---@return {new: integer, updated: integer, known: integer, double: integer, secret: "same"|"adopted"|"kept"} done double: answers of calls that had one
function Ledger:import(lines) return require("perilune.ai.ledger_jsonl").import(self, lines) end

return ledger
