--- What a row may look like: the column names of TRL, checked strictly, and the
--- declared conversions from ShareGPT, Alpaca and old preference files. Nothing is
--- guessed: a file in another form needs `format = "..."`.
---
--- An answer (completion, chosen, rejected) is a text, a list of token ids, or the
--- table a sampler made: { text =, ids =, finish = }. Ids may also stand beside the
--- text, in NAME_ids, with NAME_finish.
local options = require "perilune.options"

local formats = {}

local ROLES = { system = true, developer = true, user = true, assistant = true, tool = true }
local ANSWERS = { "completion", "chosen", "rejected" }

local function show(v)
  if type(v) == "string" then
    return ("%q"):format(#v > 40 and v:sub(1, 37) .. "..." or v)
  end
  if type(v) == "number" or type(v) == "boolean" then
    return tostring(v)
  end
  return v == nil and "nothing" or "a " .. type(v)
end

---A reason why a text cannot be used, or nil.
---@param s string
---@return string|nil
function formats.bad_text(s)
  if s:find("\0", 1, true) then
    return "holds a NUL byte"
  end
  local ok, at = utf8.len(s)
  if not ok then
    return ("is not valid UTF-8 (byte %d)"):format(at)
  end
  return nil
end

local function is_ids(v)
  return type(v) == "table" and (v[1] == nil and next(v) == nil or math.type(v[1]) ~= nil)
end

local function check_ids(v, what)
  for i, id in ipairs(v) do
    if math.type(id) ~= "integer" or id < 0 then
      return ("%s[%d] is %s, wanted a token id from 0"):format(what, i, show(id))
    end
  end
  return nil
end

local function check_messages(list, what)
  if #list == 0 then
    return what .. " is empty"
  end
  for i, m in ipairs(list) do
    local here = ("%s[%d]"):format(what, i)
    if type(m) ~= "table" then
      return ("%s is %s, wanted {role, content}"):format(here, show(m))
    end
    if not ROLES[m.role] then
      return ("%s.role is %s, wanted system, developer, user, assistant or tool"):format(here, show(m.role))
    end
    if type(m.content) ~= "string" then
      return ("%s.content is %s, wanted a text"):format(here, show(m.content))
    end
    local bad = formats.bad_text(m.content)
    if bad then
      return ("%s.content %s"):format(here, bad)
    end
  end
  return nil
end

-- A text, ids, messages, or (for answers) the table of a sampler.
local function check_part(row, name, is_answer)
  local v = row[name]
  if type(v) == "string" then
    local bad = formats.bad_text(v)
    return bad and (name .. " " .. bad)
  end
  if type(v) ~= "table" then
    return ("%s is %s, wanted a text, a list of ids or messages"):format(name, show(v))
  end
  if is_answer and (v.text ~= nil or v.ids ~= nil) then
    if v.text ~= nil and type(v.text) ~= "string" then
      return ("%s.text is %s, wanted a text"):format(name, show(v.text))
    end
    return v.ids and check_ids(v.ids, name .. ".ids")
      or v.text and formats.bad_text(v.text) and (name .. ".text " .. formats.bad_text(v.text))
  end
  if is_ids(v) then
    return check_ids(v, name)
  end
  return check_messages(v, name)
end

---What kind of rows these are, from the columns of one.
---@param row table
---@return string|nil kind "preference", "completion", "messages", "text", "prompt", or nil
function formats.kind(row)
  if row.chosen ~= nil and row.rejected ~= nil then
    return "preference"
  elseif row.completion ~= nil and row.prompt ~= nil then
    return "completion"
  elseif row.messages ~= nil then
    return "messages"
  elseif row.text ~= nil then
    return "text"
  elseif row.prompt ~= nil then
    return "prompt"
  end
  return nil
end

---What is wrong with a row, or nil. Columns this library does not know pass.
---@param row any
---@return string|nil
function formats.check(row)
  if type(row) ~= "table" then
    return ("is %s, wanted a row (a table of named columns)"):format(show(row))
  end
  if row[1] ~= nil then
    return "is a list, wanted a row (a table of named columns)"
  end
  if row.conversations ~= nil and row.messages == nil then
    return 'has ShareGPT\'s column "conversations": load it with format = "sharegpt"'
  end
  if row.instruction ~= nil and row.output ~= nil and row.prompt == nil and row.completion == nil then
    return 'has Alpaca\'s columns "instruction" and "output": load it with format = "alpaca"'
  end
  if (row.chosen ~= nil) ~= (row.rejected ~= nil) then
    return ("has %s but not %s"):format(row.chosen ~= nil and "chosen" or "rejected",
      row.chosen ~= nil and "rejected" or "chosen")
  end
  if row.prompt ~= nil then
    local bad = check_part(row, "prompt")
    if bad then
      return bad
    end
  end
  for _, name in ipairs(ANSWERS) do
    if row[name] ~= nil then
      local bad = check_part(row, name, true)
      if bad then
        return bad
      end
    end
  end
  if row.text ~= nil and type(row.text) == "string" then
    local bad = formats.bad_text(row.text)
    if bad then
      return "text " .. bad
    end
  end
  if row.messages ~= nil then
    if type(row.messages) ~= "table" then
      return ("messages is %s, wanted a list of {role, content}"):format(show(row.messages))
    end
    return check_messages(row.messages, "messages")
  end
  return nil
end

---The name of an answer without any content, or nil: such a row teaches nothing.
---@param row table
---@return string|nil
function formats.empty_answer(row)
  for _, name in ipairs(ANSWERS) do
    local v = row[name]
    if v == "" or type(v) == "table" and #v == 0 and (v.text or "") == "" and #(v.ids or {}) == 0 then
      return name
    end
  end
  return nil
end

---One answer of a row as a row of its own: { prompt, completion, finish? }. Ids that stand
---beside the text go with it, so that what was sampled is what is trained.
---@param row table
---@param name string "completion", "chosen" or "rejected"
---@return table
function formats.answer(row, name)
  local v = row[name]
  local ids, finish, tokenizer = row[name .. "_ids"], row[name .. "_finish"], nil
  if name == "completion" then
    ids, finish, tokenizer = ids or row.ids, finish or row.finish, row.tokenizer
  end
  if ids and type(v) == "string" then
    v = { text = v, ids = ids, finish = finish, tokenizer = tokenizer }
  end
  return { prompt = row.prompt, completion = v, finish = finish }
end

local function sharegpt(row)
  local turns = row.conversations
  if type(turns) ~= "table" then
    return nil, 'format "sharegpt" wants a column "conversations"'
  end
  local role = { human = "user", user = "user", gpt = "assistant", assistant = "assistant", chatgpt = "assistant",
    system = "system" }
  local messages = {}
  for i, t in ipairs(turns) do
    local from = type(t) == "table" and t.from
    if not role[from] then
      return nil, ("conversations[%d].from is %s, wanted human, gpt or system"):format(i, show(from))
    end
    messages[i] = { role = role[from], content = t.value }
  end
  return { messages = messages, id = row.id }
end

local function sharegpt_first(row)
  local chat, why = sharegpt(row)
  if not chat then
    return nil, why
  end
  local m, at = chat.messages, 1
  if m[1] and m[1].role == "system" then
    at = 2
  end
  if not (m[at] and m[at].role == "user" and m[at + 1] and m[at + 1].role == "assistant") then
    return nil, "does not begin with a human turn and a reply"
  end
  return { prompt = m[at].content, completion = m[at + 1].content, id = row.id }
end

local function alpaca(row)
  if type(row.instruction) ~= "string" or type(row.output) ~= "string" then
    return nil, 'format "alpaca" wants text columns "instruction" and "output"'
  end
  local input = row.input or ""
  local prompt = row.instruction
  if input ~= "" then
    prompt = prompt .. "\n\n" .. input
  end
  return { prompt = prompt, completion = row.output }
end

-- Old preference files: both sides hold the whole dialogue as one text.
local function hh(row)
  local a, b = row.chosen, row.rejected
  if type(a) ~= "string" or type(b) ~= "string" then
    return nil, 'format "hh" wants text columns "chosen" and "rejected"'
  end
  local mark, at, last = "\n\nAssistant:", 1, nil
  while true do
    local from, to = a:find(mark, at, true)
    if not from or a:sub(1, to) ~= b:sub(1, to) then
      break
    end
    last, at = to, to + 1
  end
  if not last then
    return nil, "the two sides share no Assistant turn"
  end
  return { prompt = a:sub(1, last), chosen = a:sub(last + 1), rejected = b:sub(last + 1) }
end

formats.conversions = {
  sharegpt = sharegpt,
  ["sharegpt-first"] = sharegpt_first,
  alpaca = alpaca,
  hh = hh,
}

---The conversion of a declared format, or an error that suggests the nearest.
---@param where string
---@param name string
---@return fun(row: table): table|nil, string|nil
function formats.conversion(where, name)
  local f = formats.conversions[name]
  if f then
    return f
  end
  local names = {}
  for k in pairs(formats.conversions) do
    names[#names + 1] = k
  end
  error(("%s: %s"):format(where, options.unknown("format", name, names)), 0)
end

return formats
