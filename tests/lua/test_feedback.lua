-- demonstrate, sample, join, compare and rate: row shapes, counts that add up, orders.
local T = require "tests.lua.harness"
local pl = require "perilune"
local text = require "perilune.world.text"

local function rows_of(ds)
  local out = {}
  for i = 1, #ds do out[i] = ds[i] end
  return out
end

T.test("demonstrate drops what is invalid or empty, and counts it", function()
  local ds = pl.feedback.demonstrate("replay:tests/golden/replay/completions.jsonl",
    { "Q: sort: fox cat\nA:", { prompt = "Q: length of: cat\nA:" }, "Q: length of: frog\nA:" }, { n = 3 })
  T.eq(ds.counts, { asked = 9, kept = 3, invalid = 5, empty = 1 })
  T.eq(ds[1].completion, " cat fox")
  T.eq(ds[3].finish, "length")
end)

T.test("prompts of a wrong form are named", function()
  T.raises(function() pl.feedback.demonstrate("oracle:1", {}) end, "no prompts")
  T.raises(function() pl.feedback.demonstrate("oracle:1", { { text = "x" } }) end, 'row 1 has no text "prompt"')
  T.raises(function() pl.feedback.demonstrate("oracle:1", "p") end, "must be a dataset or a list")
  T.raises(function() pl.feedback.demonstrate("oracle:1", { "p" }, { sede = 1 }) end, 'did you mean "seed"')
end)

local function candidates(lists)
  local rows = {}
  for i, list in ipairs(lists) do
    local completions = {}
    for k, answer in ipairs(list) do completions[k] = { text = answer, ids = { k }, finish = "stop" } end
    rows[i] = { prompt = "p" .. i, completions = completions }
  end
  return pl.data.from(rows)
end

local function longer(r) return #r.a > #r.b and "a" or #r.b > #r.a and "b" or "tie" end

T.test("compare: neighbours, all and first", function()
  local set = candidates { { "x", "xx", "xxx", "x" } }
  T.eq(pl.feedback.compare(longer, set).counts.asked, 2)
  local all = pl.feedback.compare(longer, set, { pairs = "all" })
  T.eq({ all.counts.asked, all.counts.tie, #all }, { 6, 1, 5 })
  local first = pl.feedback.compare(longer, set, { pairs = "first" })
  T.eq({ first.counts.asked, first.counts.loss, first.counts.tie }, { 3, 2, 1 })
  T.raises(function() pl.feedback.compare(longer, candidates { { "x" } }) end, "fewer than two")
end)

T.test("compare: what was preferred is chosen, with its ids; four counts add up", function()
  local calls = 0
  local prefs = pl.feedback.compare(function(r)
    calls = calls + 1
    if r.prompt == "p3" then return nil end
    return longer(r)
  end, candidates { { "xx", "x" }, { "y", "yyy" }, { "q", "qq" }, { "same", "same" }, { "ab", "cd" } })
  T.eq(prefs.counts, { asked = 5, win = 1, loss = 1, tie = 2, invalid = 1 })
  T.eq(calls, 8, "equal texts are a tie without a call")
  T.eq(rows_of(prefs), {
    { prompt = "p1", chosen = { text = "xx", ids = { 1 }, finish = "stop" }, rejected = { text = "x", ids = { 2 }, finish = "stop" } },
    { prompt = "p2", chosen = { text = "yyy", ids = { 2 }, finish = "stop" }, rejected = { text = "y", ids = { 1 }, finish = "stop" } },
  })
end)

T.test("order: given asks once as it stands, coin once as the coin says, both twice", function()
  local seen = {}
  local function first(r)
    seen[#seen + 1] = r.a
    return "a"
  end
  local set = candidates { { "one", "two" } }
  T.eq(pl.feedback.compare(first, set, { order = "given" })[1].chosen.text, "one")
  T.eq(#pl.feedback.compare(first, set, { order = "both" }), 0)
  T.eq(seen, { "one", "one", "two" })
  local coin = require "perilune.feedback.coin"
  local many, switched = {}, 0
  for i = 1, 40 do many[i] = { "one", "two" } end
  local prefs = pl.feedback.compare(first, candidates(many), { order = "coin" })
  for i = 1, 40 do
    local wanted = coin.switched("p" .. i, 0) and "two" or "one"
    T.eq(prefs[i].chosen.text, wanted)
    if wanted == "two" then switched = switched + 1 end
  end
  T.ok(switched > 5 and switched < 35)
end)

T.test("join: matched by prompt in order, sources kept, the rest counted", function()
  local demos = pl.data.from {
    { prompt = "p1", completion = "t1" }, { prompt = "p1", completion = "t2" }, { prompt = "p3", completion = "t3" },
  }
  local both = pl.feedback.join(demos, candidates { { "s1", "s2" }, { "s3" } }, { names = { "teacher", "policy" } })
  T.eq(#both, 2)
  T.eq(both.counts, { read = 3, used = 2, unmatched = 2 })
  T.eq({ both[2].completions[1].text, both[2].completions[1].source }, { "t2", "teacher" })
  T.eq({ both[2].completions[2].text, both[2].completions[2].source, both[2].completions[2].ids }, { "s2", "policy", { 2 } })
  T.eq(demos[1].source, nil, "the arguments stay as they were")
end)

T.test("rate: numbers stay, the rest is counted", function()
  local rated = pl.feedback.rate(function(r) return r.prompt == "p" and #r.answer or "no" end, {
    { prompt = "p", completion = "xyz" }, { prompt = "q", completion = "x" },
  })
  T.eq(rated.counts, { asked = 2, rated = 1, invalid = 1, mean = 3.0, distribution = { { rating = 3, n = 1 } } })
  T.eq(rated[1].rating, 3)
end)

T.test("sample keeps the ids that were drawn, and training rows hold them", function()
  local tokenizer = text.tokenizer()
  local model = pl.models.new({
    model_type = "llama", vocab_size = tokenizer:vocab_size(), hidden_size = 16, intermediate_size = 32,
    num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64, tie_word_embeddings = true,
    rms_norm_eps = 1e-5, rope_theta = 10000.0, eos_token_id = tokenizer:token_to_id "</s>",
  }, { tokenizer = tokenizer, seed = 1 })
  local prompt = "Q: sort: fox cat\nA:"
  local ds = pl.feedback.sample(model, { prompt }, { n = 2, max_tokens = 4, seed = 3 })
  local answer = ds[1].completions[1]
  T.eq(#ds[1].completions, 2)
  T.eq(answer.tokenizer, tokenizer:hash())
  local tokens = model:tokenize_rows { { prompt = prompt, completion = answer } }
  T.eq(table.move(tokens[1].ids, tokens[1].start, #tokens[1].ids, 1, {}), answer.ids)
  T.near(model:score({ { prompt = prompt, completion = answer } }):tolist()[1], answer.logprob, 1e-4)
  -- ids of another tokenizer are not used
  answer.tokenizer = "another"
  local again = model:tokenize_rows { { prompt = prompt, completion = { text = " cat", ids = answer.ids, tokenizer = "another" } } }
  T.ok(#again[1].ids - again[1].start + 1 == 2, " cat and the end token")
end)

T.test("a text that is no UTF-8 can be kept", function()
  local clean = require("perilune.feedback.common").clean
  T.eq(clean "ok é", "ok é")
  T.eq(clean "a\xffb\xc3", "a\u{FFFD}b\u{FFFD}")
  T.eq(clean "a\0b", "a\u{FFFD}b")
end)

T.done()
