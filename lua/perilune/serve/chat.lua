--- Messages to token ids by named templates. There is no template language here: a
--- model's own template is recognised by its markers, or a name is given.
---
--- What a message says is text and nothing else: where it contains the text of a special
--- token (<|im_end|> typed by a user) it is read letter by letter and ends no turn. Only
--- the template itself places special tokens.
local chat = {}

---@class perilune.ChatTemplate
---@field doc string
---@field tokens string[] # special tokens that the vocabulary must have
---@field ends? string # the token that closes an answer
---@field stop? string[] # texts that close an answer
---@field render fun(messages: {role: string, content: string}[], text: fun(s: string), token: fun(s: string))

---@type table<string, perilune.ChatTemplate>
local TEMPLATES = {
  plain = {
    doc = "the messages' texts, one a line, and nothing else",
    tokens = {},
    render = function(messages, text)
      for i, m in ipairs(messages) do text((i > 1 and "\n" or "") .. m.content) end
    end,
  },
  paper = {
    doc = '"\\n\\nHuman: ...\\n\\nAssistant:", a system message in front',
    tokens = {},
    stop = { "\n\nHuman:" },
    render = function(messages, text)
      for i, m in ipairs(messages) do
        if m.role == "system" then
          text((i > 1 and "\n\n" or "") .. m.content)
        else
          local blank = m.content:find "^%s" and "" or " "
          text((m.role == "user" and "\n\nHuman:" or "\n\nAssistant:") .. blank .. m.content)
        end
      end
      text "\n\nAssistant:"
    end,
  },
  chatml = {
    doc = "<|im_start|>role, the text, <|im_end|>; no system message of its own",
    tokens = { "<|im_start|>", "<|im_end|>" },
    ends = "<|im_end|>",
    render = function(messages, text, token)
      for _, m in ipairs(messages) do
        token "<|im_start|>"
        text(m.role .. "\n" .. m.content)
        token "<|im_end|>"
        text "\n"
      end
      token "<|im_start|>"
      text "assistant\n"
    end,
  },
  llama3 = {
    doc = "<|start_header_id|>role<|end_header_id|>, the text, <|eot_id|>",
    tokens = { "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>" },
    ends = "<|eot_id|>",
    render = function(messages, text, token)
      local function head(role)
        token "<|start_header_id|>"
        text(role)
        token "<|end_header_id|>"
        text "\n\n"
      end
      token "<|begin_of_text|>"
      for _, m in ipairs(messages) do
        head(m.role)
        text((m.content:match "^%s*(.-)%s*$"))
        token "<|eot_id|>"
      end
      head "assistant"
    end,
  },
}

chat.names = { "chatml", "llama3", "paper", "plain" }

-- The text of the model's own template, or nil.
local function own_template(model)
  if model.files["chat_template.jinja"] then return model.files["chat_template.jinja"] end
  local text = model.files["tokenizer_config.json"]
  local config = text and require("perilune.json").decode(text)
  local own = type(config) == "table" and config.chat_template
  if type(own) == "table" then -- a list of { name, template }
    for _, entry in ipairs(own) do
      if entry.name == "default" then return entry.template end
    end
  end
  return type(own) == "string" and own or nil
end

local function missing_token(model, template)
  for _, token in ipairs(template.tokens) do
    local id = model.tokenizer:token_to_id(token)
    if not id or not model.tokenizer:is_special(id) then return token end
  end
  return nil
end

---The template of that name, else the one that the model's files ask for, else plain.
---@param model perilune.Model
---@param name? string
---@return perilune.ChatTemplate|nil
---@return string what # its name; without one, why there is none
function chat.choose(model, name)
  local own = not name and own_template(model)
  if own then
    name = own:find("<|im_start|>", 1, true) and "chatml" or own:find("<|start_header_id|>", 1, true) and "llama3"
    if not name then
      return nil, "the model's chat template is none that is known here; serve it with template=NAME (one of "
        .. table.concat(chat.names, ", ") .. ")"
    end
  end
  name = name or "plain"
  local template = TEMPLATES[name]
  local missing = missing_token(model, template)
  if missing then
    return nil, ("the template %s needs the special token %s, which the model's vocabulary does not have; "
      .. "serve it with another template=NAME (one of %s)"):format(name, missing, table.concat(chat.names, ", "))
  end
  return template, name
end

---@param model perilune.Model
---@param template perilune.ChatTemplate
---@param messages {role: "system"|"user"|"assistant", content: string}[]
---@return integer[]
function chat.encode(model, template, messages)
  local tok = model.tokenizer
  local ids, pending = {}, {}
  local function flush()
    local text = table.concat(pending)
    pending = {}
    if text == "" then return end
    local more = tok:encode_plain(text)
    table.move(more, 1, #more, #ids + 1, ids)
  end
  template.render(messages, function(text) pending[#pending + 1] = text end, function(token)
    flush()
    ids[#ids + 1] = tok:token_to_id(token)
  end)
  flush()
  local bos = tok:bos_declared()
  if bos and ids[1] ~= bos then table.insert(ids, 1, bos) end
  return ids
end

return chat
