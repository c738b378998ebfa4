--- The paper's critic "gpt4": AlpacaEval's plain annotator of that name. Its worked example always answers (a),
--- a pull towards the first answer: ask both orders.
local fill = require "perilune.feedback.templates.fill"
local read = require "perilune.feedback.templates.read"

-- The text is a protocol constant, quoted from tatsu-lab/alpaca_eval, Apache License, Version 2.0
-- (http://www.apache.org/licenses/LICENSE-2.0).
local SYSTEM = "You are a helpful instruction-following assistant."
local USER = '\z
  Select the output (a) or (b) that best matches the given instruction. Choose your preferred output, which can be \z
  subjective. Your answer should ONLY contain: Output (a) or Output (b). Here\'s an example:\n\n\z
  # Example:\n\z
  ## Instruction:\n\z
  Give a description of the following job: "ophthalmologist"\n\n\z
  ## Output (a):\n\z
  An ophthalmologist is a medical doctor who specializes in the diagnosis and treatment of eye diseases and \z
  conditions.\n\n\z
  ## Output (b):\n\z
  An ophthalmologist is a medical doctor who pokes and prods at your eyes while asking you to read letters from a \z
  chart.\n\n\z
  ## Which is best, Output (a) or Output (b)?\n\z
  Output (a)\n\n\z
  Here the answer is Output (a) because it provides a comprehensive and accurate description of the job of an \z
  ophthalmologist. In contrast, output (b) is more of a joke.\n\n# Task:\n\z
  Now is the real task, do not explain your answer, just say Output (a) or Output (b).\n\n\z
  ## Instruction:\n\z
  {instruction}\n\n\z
  ## Output (a):\n\z
  {output_1}\n\n\z
  ## Output (b):\n\z
  {output_2}\n\n\z
  ## Which is best, Output (a) or Output (b)?'

return {
  name = "alpaca_gpt4", doc = "the paper's critic gpt4 (AlpacaEval): Output (a) or Output (b)", task = "compare",
  published = true, sampling = { temperature = 0, max_tokens = 50 }, reply_tokens = 6,
  user = USER,                             -- alpaca_claude's is made of it
  messages = function(call)
    return {
      { role = "system", content = SYSTEM },
      { role = "user", content = fill.text(USER, { instruction = call.prompt, output_1 = call.a, output_2 = call.b }) },
    }
  end,
  parse = function(reply) return read.output_letter(reply.text) end,
}
