--- Rows to token ids: the one place where text becomes what a model reads, for
--- scoring and for training alike. It must not know losses, batches or files.
---
--- A row is one of
---   { prompt = TEXT, completion = TEXT, finish = }   tokenised once as prompt .. completion
---   { prompt = TEXT or IDS, completion = IDS }       those ids as they are
---   { prompt = , completion = { text =, ids =, finish =, tokenizer = } }   a sampled answer: its ids if it has
---                                                      them and they are of this tokenizer (hash), or none is named
---   { prompt = , completion = TEXT, ids =, finish =, tokenizer = }   the same
---   { prompt = , text =, ids =, finish = }           what model:generate returns: the same
---   { text = TEXT }                                  a document: all but its first token counts
---   IDS                                              as they are; all but the first token counts
---   "a string"                                       tokenised as it is, nothing added at its end
---   { ids = IDS, start = k }                         already tokenised (what this file returns)
---
--- Text gets the BOS that the tokenizer declares, once or never, and after a completion or a
--- document the end token, which counts, unless finish == "length": such an answer was cut off
--- and did not end there. Lists of ids get nothing. A prompt whose tokens are not the first
--- tokens of prompt .. completion is an error: the loss would begin at the wrong place.
local options = require "perilune.options"

local rows = {}

local CACHE_ENTRIES, CACHE_TEXT = 20000, 4096

local SPEC = {
  max_length = { type = "integer", min = 2, doc = "tokens a row may have; default: the model's context" },
  truncation = {
    type = "string",
    choices = { "error", "cut" },
    doc = 'longer rows: "error" (the default without max_length), or "cut" (the default with it): '
      .. "first the start of the prompt goes, BOS and one token stay; then the end of the completion",
  },
}

local function fail(i, message, ...)
  error(("row %d: " .. message):format(i, ...), 0)
end

