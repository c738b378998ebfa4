--- Tokenizers against Hugging Face's ids (golden files made by
--- tests/golden/make_tokenizer.py), published vectors and counts, and bad input.
local T = require "tests.lua.harness"
local core = require "perilune.core"
local wordlevel = require "perilune.text.wordlevel"

local root = os.getenv "PL_ROOT" or "."
local whole = { skip_special_tokens = false }
local plain = { add_special_tokens = false }

local function golden(name)
  return core.base.json_read(root .. "/tests/golden/" .. name).tokenizers
end

-- Every stored string and id list of one tokenizer.
local function compare(tok, cases)
  for _, case in ipairs(cases.encode) do
    local ok, ids = pcall(tok.encode, tok, case.text)
    if case.error then
      T.ok(not ok, ("%q should have no ids"):format(case.text))
    else
      local what = ("%q"):format(case.text)
      T.eq(ids, case.ids, what)
      T.eq(tok:encode(case.text, plain), case.plain or case.ids, what)
      T.eq(tok:decode(ids), case.decoded, what)
      T.eq(tok:decode(ids, whole), case.whole, what)
    end
  end
  for _, case in ipairs(cases.decode) do
    T.eq(tok:decode(case.ids), case.decoded)
    T.eq(tok:decode(case.ids, whole), case.whole)
  end
end

for _, t in ipairs(golden "tokenizer_own.json") do
  T.test("as Hugging Face: " .. t.name, function()
    local tok = core.text.from_json(t.json, t.name)
    compare(tok, t)
    T.eq(tok:json(), t.json)
    T.eq(tok:hash(), core.base.sha256(t.json))
  end)
end

for _, t in ipairs(golden "tokenizer_shared.json") do
  T.test("as Hugging Face: shared " .. t.name, function()
    compare(core.text.load(T.need_shared() .. "/data/" .. t.name), t)
  end)
end

T.test("the word-level builder makes the tokenizer of the golden file", function()
  for _, t in ipairs(golden "tokenizer_own.json") do
    if t.name == "word level" then
      local j = core.base.json_decode(t.json)
      local words = {}
      for word, id in pairs(j.model.vocab) do
        if id >= 2 then words[id - 1] = word end
      end
      local tok = wordlevel.tokenizer(words, { pattern = j.pre_tokenizer.pattern.Regex, unk = "<unk>" })
      compare(tok, t)
      T.eq(core.base.json_decode(tok:json()), j)
      T.eq(tok:bos_declared(), nil)
      T.eq(tok:token_to_id "</s>", 0)
      return
    end
  end
  error "no word level case in the golden file"
end)

T.test("the word-level builder checks its words", function()
  T.raises(function() wordlevel.tokenizer({ "a", "a" }, { pattern = "." }) end, "comes twice")
  T.raises(function() wordlevel.tokenizer({ "a", "</s>" }, { pattern = "." }) end, "comes twice")
  T.raises(function() wordlevel.tokenizer({ 1 }, { pattern = "." }) end, "not a string")
  T.raises(function() wordlevel.tokenizer({ "a" }, { patern = "." }) end, 'did you mean "pattern"')
  local tok = wordlevel.tokenizer({ "a" }, { pattern = "." })
  T.raises(function() tok:encode "b" end, 'the word "b" is not in the vocabulary')
end)

