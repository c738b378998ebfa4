-- Clients of teachers and critics: specs, each provider, and the keys stages know them by.
local T = require "tests.lua.harness"
local pl = require "perilune"
local tiny = require "tests.lua.tiny"
local base = require("perilune.core").base
local text = require "perilune.world.text"

local SORT, LENGTH = "Q: sort: fox cat\nA:", "Q: length of: cat\nA:"

local function demonstrate(client, prompt, index)
  return client:demonstrate({ { task = "demonstrate", prompt = prompt, index = index or 1 } }, { seed = 0, max_tokens = 4 })[1]
end

local function compare(client, prompt, a, b)
  return client:compare({ { task = "compare", prompt = prompt, a = a, b = b } }, { seed = 0 })[1]
end

T.test("specs that are wrong say what was wanted", function()
  for _, case in ipairs {
    { "orcle:0.5", 'did you mean "oracle"' }, { "nobody:gpt-4o", "local, openai, oracle, replay" },
    { "oracle:1.5", "from 0 to 1" }, { "oracle:", "from 0 to 1" }, { "oracle:0.5?sed=1", 'did you mean "seed"' },
    { "local:/no/such/model", "no such directory" }, { "local:tests", "config.json" }, { "local:", "model directory" },
    { "local:tests?temperatur=1", 'did you mean "temperature"' }, { "local:tests?temperature=hot", "must be number" },
    { "oracle:0.5?seed", "key=value" }, { "replay:/no/such/file", "/no/such/file" }, { 3, "got a number" },
    { "func:x", "pl.ai(function" },
  } do
    T.raises(function() pl.ai(case[1]) end, case[2])
  end
end)

T.test("an oracle of strength 1 is right, 0 as critic is a coin that repeats itself", function()
  local right = pl.ai "oracle:1"
  T.eq(demonstrate(right, SORT).text, " cat fox")
  T.eq(demonstrate(right, LENGTH).text, " 3")
  T.eq(compare(right, SORT, " fox cat", " cat fox"), "b")
  T.eq(compare(right, SORT, " cat fox", " fox cat"), "a")
  T.eq(right:rate({ { task = "rate", prompt = SORT, answer = " cat fox" } }, {})[1], 1.0)
  local coin, heads = pl.ai "oracle:0", 0
  for i = 1, 200 do
    local verdict = compare(coin, SORT, " cat " .. i, " fox")
    T.eq(compare(coin, SORT, " cat " .. i, " fox"), verdict)
    if verdict == "a" then heads = heads + 1 end
  end
  T.ok(heads > 70 and heads < 130, "heads " .. heads)
  T.raises(function() demonstrate(right, "Write a poem.") end, "built-in world")
end)

T.test("another seed of an oracle draws other answers", function()
  local a, b, differ = pl.ai "oracle:0.3", pl.ai "oracle:0.3?seed=5", 0
  for i = 1, 40 do
    if demonstrate(a, SORT, i).text ~= demonstrate(b, SORT, i).text then differ = differ + 1 end
  end
  T.ok(differ > 5)
  T.ok(a:key() ~= b:key() and a:key() == pl.ai("oracle:0.3"):key())
end)

T.test("a function: its verdicts, invalid answers, and errors with their place", function()
  local client = pl.ai(function(r)
    T.eq(r.task, "compare")
    return r.a
  end)
  for answer, wanted in pairs { a = "a", b = "b", tie = "tie", A = "invalid", [""] = "invalid" } do
    T.eq(compare(client, "p", answer, "other"), wanted)
  end
  local bad = pl.ai(function(r) return r.task == "demonstrate" and 7 or nil end)
  T.ok(demonstrate(bad, "p").invalid)
  T.eq(compare(bad, "p", "x", "y"), "invalid")
  T.eq(bad:rate({ { prompt = "p", answer = "x" } }, {})[1], false)
  T.raises(function() compare(pl.ai(function(r) return r.none.field end), "p", "x", "y") end, "test_ai.lua:%d+:")
end)

T.test("a function's key is its code and what it holds", function()
  local function critic(word) return function(r) return r.a:find(word) and "a" or "b" end end
  T.eq(pl.ai(critic "x"):key(), pl.ai(critic "x"):key())
  T.ok(pl.ai(critic "x"):key() ~= pl.ai(critic "y"):key())
  local thread = coroutine.create(print)
  local key, why = pl.ai(function() return thread and "a" end):key()
  T.eq(key, nil)
  T.ok(why:find("coroutine", 1, true), why)
end)

