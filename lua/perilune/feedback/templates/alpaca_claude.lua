--- The paper's critic "claude": AlpacaEval's annotator of that name. What stood between "Human:" and
--- "Assistant:" of a completion is one user message of a chat here.
local fill = require "perilune.feedback.templates.fill"
local gpt4 = require "perilune.feedback.templates.alpaca_gpt4"

-- The text is a protocol constant, quoted from tatsu-lab/alpaca_eval, Apache License, Version 2.0
-- (http://www.apache.org/licenses/LICENSE-2.0).
local USER = gpt4.user:gsub("more of a joke%.", '%0 Now is the real task, remember to only include Output (a) or \z
  Output (b) in your answer, not the explanation.')

return {
  name = "alpaca_claude", doc = "the paper's critic claude (AlpacaEval): Output (a) or Output (b)", task = "compare",
  published = true, sampling = { temperature = 0, max_tokens = 50 }, reply_tokens = 6,
  messages = function(call)
    return {
      { role = "user", content = fill.text(USER, { instruction = call.prompt, output_1 = call.a, output_2 = call.b }) },
    }
  end,
  parse = gpt4.parse,
}