-- .inp: strings, each followed by a line __ggml_vocab_test__; .out: a line of ids each.
T.test("published vectors for GPT-2, 46 of 46", function()
  local dir = T.need_shared() .. "/data/tokenizers/"
  local tok = core.text.load(dir .. "gpt2")
  local texts = core.base.read_file(dir .. "vectors/ggml-vocab-gpt-2.inp")
  local lines = core.base.read_file(dir .. "vectors/ggml-vocab-gpt-2.out"):gmatch "([^\n]*)\n"
  local count, at = 0, 1
  while true do
    local from, to = texts:find("\n__ggml_vocab_test__\n", at, true)
    if not from then break end
    local want = {}
    for id in lines():gmatch "%d+" do want[#want + 1] = math.tointeger(id) end
    T.eq(tok:encode(texts:sub(at, from - 1)), want, ("%q"):format(texts:sub(at, from - 1)))
    count, at = count + 1, to + 1
  end
  T.eq(count, 46)
end)

T.test("tinyshakespeare has 338,025 GPT-2 tokens and comes back", function()
  local dir = T.need_shared() .. "/data/"
  local tok = core.text.load(dir .. "tokenizers/gpt2")
  local text = core.base.read_file(dir .. "text/tinyshakespeare.txt")
  local ids = tok:encode(text)
  T.eq(#ids, 338025)
  T.ok(tok:decode(ids) == text)
end)

T.test("Mistral's published example, BOS and names", function()
  local tok = core.text.load(T.need_shared() .. "/data/tokenizers/mistral-v0.3/tokenizer.json")
  T.eq(tok:encode "Hello, world! It's 2024.",
    { 1, 23325, 29493, 2294, 29576, 1429, 29510, 29481, 29473, 29518, 29502, 29518, 29549, 29491 })
  T.eq(tok:vocab_size(), 32768)
  T.eq(tok:bos_declared(), 1)
  T.eq(tok:token_to_id "<s>", 1)
  T.eq(tok:id_to_token(1), "<s>")
  T.eq(tok:id_to_token(99999), nil)
  T.eq(tok:token_to_id "no such token", nil)
  T.ok(tok:is_special(1) and not tok:is_special(2294))
  T.eq(tostring(tok), "tokenizer BPE, 32768 ids, puts in front <s>")
end)

T.test("a long text without blanks takes no quadratic time", function()
  local tok = core.text.load(T.need_shared() .. "/data/tokenizers/gpt2")
  local parts = {}
  for i = 1, 200000 do parts[i] = ("abcdeorst"):sub(1 + (i * i // 7) % 9, 1 + (i * i // 7) % 9) end
  local function seconds(text)
    local from = os.clock()
    local ids = tok:encode(text)
    T.ok(tok:decode(ids) == text)
    return os.clock() - from
  end
  seconds(table.concat(parts, "", 1, 1000))
  local short = seconds(table.concat(parts, "", 1, 25000))
  local long = seconds(table.concat(parts))
  T.ok(long < 24 * short + 0.2, ("8 times the text took %.3f s against %.3f s"):format(long, short))
end)

T.test("bytes that are not UTF-8 are kept by byte level and byte fallback", function()
  local dir = T.need_shared() .. "/data/"
  local gpt2 = core.text.load(dir .. "tokenizers/gpt2")
  local names = {}
  for i, id in ipairs(gpt2:encode "a\xff\xc3 b\xe2\x82") do names[i] = gpt2:id_to_token(id) end
  T.eq(table.concat(names), "aÿÃĠbâĤ") -- GPT-2's names of the bytes 61 ff c3 20 62 e2 82
  T.eq(gpt2:decode(gpt2:encode "a\xff\xc3 b\xe2\x82"), "a\u{fffd}\u{fffd} b\u{fffd}")
  local llama = core.text.load(dir .. "models/stories260K")
  T.eq(llama:encode("\xff", plain), { llama:token_to_id "\u{2581}", llama:token_to_id "<0xFF>" })
end)

T.test("text with NUL and an empty text", function()
  local tok = core.text.load(T.need_shared() .. "/data/models/stories260K")
  T.eq(tok:encode "", { 1 })
  T.eq(tok:encode("", plain), {})
  T.eq(tok:decode {}, "")
  T.eq(tok:decode(tok:encode "a\0b"), "a\0b")
end)

local small = [[{"version":"1.0","added_tokens":[],"normalizer":%s,"pre_tokenizer":%s,"post_processor":%s,
"decoder":%s,"model":%s}]]
local bpe = [[{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}]]

local function make(parts)
  return core.text.from_json(small:format(parts.norm or "null", parts.pre or "null", parts.post or "null",
    parts.dec or "null", parts.model or bpe), "small.json")
end

T.test("what is not implemented is refused by name", function()
  local bad = {
    { { norm = '{"type":"NFKC"}' }, 'small.json: the normalizer "NFKC" is not implemented' },
    { { norm = '{"type":"Sequence","normalizers":[{"type":"BertNormalizer"}]}' }, "BertNormalizer" },
    { { pre = '{"type":"BertPreTokenizer"}' }, "BertPreTokenizer" },
    { { pre = '{"type":"ByteLevel","new_option":true}' }, 'the option "new_option" is not implemented' },
    { { pre = '{"type":"Split","pattern":{"Regex":"a\\\\Kb"},"behavior":"Isolated"}' }, "escape \\K" },
    { { pre = '{"type":"Split","pattern":{"Regex":"(a"},"behavior":"Isolated"}' }, 'pattern "(a"' },
    { { pre = '{"type":"Split","pattern":{"Regex":"a"},"behavior":"Sideways"}' }, "Sideways" },
    { { post = '{"type":"TemplateProcessing","single":[],"pair":[],"special_tokens":{}}' }, "sequence A once" },
    { { dec = '{"type":"CTC"}' }, 'decoder "CTC"' },
    { { model = '{"type":"Unigram","vocab":[]}' }, 'model "Unigram"' },
    { { model = '{"type":"BPE","vocab":{"a":0},"merges":["a c"]}' }, "merge 0" },
    { { model = '{"type":"BPE","vocab":{"a":0,"b":1},"merges":["a b"]}' }, 'gives "ab"' },
    { { model = '{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}' }, "two tokens" },
    { { model = '{"type":"BPE","vocab":{"a":4000000000},"merges":[]}' }, "id of a" },
    { { model = '{"type":"BPE","vocab":{"a":2000000000},"merges":[]}' }, "far beyond" },
    { { model = '{"type":"BPE","vocab":{"a":0},"merges":[],"dropout":0.1}' }, "dropout" },
    { { model = '{"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"?"}' }, "unk_token" },
  }
  for _, row in ipairs(bad) do T.raises(function() make(row[1]) end, row[2]) end
  T.raises(function() core.text.from_json('{"truncation":{"max_length":5}}') end, "truncation")
  T.raises(function() core.text.from_json "{" end, "tokenizer.json")
  T.raises(function() core.text.load "/nonexistent" end, "/nonexistent")
end)

T.test("text and ids outside the vocabulary, options, freed tokenizer", function()
  local tok = make {}
  T.eq(tok:encode "abba", { 2, 1, 0 })
  T.raises(function() tok:encode "abc" end, 'no token for "c" (U+0063)')
  T.raises(function() tok:encode "ab\xff" end, "not valid UTF-8 (byte 0xFF)")
  T.raises(function() tok:decode { 0, 3 } end, "id 3 at position 2 has no token (ids go from 0 to 2)")
  T.raises(function() tok:decode { -1 } end, "not an id")
  T.raises(function() tok:decode { "x" } end, "not an id")
  T.raises(function() tok:encode("a", { add_special = false }) end, 'unknown option "add_special"')
  T.raises(function() tok:encode("a", { add_special_tokens = 1 }) end, "must be true or false")
  T.raises(function() tok.encode({}, "a") end, "perilune.Tokenizer")
  tok:free()
  tok:free()
  T.raises(function() tok:encode "a" end, "freed")
  T.eq(tostring(tok), "tokenizer (freed)")
end)

T.done()
