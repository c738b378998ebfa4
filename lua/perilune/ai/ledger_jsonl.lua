--- A ledger as JSONL, to carry it to another machine or into another ledger: a first line
--- {"ledger": 1, "secret": ..., "attempts": n}, then one object for each attempt. Batches
--- stay behind: their results are read through the ledger that handed them over.
local base = require("perilune.core").base

local jsonl = {}

local FORMAT = 1

-- Columns of attempts beside state, final and the reply.
local COLUMNS = {
  "key", "owner", "started", "ended", "provider", "model", "endpoint", "study", "stage", "sample", "estimate",
  "price", "estimated", "prompt_tokens", "completion_tokens", "cached_tokens", "status", "outcome", "seconds",
  "request_id", "reason",
}

-- JSON holds valid UTF-8 without NUL; other bytes go in hexadecimal.
local function to_json(value)
  if type(value) ~= "string" or (utf8.len(value) and not value:find("\0", 1, true)) then return value end
  return { hex = (value:gsub(".", function(c) return ("%02x"):format(c:byte()) end)) }
end

local function from_json(value)
  if type(value) ~= "table" then return value end
  local hex = value.hex
  if type(hex) ~= "string" or #hex % 2 ~= 0 or hex:find "%X" then
    error("no attempt: a field is neither a value nor bytes in hexadecimal", 0)
  end
  return (hex:gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end))
end

---@param self perilune.Ledger
---@param write fun(line: string) is given each line with its newline
---@return integer attempts
function jsonl.export(self, write)
  local last = self.db:prepare "SELECT count(*) AS n, coalesce(max(id), 0) AS id FROM attempts":row()
  write(base.json_encode { ledger = FORMAT, secret = self:secret(), attempts = last.n } .. "\n")
  local s <close> = self.db:prepare(("SELECT state, final, r.text AS reply, %s FROM attempts a LEFT JOIN replies r "
    .. "ON r.attempt = a.id WHERE a.id <= ? ORDER BY a.id"):format(table.concat(COLUMNS, ", ")))
  for row in s:rows(last.id) do
    for name, value in pairs(row) do row[name] = to_json(value) end
    write(base.json_encode(row) .. "\n")
  end
  return last.n
end

-- How much an attempt's state says; more wins over less.
local RANK = { noted = 1, lost = 2, unsent = 3, answered = 4 }

-- Puts the attempt of one line in; counts what came of it.
local function import_row(self, s, row, done)
  for name, value in pairs(row) do row[name] = from_json(value) end
  if not RANK[row.state] then error("no attempt: its state is " .. tostring(row.state), 0) end
  local there = s.there:row(row.started, row.owner, row.key)
  if there and RANK[row.state] <= RANK[there.state] then
    done.known = done.known + 1
    return
  end
  local final = row.final == 1
  if final and self.s.find:row(row.key) then
    final = false                                         -- paid all the same: it stays in the sums
    done.double = done.double + 1
  end
  local values = {}
  for i, name in ipairs(COLUMNS) do values[i] = row[name] end
  local id = there and there.id
  if id then
    values[#COLUMNS + 1] = id
    s.update:run(row.state, final, table.unpack(values, 1, #COLUMNS + 1))
    done.updated = done.updated + 1
  else
    local _
    _, id = s.insert:run(row.state, final, table.unpack(values, 1, #COLUMNS))
    done.new = done.new + 1
  end
  if row.reply then self.s.reply:run(id, row.reply) end
end

local function check_head(head, message)
  if not head then error(message, 0) end
  if type(head) ~= "table" or math.type(head.ledger) ~= "integer" or type(head.secret) ~= "string"
    or #head.secret ~= 64 or head.secret:find "%X" then
    error('is no exported ledger: it must begin with {"ledger": 1, "secret": ...}', 0)
  end
  if head.ledger > FORMAT then
    error(("exported by a newer perilune (format %d; this one reads %d)"):format(head.ledger, FORMAT), 0)
  end
end

-- The fences in judge prompts are made of the secret: calls of another ledger are found
-- again only with its secret, and ours can be given up only while nothing was asked.
local function take_secret(self, secret)
  if secret == self:secret() then return "same" end
  if self:spent().attempts > 0 then return "kept" end
  self.db:prepare("UPDATE meta SET value = ? WHERE name = 'secret'"):run(secret)
  return "adopted"
end

---@param self perilune.Ledger
---@param lines fun(): string|nil
---@return table done see Ledger:import
function jsonl.import(self, lines)
  local marks = (", ?"):rep(#COLUMNS)
  local s = {
    there = self.db:prepare "SELECT id, state FROM attempts WHERE started = ? AND owner = ? AND key = ?",
    insert = self.db:prepare(("INSERT INTO attempts (state, final, %s) VALUES (?, ?%s)"):format(
      table.concat(COLUMNS, ", "), marks)),
    update = self.db:prepare(("UPDATE attempts SET state = ?, final = ?, %s = ? WHERE id = ?"):format(
      table.concat(COLUMNS, " = ?, "))),
  }
  local done = { new = 0, updated = 0, known = 0, double = 0 }
  local n = 0
  local function read_all()
    local head
    for line in lines do
      n = n + 1
      local row, message = base.json_decode(line, "the line")
      message = message and message:gsub("^the line:1:", "column ")
      if n == 1 then
        check_head(row, message)
        head, done.secret = row, take_secret(self, row.secret)
      elseif type(row) ~= "table" then
        error(message or "no attempt: an object was wanted", 0)
      else
        import_row(self, s, row, done)
      end
    end
    if n == 0 then error("is empty", 0) end
    if n - 1 ~= head.attempts then
      error(("the export is not whole: %d attempts of %s"):format(n - 1, head.attempts), 0)
    end
  end
  local ok, problem = pcall(self.transaction, self, read_all)
  self.known_secret = nil
  if not ok then error(("line %d: %s; nothing was imported"):format(n, tostring(problem)), 0) end
  return done
end

return jsonl