T.test("replay gives what was recorded, in order, and nothing else", function()
  local file = "replay:tests/golden/replay/completions.jsonl"
  local client = pl.ai(file)
  T.eq(demonstrate(client, SORT, 1).text, " cat fox")
  T.eq(demonstrate(client, SORT, 2).text, " fox cat")
  T.ok(demonstrate(client, SORT, 3).invalid)
  T.eq(demonstrate(client, "Q: length of: frog\nA:").finish, "length")
  local verdicts = pl.ai "replay:tests/golden/replay/verdicts.jsonl"
  T.eq(compare(verdicts, "p5", "x", "y"), "a")
  T.eq(compare(verdicts, "p5", "y", "x"), "invalid")
end)

T.test("a bad replay file is named with its line", function()
  local path = T.tmpdir() .. "/bad.jsonl"
  for _, case in ipairs {
    { '{"prompt":"p","completion":"x"}\n{"prompt":', ":2:" }, { '{"prompt":"p"}', ':1: a row needs "completion"' },
    { '{"completion":"x"}', 'text "prompt"' }, { '{"prompt":"p","a":"x","b":"y","verdict":"A"}', '"verdict" must be' },
  } do
    local file = assert(io.open(path, "w"))
    file:write(case[1])
    file:close()
    T.raises(function() pl.ai("replay:" .. path) end, case[2])
  end
end)

T.test("a provider of one's own", function()
  pl.ai.register("echo", function(rest, given)
    return {
      demonstrate = function(_, requests)
        local out = {}
        for i, r in ipairs(requests) do out[i] = { text = rest .. given.mark .. r.prompt } end
        return out
      end,
    }
  end)
  local client = pl.ai "echo:hi?mark=!"
  T.eq(demonstrate(client, "you").text, "hi!you")
  T.raises(function() compare(client, "p", "x", "y") end, "cannot compare")
  T.eq(client:key(), nil)
end)

