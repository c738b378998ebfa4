--- MT-bench's pairwise judge (pair-v2). The reference parser votes A as soon as "[[A]]" occurs anywhere, also where
--- the judge quotes its instruction. The rule here: the mark [[A]], [[B]] or [[C]] on the last line that is not empty
--- is the verdict, whatever stands before; with no mark there, all marks of the reply must agree. No mark, several
--- that differ on the last line, or several that differ before an end without one: invalid.
local fill = require "perilune.feedback.templates.fill"
local read = require "perilune.feedback.templates.read"

-- The texts are protocol constants, quoted from lm-sys/FastChat (llm_judge), Apache License, Version 2.0
-- (http://www.apache.org/licenses/LICENSE-2.0).
local SYSTEM = '\z
  Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the \z
  user question displayed below. You should choose the assistant that follows the user\'s instructions and answers \z
  the user\'s question better. Your evaluation should consider factors such as the helpfulness, relevance, \z
  accuracy, depth, creativity, and level of detail of their responses. Begin your evaluation by comparing the two \z
  responses and provide a short explanation. Avoid any position biases and ensure that the order in which the \z
  responses were presented does not influence your decision. Do not allow the length of the responses to influence \z
  your evaluation. Do not favor certain names of the assistants. Be as objective as possible. After providing your \z
  explanation, output your final verdict by strictly following this format: "[[A]]" if assistant A is better, \z
  "[[B]]" if assistant B is better, and "[[C]]" for a tie.'
local USER = "\z
  [User Question]\n\z
  {question}\n\n\z
  [The Start of Assistant A's Answer]\n\z
  {answer_a}\n\z
  [The End of Assistant A's Answer]\n\n\z
  [The Start of Assistant B's Answer]\n\z
  {answer_b}\n\z
  [The End of Assistant B's Answer]"

local VERDICT = { A = "a", B = "b", C = "tie" }

return {
  name = "mt_bench_pair", doc = "MT-bench's pairwise judge (pair-v2): a reason, then [[A]], [[B]] or [[C]]",
  task = "compare", published = true, sampling = { temperature = 0, max_tokens = 2048 }, reply_tokens = 250,
  messages = function(call)
    return {
      { role = "system", content = SYSTEM },
      { role = "user", content = fill.text(USER, { question = call.prompt, answer_a = call.a, answer_b = call.b }) },
    }
  end,
  parse = function(reply)
    return read.final_mark(reply.text, "%[%[([ABC])%]%]", function(letter) return VERDICT[letter] end) or "invalid"
  end,
}
