-- Generation on a real model: published text, sums that agree with scoring, options, errors.
local T = require "tests.lua.harness"
local pl = require "perilune"

local PUBLISHED = [[
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. We can help you.]]

local function stories()
  return pl.load(T.need_shared() .. "/data/models/stories260K")
end

T.test("published_text", function()
  local m = stories()
  local out = m:generate({ { 1 }, "Once upon a time" }, { max_tokens = 450, temperature = 0 })
  T.eq(out[1].text:sub(1, #PUBLISHED), PUBLISHED)
  T.eq("Once upon a time" .. out[2].text, out[1].text)
  T.eq(out[1].finish, "stop")
  T.eq(out[1].ids[#out[1].ids], 1)
end)

T.test("logprob_is_the_score_of_the_same_ids", function()
  local m = stories()
  local out = m:generate({ "The dog", "Once upon a time" }, { n = 4, max_tokens = 60, top_k = 20, top_p = 0.8, temperature = 0.7 })
  T.eq(#out, 8)
  local rows, want = {}, {}
  for i, o in ipairs(out) do
    T.eq(#o.ids, #o.logprobs)
    rows[i] = { prompt = m.tokenizer:encode(o.prompt), completion = o.ids }
    want[i] = o.logprob
  end
  T.near(m:score(rows):tolist(), want, 2e-3)
  T.near(m:score(out):tolist(), want, 2e-3) -- the answers are rows themselves
  T.ok(out[1].text ~= out[2].text)
end)

-- bf16 and int8 round weights, activations and the cache: answers differ from f32 as soon as two tokens are
-- about equally likely; the log-probabilities of the same ids stay this near.
T.test("dtype_rounds_the_weights", function()
  local m = stories()
  local o = { n = 4, max_tokens = 60, seed = 5 }
  local prompts = { "The dog", "Once upon a time" }
  for dtype, at_most in pairs { f32 = { 1e-4, 2.5e-5 }, bf16 = { 0.3, 0.02 }, int8 = { 0.8, 0.08 } } do
    local most, mean = table.unpack(at_most)
    o.dtype, o.batch_size = dtype, nil
    local out = m:generate(prompts, o)
    local lp = pl.no_grad(function() return m:logprobs(out) end)
    local total, count = 0, 0
    for i, answer in ipairs(out) do
      local first = #m.tokenizer:encode(answer.prompt)
      local row = lp[i]:tolist()
      for t, got in ipairs(answer.logprobs) do
        local off = math.abs(row[first + t - 1] - got)
        T.ok(off < most, dtype .. " " .. off)
        total, count = total + off, count + 1
      end
    end
    T.ok(total / count < mean, dtype .. " mean " .. total / count)
    o.batch_size = 3
    for i, again in ipairs(m:generate(prompts, o)) do
      T.eq(again.ids, out[i].ids)
      T.eq(again.logprobs, out[i].logprobs)
    end
  end
  T.raises(m.generate, "int8", m, { "A" }, { dtype = "int4" })
end)

T.test("new_weights_are_used", function()
  local m = stories():clone()
  for _, dtype in ipairs { "f32", "int8" } do
    local before = m:generate({ "A" }, { max_tokens = 5, temperature = 0, dtype = dtype })[1].logprobs
    pl.no_grad(function() m:parameters()[5]:mul_(1.5) end)
    local after = m:generate({ "A" }, { max_tokens = 5, temperature = 0, dtype = dtype })[1].logprobs
    T.ok(before[1] ~= after[1])
  end
end)

T.test("batch_size_and_neighbours_do_not_change_answers", function()
  local m = stories()
  local prompts = { "A", "The big dog", "Once upon a time, there was", "Tim" }
  local o = { n = 3, max_tokens = 30, seed = 11 }
  local a = m:generate(prompts, o)
  for _, size in ipairs { 1, 5, 100 } do
    o.batch_size = size
    local b = m:generate(prompts, o)
    for i = 1, #a do
      T.eq(b[i].ids, a[i].ids)
      T.eq(b[i].logprobs, a[i].logprobs)
    end
  end
  T.eq(m:generate({ "A" }, { n = 3, max_tokens = 30, seed = 11 })[3].ids, a[3].ids)
  T.ok(m:generate({ "A" }, { n = 3, max_tokens = 30, seed = 12 })[1].text ~= a[1].text)
end)

T.test("text_keeps_its_leading_blank", function()
  local m = stories()
  local out = m:generate({ "Once upon a time, there was a little" }, { temperature = 0, max_tokens = 3 })
  T.eq(out[1].text, " girl")
  T.eq(out[1].finish, "length")
end)

T.test("stop_texts_cut_before", function()
  local m = stories()
  local o = { temperature = 0, max_tokens = 60, stop = { "named", " park" } }
  local out = m:generate({ "Once upon a time", "Once" }, o)
  T.eq(out[1].text, ", there was a little girl ")
  T.eq(out[1].finish, "stop")
  T.eq(out[2].finish, "stop")
  local free = m:generate({ "Once upon a time" }, { temperature = 0, max_tokens = 60 })[1]
  for k, id in ipairs(out[1].ids) do T.eq(id, free.ids[k]) end
  T.eq(#out[1].ids, #out[1].logprobs)
  T.ok(#out[1].ids < 12)
  o.stop = "zebra"
  T.eq(m:generate({ "Once upon a time" }, o)[1].text, free.text)
end)

T.test("context_and_max_tokens_end_with_length", function()
  local m = stories()
  local ids = { 1 }
  for i = 2, 510 do ids[i] = 100 + i % 300 end
  local out = m:generate({ ids }, { max_tokens = 50, temperature = 0 })[1]
  T.ok(out.finish == "stop" or #out.ids == 2)
  ids[511], ids[512] = 100, 100
  T.raises(m.generate, "prompt 2 has 512 tokens; the context of 512 leaves no room", m, { "A", ids })
end)

T.test("options_and_errors", function()
  local m = stories()
  for _, case in ipairs {
    { { "A" }, { temprature = 1 }, 'unknown option "temprature" (did you mean "temperature"?)' },
    { { "A" }, { temperature = -1 }, "temperature must be at least 0" },
    { { "A" }, { top_p = 0 }, "top_p 0" },
    { { "A" }, { top_p = 1.5 }, "top_p must be at most 1" },
    { { "A" }, { stop = { "" } }, "stop[1] must be a text" },
    { { "A", {} }, nil, "prompt 2 has no tokens" },
    { { "A", { x = 1 } }, nil, "prompt 2 is a table without a prompt" },
    { { { 1, 600 } }, nil, "prompt 1 has token id 600" },
    { "A", nil, "prompts is a string; wanted a list" },
  } do
    T.raises(m.generate, case[3], m, case[1], case[2])
  end
  T.eq(m:generate {}, {})
end)

T.test("progress_and_rows_as_prompts", function()
  local m = stories()
  local seen
  local out = m:generate({ { prompt = "A cat", completion = "ignored" }, { prompt = { 1, 291 } } },
    { n = 2, max_tokens = 5, on_progress = function(p) seen = p end })
  T.eq(#out, 4)
  T.eq(out[1].prompt, "A cat")
  T.eq(seen.done, 4)
  T.eq(seen.total, 4)
  local n = 0
  for _, o in ipairs(out) do n = n + #o.ids end
  T.eq(seen.tokens, n)
end)

T.test("broken_weights_are_an_error", function()
  local m = stories():clone()
  pl.no_grad(function() m:parameters()[5]:fill_(0 / 0) end)
  T.raises(m.generate, "NaN or infinite logits for prompt 1", m, { "A" })
end)

T.test("nothing_is_left_in_memory", function()
  local m = stories()
  local function round() m:generate({ "A", "The dog" }, { n = 8, max_tokens = 40, batch_size = 4 }) end
  round()
  collectgarbage()
  collectgarbage()
  local before = pl.memory().live
  for _ = 1, T.quick() and 2 or 5 do round() end
  collectgarbage()
  collectgarbage()
  T.ok(pl.memory().live <= before + 65536, pl.memory().live - before)
end)

T.done()