T.test("a local critic prefers the higher log-probability a token", function()
  local model = tiny(1)
  local client = pl.ai(model)
  for _, pair in ipairs { { " cat fox", " fox" }, { " 3", " red blue green" }, { " tac", " xof tac" } } do
    local mean = {}
    for i, answer in ipairs(pair) do
      local rows = model:tokenize_rows { { prompt = SORT, completion = answer } }
      mean[i] = model:score({ { prompt = SORT, completion = answer } }):tolist()[1] / (#rows[1].ids - rows[1].start + 1)
    end
    T.eq(compare(client, SORT, pair[1], pair[2]), mean[1] > mean[2] and "a" or "b")
  end
  T.eq(compare(client, SORT, " cat", " cat"), "tie")
  T.eq(compare(client, SORT, "", " cat"), "invalid")
end)

T.test("a local critic reads the prompt of two answers once, and each answer once", function()
  local model = tiny(1)
  local PROMPTS = { SORT, LENGTH }
  local requests, rated = {}, {}
  for i = 1, 3 do
    for _, prompt in ipairs(PROMPTS) do
      local a, b = (" cat"):rep(i), (" fox"):rep(i)
      requests[#requests + 1] = { task = "compare", prompt = prompt, a = a, b = b }
      requests[#requests + 1] = { task = "compare", prompt = prompt, a = b, b = a }
      rated[#rated + 1] = { task = "rate", prompt = prompt, answer = a }
    end
  end
  local reads = {}
  for _, name in ipairs { "pair_sums", "completion_sums" } do
    model[name] = function(self, rows)
      reads[name] = (reads[name] or 0) + #rows
      return getmetatable(model)[name](self, rows)
    end
  end
  local verdicts = pl.ai(model):compare(requests)
  T.eq(reads, { pair_sums = 12 })
  local ratings = pl.ai(model):rate(rated)
  T.eq(reads, { pair_sums = 12 + 4, completion_sums = 2 }, "three answers to a prompt: two and one")
  for i, r in ipairs(rated) do
    local data = { { prompt = r.prompt, completion = r.answer } }
    local row = model:tokenize_rows(data)[1]
    T.near(ratings[i], model:score(data):item() / (#row.ids - row.start + 1), 1e-5)
  end
  for i = 1, #verdicts, 2 do T.eq(verdicts[i], verdicts[i + 1] == "a" and "b" or "a") end
end)

T.test("a local critic's dtype is that of its numbers", function()
  local model = tiny(1)
  local request = { { task = "rate", prompt = SORT, answer = " cat fox" } }
  local full, half = pl.ai(model):rate(request)[1], pl.ai(model, { dtype = "bf16" }):rate(request)[1]
  T.ok(full ~= half)
  T.near(full, half, 0.05)
  T.eq(pl.autocast("bf16", function() return pl.ai(model):rate(request)[1] end), full, "whatever is set around it")
  local eighth = pl.ai(model, { dtype = "int8" })
  T.raises(function() eighth:rate(request, {}) end, "a critic reads in f32 or bf16")
  T.raises(function() pl.feedback.compare(eighth, { { prompt = SORT, completions = { " cat", " fox" } } }) end,
    "local:DIR%?dtype=bf16")
  T.eq(#eighth:demonstrate({ { task = "demonstrate", prompt = SORT } }, { max_tokens = 2, seed = 1 }), 1)
end)

T.test("a local teacher samples, and its directory is its key", function()
  local dir = T.tmpdir() .. "/model"
  tiny(2):save(dir)
  local client = pl.ai("local:" .. dir .. "?temperature=0&max_tokens=3")
  local reply = demonstrate(client, SORT)
  T.eq(#reply.ids <= 3, true)
  T.eq(reply.tokenizer, text.tokenizer():hash())
  T.eq(demonstrate(client, SORT), reply)
  T.eq(client:key(), pl.ai("local:" .. dir .. "?max_tokens=3&temperature=0"):key())
  T.ok(client:key() ~= pl.ai("local:" .. dir .. "?temperature=1&max_tokens=3"):key())
end)

T.test("a local model whose files change within the process is another one", function()
  local dir = T.tmpdir() .. "/changing"
  local function verdicts(client)
    local out = {}
    for i = 1, 12 do out[i] = compare(client, SORT, (" cat"):rep(i), (" fox"):rep(i % 5 + 1)) end
    return table.concat(out, " ")
  end
  tiny(1):save(dir)
  local client, keys = pl.ai("local:" .. dir), {}
  for i, seed in ipairs { 2, 3, 4 } do
    if i < 3 then
      tiny(seed):save(dir)
    else                              -- in place, at once, to the same size
      tiny(seed):save(dir .. "-next")
      local file = T.ok(io.open(dir .. "/model.safetensors", "r+b"))
      file:write(T.ok(base.read_file(dir .. "-next/model.safetensors"))):close()
    end
    keys[i] = client:key()
    T.ok(keys[i] ~= keys[i - 1])
    T.eq(keys[i], pl.ai("local:" .. dir):key())
    T.eq(verdicts(client), verdicts(pl.ai(tiny(seed))))
  end
  base.sleep(0.2)
  T.eq({ client:key(), client:key() }, { keys[3], keys[3] })
  local read = client.provider:model()
  T.ok(rawequal(client.provider:model(), read), "files that did not change are not read again")
end)

T.test("a local model whose directory is away: the one read before stands", function()
  local dir = T.tmpdir() .. "/away"
  tiny(2):save(dir)
  local client, cold = pl.ai("local:" .. dir .. "?temperature=0&max_tokens=3"), pl.ai("local:" .. dir)
  local key, reply = client:key(), demonstrate(client, SORT)
  T.ok(os.rename(dir, dir .. "-aside"))
  T.eq(client:key(), key)
  T.eq(demonstrate(client, SORT), reply)
  for _, ask in ipairs { function() return cold:key() end, function() return demonstrate(cold, SORT) end } do
    local ok, message = pcall(ask)
    T.ok(not ok and message:find(dir .. ": no such directory", 1, true) and not message:find("hash.lua", 1, true), message)
  end
  local sleep, pauses = base.sleep, 0
  local back <close> = base.finally(function() base.sleep = sleep end)
  base.sleep = function()
    pauses = pauses + 1
    T.ok(os.rename(dir .. "-aside", dir))
  end
  T.eq(cold:key(), pl.ai("local:" .. dir):key(), "back in time")
  T.eq(pauses, 1)
  base.sleep = sleep
  T.ok(os.rename(dir, dir .. "-aside"))
  tiny(3):save(dir)
  T.ok(client:key() ~= key, "another one in its place")
end)

T.done()
