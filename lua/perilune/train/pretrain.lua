--- Training on plain documents ({ text = .. }): tokens of all documents as rows.lua makes them,
--- each closed by one end token, cut into blocks of block_size. A block boundary cuts a document; the rest of it
--- begins the next block. Documents of one block do not see each other (each is a
--- sequence of its own), and every token but a sequence's first is trained.
local row_tokens = require "perilune.rows"
local sft = require "perilune.train.sft"

local pretrain = {}

---Cuts token lists into blocks of at most `size` tokens; pieces of one token predict
---nothing and are left out.
---@param documents integer[][]
---@param size integer
---@return table[][] blocks lists of {ids, start = 2}
function pretrain.pack(documents, size)
  local blocks, block, free = {}, {}, size
  for _, ids in ipairs(documents) do
    local at, n = 1, #ids
    while at <= n do
      local take = math.min(free, n - at + 1)
      if take > 1 then
        block[#block + 1] = { ids = table.move(ids, at, at + take - 1, 1, {}), start = 2 }
      end
      at, free = at + take, free - take
      if free == 0 then
        if #block > 0 then
          blocks[#blocks + 1] = block
        end
        block, free = {}, size
      end
    end
  end
  if #block > 0 then
    blocks[#blocks + 1] = block
  end
  return blocks
end

---@param where string
---@param model perilune.Model
---@param rows table[] of { text = .. }; text may be a list of ids
---@param o table
---@return table task
function pretrain.make(where, model, rows, o)
  local eos = model:end_token()
  if not eos then
    error(where .. ": the model names no end token (eos_token_id) to put between documents", 0)
  end
  local context = model.shape.context
  if o.block_size > context then
    error(("%s: block_size %d is over the model's context of %d"):format(where, o.block_size, context), 0)
  end
  local size = o.block_size
  local documents, tokens = {}, 0
  for i, row in ipairs(rows) do
    local text, ids = row.text, nil
    if type(text) == "string" then
      if not model.tokenizer then
        error(("%s: row %d is a text, and this model has no tokenizer; give lists of token ids"):format(where, i), 0)
      end
      ids = row_tokens.encode_new(model, text) -- each is read once
    elseif type(text) == "table" then
      ids = table.move(text, 1, #text, 1, {})
    else
      error(("%s: row %d has no text"):format(where, i), 0)
    end
    if ids[#ids] ~= eos then
      ids[#ids + 1] = eos
    end
    documents[i], tokens = ids, tokens + #ids
  end
  local blocks = pretrain.pack(documents, size)
  return sft.task { where = where, label = "pretrain", examples = blocks,
    counts = { read = #rows, used = #rows, tokens = tokens, blocks = #blocks, dropped = {} } }
end

return pretrain