local function preview(s)
  return ("%q"):format(#s > 40 and s:sub(1, 37) .. "..." or s)
end

local function is_ids(v)
  return type(v) == "table" and math.type(v[1]) ~= nil
end

---Token ids of a text, with the BOS that the tokenizer declares once. The list is the caller's own.
---@param model table
---@param text string
---@return integer[]
function rows.encode_new(model, text)
  local tok = model.tokenizer
  if not tok then
    error("this model has no tokenizer: pass lists of token ids instead of text", 0)
  end
  local ids = tok:encode(text, { add_special_tokens = false })
  local bos = tok:bos_declared()
  if bos and ids[1] ~= bos then table.insert(ids, 1, bos) end
  return ids
end

---The same, remembered. The list is shared: do not change it.
---@param model table
---@param text string
---@return integer[]
function rows.encode(model, text)
  local cache = model.token_cache
  if cache.tokenizer ~= model.tokenizer or cache.n > CACHE_ENTRIES then
    cache.tokenizer, cache.n, cache.of = model.tokenizer, 0, {}
  end
  local ids = cache.of[text]
  if ids then return ids end
  ids = rows.encode_new(model, text)
  if #text <= CACHE_TEXT then
    cache.of[text] = ids
    cache.n = cache.n + 1
  end
  return ids
end

local function append(to, from)
  return table.move(from, 1, #from, #to + 1, to)
end

local function copy(ids)
  return table.move(ids, 1, #ids, 1, {})
end

local function with_end(model, i, ids, finish)
  if finish == "length" then return ids end
  local id = model:end_token()
  if not id then
    fail(i, "a text is closed by the end token, but neither tokenizer_config.json, config.json nor "
      .. "generation_config.json names one (eos_token, eos_token_id); or pass ids")
  end
  ids[#ids + 1] = id
  return ids
end

-- prompt .. completion, both text
local function text_pair(model, i, prompt, completion, finish)
  local head = rows.encode(model, prompt)
  local ids = copy(rows.encode(model, prompt .. completion))
  for k = 1, #head do
    if ids[k] ~= head[k] then
      fail(i, "the tokens of the prompt are not the first tokens of prompt .. completion (they differ "
        .. "at token %d, where the prompt ends in %s and the completion begins with %s): move the blank "
        .. "or newline from the prompt's end to the completion's start", k, preview(prompt:sub(-20)),
        preview(completion:sub(1, 20)))
    end
  end
  if #ids == #head then
    fail(i, "the completion %s has no tokens: there is nothing to learn or score", preview(completion))
  end
  return { ids = with_end(model, i, ids, finish), start = #head + 1 }
end

-- Ids hold only for the tokenizer that made them; where another one did, the text is read again.
local function ids_of(model, from)
  if from.ids and from.tokenizer and model.tokenizer and from.tokenizer ~= model.tokenizer:hash() then
    return nil
  end
  return from.ids
end

-- { ids, text, finish } of a row's completion, whichever form it has
local function parts(model, i, row)
  local c = row.completion
  if c == nil and (row.ids or row.text) then return ids_of(model, row), row.text, row.finish end
  if type(c) == "string" then return ids_of(model, row), c, row.finish end
  if is_ids(c) then return c, nil, row.finish end
  if type(c) == "table" and (c.ids or c.text) then return ids_of(model, c), c.text, c.finish or row.finish end
  if type(c) == "table" and next(c) == nil then return c, nil, row.finish end
  fail(i, "completion is %s; wanted a text, a list of ids, or { text =, ids =, finish = }",
    c == nil and "missing" or "a " .. type(c))
end

local function pair(model, i, row)
  local ids, text, finish = parts(model, i, row)
  local prompt = row.prompt
  if type(prompt) ~= "string" and type(prompt) ~= "table" then
    fail(i, "prompt is a %s; wanted a text or a list of ids", type(prompt))
  end
  if not ids then
    if type(text) ~= "string" then fail(i, "completion text is a %s", type(text)) end
    if type(prompt) ~= "string" then fail(i, "the prompt is ids and the completion text; make both one kind") end
    return text_pair(model, i, prompt, text, finish)
  end
  local head = type(prompt) == "string" and rows.encode(model, prompt) or prompt
  if #ids == 0 then fail(i, "the completion has no tokens: there is nothing to learn or score") end
  return { ids = append(copy(head), ids), start = #head + 1 }
end

local function one(model, i, row)
  if type(row) == "string" then return { ids = copy(rows.encode(model, row)), start = 2 } end
  if type(row) ~= "table" then
    fail(i, "a %s; wanted { prompt =, completion = }, a text or a list of ids", type(row))
  end
  if row.start and row.ids then return { ids = row.ids, start = row.start } end
  if row.prompt ~= nil then return pair(model, i, row) end
  if type(row.text) == "string" then
    if row.text == "" then fail(i, "the text is empty") end
    return { ids = with_end(model, i, copy(rows.encode(model, row.text)), row.finish), start = 2 }
  end
  if row.messages then
    fail(i, "holds messages; chat templates are not read here: render them to prompt and completion first")
  end
  if is_ids(row) then return { ids = copy(row), start = 2 } end
  if next(row) == nil then fail(i, "the list of ids is empty") end
  fail(i, "wanted { prompt =, completion = }, { text = }, a text or a list of ids")
end

local function check_ids(i, row)
  for k, id in ipairs(row.ids) do
    if math.type(id) ~= "integer" then
      local whole = math.tointeger(id)
      if not whole then fail(i, "token %d is %s; wanted an integer id", k, tostring(id)) end
      row.ids[k] = whole
    end
  end
end

-- Cuts a row to `limit` tokens: see SPEC.truncation. Says which side was cut.
local function cut(row, limit, bos)
  local ids = row.ids
  local keep = ids[1] == bos and 1 or 0
  local room = row.start - 1 - math.max(keep, 1)
  local n = math.max(0, math.min(#ids - limit, room))
  local out = table.move(ids, 1, keep, 1, {})
  table.move(ids, keep + n + 1, #ids, keep + 1, out)
  row.ids, row.start = out, row.start - n
  row.cut = n > 0 and "prompt" or nil
  if #out > limit then
    for k = #out, limit + 1, -1 do out[k] = nil end
    row.cut = "completion"
  end
end

---Tokenises rows. Errors name the row.
---@param model table # reads tokenizer, shape.context, end_token()
---@param data table # a dataset or a list of rows (forms: top of this file)
---@param opts? { max_length?: integer, truncation?: "error"|"cut" }
---@return { ids: integer[], start: integer, n_prompt: integer, cut: string|nil }[] rows # start: first token that counts
---@return { rows: integer, cut_prompt: integer, cut_completion: integer } report # a row cut on both sides counts as completion
function rows.tokenize(model, data, opts)
  local o = options.resolve("tokenize_rows", SPEC, opts)
  local context = model.shape.context
  local limit = math.min(o.max_length or context, context)
  local may_cut = (o.truncation or (o.max_length and "cut" or "error")) == "cut"
  local bos = model.tokenizer and model.tokenizer:bos_declared()
  local report = { rows = #data, cut_prompt = 0, cut_completion = 0 }
  local out = {}
  for i = 1, #data do
    local row = one(model, i, data[i])
    check_ids(i, row)
    row.start = math.max(row.start, 2) -- a row's first token has nothing before it that could predict it
    if row.start > #row.ids then
      fail(i, "%d token%s, none of which follows another: there is nothing to learn or score", #row.ids,
        #row.ids == 1 and "" or "s")
    end
    if #row.ids > limit then
      if not may_cut then
        fail(i, '%d tokens; the limit is %d: shorten it, or give max_length and truncation = "cut"', #row.ids, limit)
      end
      cut(row, limit, bos)
      local side = "cut_" .. row.cut
      report[side] = report[side] + 1
    end
    row.n_prompt = row.start - 1
    out[i] = row
  end
  return out, report
end

return rows
