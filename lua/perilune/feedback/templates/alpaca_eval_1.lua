--- AlpacaEval 1's judge (alpaca_eval_gpt4): the models are named model_1 and model_2 and ranked in a Python list.
--- The list is read, never executed: the reply must be that list alone (a code fence around it is taken off), name
--- both models and give them the ranks 1 and 2; anything else is invalid.
local fill = require "perilune.feedback.templates.fill"
local read = require "perilune.feedback.templates.read"

-- The text is a protocol constant, quoted from tatsu-lab/alpaca_eval, Apache License, Version 2.0
-- (http://www.apache.org/licenses/LICENSE-2.0).
local SYSTEM = "You are a helpful assistant, that ranks models by the quality of their answers."
local USER = '\z
  I want you to create a leaderboard of different of large-language models. To do so, I will give you the \z
  instructions (prompts) given to the models, and the responses of two models. Please rank the models based on \z
  which responses would be preferred by humans. All inputs and outputs should be python dictionaries.\n\n\z
  Here is the prompt:\n{\n    "instruction": """{instruction}""",\n}\n\n\z
  Here are the outputs of the models:\n[\n    {\n        "model": "model_1",\n        "answer": """{output_1}"""\n\z
  \x20   },\n    {\n        "model": "model_2",\n        "answer": """{output_2}"""\n    }\n]\n\n\z
  Now please rank the models by the quality of their answers, so that the model with rank 1 has the best output. \z
  Then return a list of the model names and ranks, i.e., produce the following output:\n[\n\z
  \x20   {\'model\': <model-name>, \'rank\': <model-rank>},\n    {\'model\': <model-name>, \'rank\': <model-rank>}\n\z
  ]\n\n\z
  Your response must be a valid Python dictionary and should contain nothing else because we will directly execute \z
  it in Python. Please provide the ranking that the majority of humans would give.'

local function string_of(entry, key)
  for _, quote in ipairs { "'", '"' } do
    local value = entry:match(quote .. key .. quote .. "%s*:%s*['\"]?([%w_]+)['\"]?%s*[,}]")
    if value then return value end
  end
  return nil
end

-- {model_1 = "1", model_2 = "2"}, or nil where the text is no such list.
local function ranks_of(text)
  local list = fill.strip(text):gsub("^```%w*%s*", ""):gsub("%s*```$", ""):match "^%[(.*)%]$"
  if not list then return nil end
  local ranks, rest = {}, list
  while rest:find "%S" do
    local entry, after = rest:match "^%s*(%b{})%s*,?(.*)$"
    local model, rank = string_of(entry or "", "model"), string_of(entry or "", "rank")
    if not model or not rank or ranks[model] then return nil end
    ranks[model], rest = rank, after
  end
  return ranks
end

return {
  name = "alpaca_eval_1", doc = "AlpacaEval 1's judge (alpaca_eval_gpt4): a ranking of the two", task = "compare",
  published = true, sampling = { temperature = 0, max_tokens = 100 }, reply_tokens = 40,
  messages = function(call)
    return {
      { role = "system", content = SYSTEM },
      { role = "user", content = fill.text(USER, { instruction = call.prompt, output_1 = call.a, output_2 = call.b }) },
    }
  end,
  parse = function(reply)
    local ranks = ranks_of(reply.text) or {}
    if ranks.model_1 == "1" and ranks.model_2 == "2" then return "a" end
    if ranks.model_1 == "2" and ranks.model_2 == "1" then return "b" end
    return "invalid"
  end,
}
