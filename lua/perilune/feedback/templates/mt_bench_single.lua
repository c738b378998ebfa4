--- MT-bench's rating of one answer, 1 to 10. The prompt follows the call: single-v1; with call.reference
--- single-math-v1; with call.turns, the turns before the one that is judged (MT-bench has one:
--- { { prompt =, answer =, reference? = } }), the multi-turn prompt.
--- A rating is read as in mt_bench_pair: the [[n]] on the last line that is not empty, else all must agree; where
--- there is no [[n]] at all the same holds for [n]. Out of 1..10, missing or differing: no rating.
local fill = require "perilune.feedback.templates.fill"
local read = require "perilune.feedback.templates.read"

-- The texts are protocol constants, quoted from lm-sys/FastChat (llm_judge), Apache License, Version 2.0
-- (http://www.apache.org/licenses/LICENSE-2.0).
local SYSTEM = "You are a helpful assistant."
local SINGLE = '\z
  [Instruction]\n\z
  Please act as an impartial judge and evaluate the quality of the response provided by an AI assistant to the user \z
  question displayed below. Your evaluation should consider factors such as the helpfulness, relevance, accuracy, \z
  depth, creativity, and level of detail of the response. Begin your evaluation by providing a short explanation. \z
  Be as objective as possible. After providing your explanation, you must rate the response on a scale of 1 to 10 \z
  by strictly following this format: "[[rating]]", for example: "Rating: [[5]]".\n\n\z
  [Question]\n\z
  {question}\n\n\z
  [The Start of Assistant\'s Answer]\n{answer}\n\z
  [The End of Assistant\'s Answer]'
local MATH = "\z
  [Instruction]\n\z
  Please act as an impartial judge and evaluate the quality of the response provided by an AI assistant to the user \z
  question displayed below. Your evaluation should consider correctness and helpfulness. You will be given a \z
  reference answer and the assistant's answer. Begin your evaluation by comparing the assistant's answer with the \z
  reference answer. Identify and correct any mistakes. Be as objective as possible. After providing your \z
  explanation, you must rate the response on a scale of 1 to 10 by strictly following this format: \"[[rating]]\", \z
  for example: \"Rating: [[5]]\".\n\n\z
  [Question]\n\z
  {question}\n\n\z
  [The Start of Reference Answer]\n\z
  {ref_answer_1}\n\z
  [The End of Reference Answer]\n\n\z
  [The Start of Assistant's Answer]\n{answer}\n\z
  [The End of Assistant's Answer]"
local TURNS = "\z
  <|The Start of Assistant A's Conversation with User|>\n\n### User:\n\z
  {question_1}\n\n\z
  ### Assistant A:\n\z
  {answer_1}\n\n### User:\n\z
  {question_2}\n\n\z
  ### Assistant A:\n\z
  {answer_2}\n\n\z
  <|The End of Assistant A's Conversation with User|>"
local TURNS_REFERENCE = "\z
  <|The Start of Reference Answer|>\n\n### User:\n\z
  {question_1}\n\n\z
  ### Reference answer:\n\z
  {ref_answer_1}\n\n### User:\n\z
  {question_2}\n\n\z
  ### Reference answer:\n\z
  {ref_answer_2}\n\n\z
  <|The End of Reference Answer|>\n\n\n" .. TURNS

-- With several turns the instruction is the system message, with one sentence more ("You", sic).
local function system_of(prompt)
  return (prompt:match("^%[Instruction%]\n(.-)\n"):gsub(" Begin your evaluation",
    " You evaluation should focus on the assistant's answer to the second user question.%0", 1))
end

local TURNS_SYSTEM, TURNS_MATH_SYSTEM = system_of(SINGLE), system_of(MATH)

local function several_turns(call)
  local before = call.turns[1]
  if #call.turns ~= 1 or type(before.prompt) ~= "string" or type(before.answer) ~= "string" then
    error("template mt_bench_single: turns must hold one earlier turn { prompt =, answer = }", 0)
  end
  local values = {
    question_1 = before.prompt, answer_1 = before.answer, question_2 = call.prompt, answer_2 = call.answer,
    ref_answer_1 = before.reference, ref_answer_2 = call.reference,
  }
  if call.reference then return TURNS_MATH_SYSTEM, fill.text(TURNS_REFERENCE, values) end
  return TURNS_SYSTEM, fill.text(TURNS, values)
end

local function one_turn(call)
  local values = { question = call.prompt, answer = call.answer, ref_answer_1 = call.reference }
  return SYSTEM, fill.text(call.reference and MATH or SINGLE, values)
end

return {
  name = "mt_bench_single", doc = "MT-bench's rating of one answer (single-v1): a reason, then [[1]] to [[10]]",
  task = "rate", published = true, sampling = { temperature = 0, max_tokens = 2048 }, reply_tokens = 200,
  messages = function(call)
    local system, user = (call.turns and several_turns or one_turn)(call)
    return { { role = "system", content = system }, { role = "user", content = user } }
  end,
  parse = function(reply)
    for _, mark in ipairs { "%[%[(%d+%.?%d*)%]%]", "%[(%d+%.?%d*)%]" } do
      if reply.text:find(mark) then return read.final_mark(reply.text, mark, read.rating) or false end
    end
    return false
  end,
}
