--- AlpacaEval 2's judge (weighted_alpaca_eval_gpt4_turbo): the verdict is a probability, read from the likeliest
--- first tokens: p = P(m) / (P(m) + P(M)) that the first answer, m, is better. A token that is not among them counts
--- 0; if neither is, the verdict is invalid. Where the service gives no log-probabilities, the text decides, which must
--- be m or M alone: a plain verdict and not the published weighting.
local fill = require "perilune.feedback.templates.fill"

-- The text is a protocol constant, quoted from tatsu-lab/alpaca_eval, Apache License, Version 2.0
-- (http://www.apache.org/licenses/LICENSE-2.0).
local SYSTEM = "\z
  You are a highly efficient assistant, who evaluates and selects the best large language model (LLMs) based on the \z
  quality of their responses to a given instruction. This process will be used to create a leaderboard reflecting \z
  the most accurate and human-preferred answers."
local USER = '\z
  I require a leaderboard for various large language models. I\'ll provide you with prompts given to these models \z
  and their corresponding outputs. Your task is to assess these responses, and select the model that produces the \z
  best output from a human perspective.\n\n\z
  ## Instruction\n\n{\n    "instruction": """{instruction}""",\n}\n\n\z
  ## Model Outputs\n\n\z
  Here are the unordered outputs from the models. Each output is associated with a specific model, identified by a \z
  unique model identifier.\n\n{\n    {\n        "model_identifier": "m",\n        "output": """{output_1}"""\n\z
  \x20   },\n    {\n        "model_identifier": "M",\n        "output": """{output_2}"""\n    }\n}\n\n## Task\n\n\z
  Evaluate the models based on the quality and relevance of their outputs, and select the model that generated the \z
  best output. Answer by providing the model identifier of the best model. We will use your output as the name of \z
  the best model, so make sure your output only contains one of the following model identifiers and nothing else \z
  (no quotes, no spaces, no new lines, ...): m or M.\n\n\z
  ## Best Model Identifier'

-- What services send for "as good as impossible".
local IMPOSSIBLE = -9999

-- The logarithms of P(m) and P(M), nil where a token is not in the list.
local function log_probabilities(top)
  local found = {}
  for _, entry in ipairs(top) do
    local p = entry.logprob
    if (entry.token == "m" or entry.token == "M") and type(p) == "number" and p > IMPOSSIBLE and p <= 0 then
      found[entry.token] = p
    end
  end
  return found.m, found.M
end

return {
  name = "alpaca_eval_2", doc = "AlpacaEval 2's judge: the log-probabilities of m and M weigh the verdict",
  task = "compare", published = true, sampling = { temperature = 1, max_tokens = 1, top_logprobs = 5 }, reply_tokens = 1,
  messages = function(call)
    return {
      { role = "system", content = SYSTEM },
      { role = "user", content = fill.text(USER, { instruction = call.prompt, output_1 = call.a, output_2 = call.b }) },
    }
  end,
  parse = function(reply)
    local first = reply.logprobs and reply.logprobs[1]
    if first and first.top and #first.top > 0 then
      local m, M = log_probabilities(first.top)
      if m and M then return 1 / (1 + math.exp(M - m)) end
      return m and 1.0 or M and 0.0 or "invalid"
    end
    local text = fill.strip(reply.text)
    return text == "m" and "a" or text == "M" and "b" or "invalid"
  end,
}
