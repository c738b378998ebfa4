-- Text to tokens: BOS once, the end token once, the boundary, what is refused; masks and sums.
local T = require "tests.lua.harness"
local pl = require "perilune"

local function stories()
  return pl.load(T.need_shared() .. "/data/models/stories260K")
end

local function last(list) return list[#list] end

T.test("bos_once_end_token_once", function()
  local m = stories()
  local prompt, completion = "Tim saw a cat.", " It was red."
  local head = m.tokenizer:encode(prompt)
  local all = m.tokenizer:encode(prompt .. completion)
  local rows = m:tokenize_rows { { prompt = prompt, completion = completion } }
  T.eq(rows[1].start, #head + 1)
  T.eq(rows[1].n_prompt, #head)
  T.eq(#rows[1].ids, #all + 1)
  T.eq(last(rows[1].ids), 2)
  T.eq(rows[1].ids[1], 1)
  T.ok(rows[1].ids[2] ~= 1)
  -- an answer that was cut off gets no end token; a BOS written in the text is not doubled
  T.eq(m:tokenize_rows({ { prompt = prompt, completion = completion, finish = "length" } })[1].ids, all)
  local b = m:tokenize_rows({ { prompt = "<s>" .. prompt, completion = completion } })[1].ids
  T.ok(b[1] == 1 and b[2] ~= 1)
end)

T.test("forms_of_a_row", function()
  local m = stories()
  local p, c = { 1, 403, 407 }, { 261, 378 }
  local want = { 1, 403, 407, 261, 378 }
  for _, row in ipairs {
    { prompt = p, completion = c },
    { prompt = p, completion = { ids = c, text = "x", finish = "stop" } },
    { prompt = p, ids = c, text = "x", finish = "stop" },
    { prompt = "Once upon", completion = { ids = c } },
    { ids = want, start = 4 },
  } do
    local r = m:tokenize_rows({ row })[1]
    T.eq(r.ids, want)
    T.eq(r.start, 4)
  end
  T.eq(m:tokenize_rows({ want })[1].start, 2)
  T.eq(m:tokenize_rows({ "Once upon" })[1].ids, p)
  T.eq(m:tokenize_rows({ { text = "Once upon" } })[1].ids, { 1, 403, 407, 2 })
  local text = m:tokenize_rows({ { prompt = "Once", completion = { text = " upon", finish = "length" } } })[1]
  T.eq(text.ids, p)
  T.eq(text.start, 3)
  T.eq(p, { 1, 403, 407 }) -- what was passed is left alone
end)

T.test("errors_name_the_row", function()
  local m = stories()
  local good = { prompt = "Tim", completion = " sat." }
  for _, case in ipairs {
    { { prompt = "a", completion = "" }, "row 2: the completion \"\" has no tokens" },
    { { prompt = "a", completion = {} }, "row 2: the completion has no tokens" },
    { { prompt = "Once up", completion = "on a time" }, "row 2: the tokens of the prompt are not the first" },
    { { prompt = "a" }, "row 2: completion is missing" },
    { { prompt = 3, completion = "a" }, "row 2: prompt is a number" },
    { { prompt = { 1 }, completion = "a" }, "row 2: the prompt is ids and the completion text" },
    { { messages = {} }, "row 2: holds messages" },
    { {}, "row 2: the list of ids is empty" },
    { { 5 }, "row 2: 1 token, none of which follows another" },
    { { 1, "x" }, "row 2: token 2 is x" },
    { { 1, 2.5 }, "row 2: token 2 is 2.5" },
    { { text = "" }, "row 2: the text is empty" },
    { 7, "row 2: a number; wanted" },
  } do
    T.raises(m.tokenize_rows, case[2], m, { good, case[1] })
  end
  T.raises(m.score, "token id 512; the vocabulary has ids 0..511", m, { { 1, 512, 3 } })
  T.raises(m.score, "row 1: token 2 is -1", m, { { 1, -1, 3 } })
  T.raises(m.tokenize_rows, 'unknown option "max_lenght" (did you mean "max_length"?)', m, { good }, { max_lenght = 3 })
end)

T.test("too_long_is_an_error_or_cut_by_the_rule", function()
  local m = stories()
  local long = {}
  for i = 1, 513 do long[i] = 3 + i % 500 end
  T.raises(m.tokenize_rows, "row 1: 513 tokens; the limit is 512", m, { long })
  local row = { prompt = { 1, 10, 11, 12, 13, 14 }, completion = { 20, 21, 22 } }
  T.raises(m.tokenize_rows, "row 1: 9 tokens; the limit is 8", m, { row }, { max_length = 8, truncation = "error" })
  local r, report = m:tokenize_rows({ row, { 1, 2, 3 } }, { max_length = 6 })
  T.eq(r[1].ids, { 1, 13, 14, 20, 21, 22 }) -- the prompt's start goes, BOS stays
  T.eq(r[1].start, 4)
  T.eq(r[1].cut, "prompt")
  T.eq(report, { rows = 2, cut_prompt = 1, cut_completion = 0 })
  r, report = m:tokenize_rows({ row }, { max_length = 3 })
  T.eq(r[1].ids, { 1, 20, 21 }) -- then the completion's end, and no end token is put in its place
  T.eq(r[1].start, 2)
  T.eq(r[1].cut, "completion")
  T.eq(report.cut_completion, 1)
  for n = 2, 10 do
    local x = m:tokenize_rows({ row }, { max_length = n })[1]
    T.ok(#x.ids <= n and x.start >= 2 and x.start <= #x.ids)
  end
end)

T.test("masks_and_sums", function()
  local m = stories()
  local rows = {
    { prompt = { 1, 403, 407 }, completion = { 261, 378 } },
    { 1, 403, 407, 261, 378, 432, 383 },
    { prompt = "Tim saw a cat.", completion = " It was red." },
  }
  local lp, mask = m:logprobs(rows)
  T.eq(mask[1]:tolist(), { 0, 0, 1, 1, table.unpack({ 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 1, lp:size(2) - 4) })
  T.eq(mask[2]:sum():item(), 6.0)
  local list = m:tokenize_rows(rows)
  local sums, counts = m:completion_sums(list)
  T.eq(counts:tolist(), { 2, 6, #list[3].ids - list[3].n_prompt })
  T.near(sums:tolist(), (lp * mask):sum(2):tolist(), 1e-4)
  T.near(m:score(rows):tolist(), sums:tolist(), 0)
  local flat, row_of = m:completion_logprobs(list)
  T.eq(flat:size(1), 8 + counts[3]:item())
  T.eq(row_of:tolist()[3], 1)
  -- one token at a time gives the same sum
  local one = 0
  for t = list[3].start, #list[3].ids do
    local head = table.move(list[3].ids, 1, t, 1, {})
    one = one + m:score({ { ids = head, start = t } })[1]:item()
  end
  T.near(one, sums[3]:item(), 1e-4)
end)

T.test("neighbours_and_pieces_do_not_matter", function()
  local m = stories()
  local rows = {}
  for i = 1, 40 do
    rows[i] = {}
    for t = 1, 2 + (i * 7) % 60 do rows[i][t] = (i * 31 + t * 17) % 512 end
  end
  local all = m:score(rows)
  local pieces = pl.no_grad(function() return (m.decoder:score(m:tokenize_rows(rows), false, 50)) end)
  local whole = pl.no_grad(function() return (m.decoder:score(m:tokenize_rows(rows), false, 100000)) end)
  T.near(pieces:tolist(), whole:tolist(), 1e-4)
  for i = 1, 40, 13 do T.near(m:score({ rows[i] })[1]:item(), all[i]:item(), 1e-3) end
end)

T.test("gradient_of_prompt_tokens_is_zero", function()
  local m = stories()
  local lp, mask = m:logprobs { { prompt = { 1, 403, 407 }, completion = { 261, 378 } } }
  T.eq(mask:tolist(), { { 0, 0, 1, 1 } })
  T.ok(lp[1][1]:item() ~= 0, "prompt entries are there, the mask leaves them out")
end)

T.done()
