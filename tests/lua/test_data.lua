-- Datasets: strict reading with file and line, conversions, selection, hashes, printing.
local T = require "tests.lua.harness"
local pl = require "perilune"

local function file(name, text)
  local path = T.tmpdir() .. "/" .. name
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
  return path
end

T.test("data_loads_jsonl", function()
  local path = file("a.jsonl", '{"prompt":"a","completion":" b"}\n\n{"prompt":"c","completion":" d","id":7}\n')
  local ds = pl.data.load(path)
  T.eq(#ds, 2)
  T.eq(ds[2], { prompt = "c", completion = " d", id = 7 })
  T.eq(ds:kind(), "completion")
  T.eq(ds.counts, { read = 2, used = 2, dropped = {} })
  T.eq(ds:column_names(), { "completion", "id", "prompt" })
end)

T.test("data_loads_json_list", function()
  T.eq(#pl.data.load(file("a.json", '[{"text":"x"},{"text":"y"}]')), 2)
  T.raises(function() pl.data.load(file("b.json", '{"text":"x"}')) end, "wanted a list of rows")
  T.raises(function() pl.data.load(file("c.json", '[{"text":"x"},{"messages":[{"role":"bot","content":""}]}]')) end,
    "c.json: row 2: messages[1].role is \"bot\"")
end)

local BAD = {
  { "truncated", '{"prompt":"a"', ":1" },
  { "garbage", '{"prompt":"a","completion":"b"} x', ":1" },
  { "second line", '{"prompt":"a","completion":"b"}\n{"prompt":}', ":2" },
  { "duplicate key", '{"prompt":"a","prompt":"b"}', ":1" },
  { "bad UTF-8", '{"prompt":"\255","completion":"b"}', ":1" },
  { "NUL", '{"prompt":"a\\u0000","completion":"b"}', ":1" },
  { "not a row", "[1]", ":1" },
  { "number", "3", "wanted a row" },
  { "empty completion", '{"prompt":"a","completion":""}', "completion is empty" },
  { "empty chosen", '{"prompt":"a","chosen":"","rejected":"x"}', "chosen is empty" },
  { "one side", '{"prompt":"a","chosen":"x"}', "has chosen but not rejected" },
  { "prompt type", '{"prompt":3,"completion":"x"}', "prompt is 3" },
  { "role", '{"messages":[{"role":"user","content":"x"},{"role":"model","content":"y"}]}', "messages[2].role" },
  { "content", '{"messages":[{"role":"user"}]}', "messages[1].content" },
  { "no messages", '{"messages":[]}', "messages is empty" },
  { "ids", '{"prompt":[1,-2],"completion":[3]}', "prompt[2] is -2" },
  { "sharegpt unsaid", '{"conversations":[]}', 'format = "sharegpt"' },
  { "alpaca unsaid", '{"instruction":"a","output":"b"}', 'format = "alpaca"' },
}

for _, bad in ipairs(BAD) do
  T.test("data_refuses_" .. bad[1]:gsub("%s", "_"), function()
    local path = file("bad.jsonl", bad[2] .. "\n")
    local message = T.raises(function() pl.data.load(path) end, bad[3])
    T.ok(message:find("bad.jsonl:", 1, true), message)
  end)
end

T.test("data_missing_and_compressed_files", function()
  T.raises(function() pl.data.load "/nowhere/x.jsonl" end, "/nowhere/x.jsonl")
  T.raises(function() pl.data.load "x.jsonl.gz" end, "convert")
  T.raises(function() pl.data.load(3) end, "wanted a path")
  T.raises(function() pl.data.load(file("f.jsonl", ""), { format = "sharegtp" }) end, 'did you mean "sharegpt"')
end)

T.test("data_drops_and_counts", function()
  local path = file("d.jsonl", '{"prompt":"a","completion":"b"}\n{"prompt":"a","completion":""}\n{"x"\n{"prompt":"a","completion":""}\n')
  local ds = pl.data.load(path, { on_error = "drop" })
  T.eq(ds.counts.read, 4)
  T.eq(ds.counts.used, 1)
  T.eq(ds.counts.dropped["completion is empty"], 2)
  local dropped = 0
  for _, n in pairs(ds.counts.dropped) do dropped = dropped + n end
  T.eq(ds.counts.used + dropped, ds.counts.read)
  T.ok(tostring(ds):find("dropped 2: completion is empty", 1, true))
end)

T.test("data_null_is_no_value", function()
  T.eq(pl.data.load(file("n.jsonl", '{"prompt":"a","completion":"b","id":null}\n'))[1], { prompt = "a", completion = "b" })
end)

T.test("data_conversions", function()
  local share = file("s.jsonl",
    '{"id":"1","conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"yo"},{"from":"human","value":"?"}]}\n')
  local chat = pl.data.load(share, { format = "sharegpt" })
  T.eq(chat[1].messages[2], { role = "assistant", content = "yo" })
  T.eq(pl.data.load(share, { format = "sharegpt-first" })[1], { prompt = "hi", completion = "yo", id = "1" })
  T.raises(function()
    pl.data.load(file("t.jsonl", '{"conversations":[{"from":"bot","value":"x"}]}\n'), { format = "sharegpt" })
  end, "conversations[1].from")
  local alpaca = file("al.jsonl", '{"instruction":"Add","input":"1 2","output":"3"}\n{"instruction":"Go","input":"","output":"ok"}\n')
  local ds = pl.data.load(alpaca, { format = "alpaca" })
  T.eq(ds[1], { prompt = "Add\n\n1 2", completion = "3" })
  T.eq(ds[2], { prompt = "Go", completion = "ok" })
  local hh = file("hh.jsonl", '{"chosen":"\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c\\n\\nAssistant: good",'
    .. '"rejected":"\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c\\n\\nAssistant: bad"}\n')
  T.eq(pl.data.load(hh, { format = "hh" })[1],
    { prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", chosen = " good", rejected = " bad" })
end)

T.test("data_shared_files", function()
  local dir = T.need_shared() .. "/data/prompts/"
  local ds = pl.data.load(dir .. "sharegpt_format_dummy_conversation.json", { format = "sharegpt" })
  T.eq(#ds, 500)
  local turns = 0
  for _, row in ipairs(ds) do turns = turns + #row.messages end
  T.eq(turns, 2000)
  T.eq(#pl.data.load(dir .. "koala_test_set.jsonl"), 180)
end)

T.test("data_from_checks_and_keeps", function()
  T.raises(function() pl.data.from { { prompt = "a", chosen = "b" } } end, "row 1: has chosen")
  T.raises(function() pl.data.from { prompt = "a" } end, "list of rows")
  T.raises(function() pl.data.from "x" end, "list of rows")
  T.raises(function() pl.data.from { "x" } end, "row 1")
  local ds = pl.data.from { { prompt = "a", completion = "" } }    -- legal to hold, not to train on
  T.eq(#ds, 1)
  T.eq(pl.data.from(ds), ds)
  T.raises(function() ds.x = 1 end, "not changed in place")
end)

T.test("data_columns", function()
  local ds = pl.data.from { { prompt = "p", chosen = "c", rejected = "r", chosen_ids = { 1, 2 }, chosen_finish = "stop" } }
  T.eq(ds:columns { "prompt", completion = "chosen" }[1],
    { prompt = "p", completion = "c", completion_ids = { 1, 2 }, completion_finish = "stop" })
  T.raises(function() ds:columns { "promt" } end, 'did you mean "prompt"')
end)

T.test("data_answers", function()
  T.eq(pl.data.answer({ prompt = "p", completion = "x", finish = "length" }, "completion"),
    { prompt = "p", completion = "x", finish = "length" })
  T.eq(pl.data.answer({ prompt = "p", chosen = "x", chosen_ids = { 4 } }, "chosen"),
    { prompt = "p", completion = { text = "x", ids = { 4 } } })
  T.eq(pl.data.answer({ prompt = "p", rejected = { text = "x", ids = { 4 }, finish = "stop" } }, "rejected").completion.ids, { 4 })
end)

T.test("data_map_filter_slice_split", function()
  local rows = {}
  for i = 1, 10 do rows[i] = { prompt = "p" .. i, completion = "c", n = i } end
  local ds = pl.data.from(rows)
  T.eq(ds:map(function(r) return { text = r.prompt } end)[3], { text = "p3" })
  T.eq(ds:map(function(r) return r.n > 4 and r or nil end).counts, { read = 10, used = 6, dropped = { ["map gave nil"] = 4 } })
  local even = ds:filter(function(r) return r.n % 2 == 0 end, "odd")
  T.eq(even.counts, { read = 10, used = 5, dropped = { odd = 5 } })
  T.eq(ds:slice(2, 3)[1].n, 2)
  T.eq(#ds:slice(2, 3), 2)
  T.eq(ds:slice(-2)[1].n, 9)
  T.eq(#ds:slice(5, 99), 6)
  T.eq(#ds:slice(11), 0)
  local a, b = ds:split(0.3, { seed = 1 })
  T.eq({ #a, #b }, { 3, 7 })
  local seen = {}
  for _, part in ipairs { a, b } do
    for _, r in ipairs(part) do seen[#seen + 1] = r.n end
  end
  table.sort(seen)
  T.eq(seen, { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 })
  T.eq(ds:shuffle(1):hash(), ds:shuffle(1):hash())
  T.ok(ds:shuffle(1):hash() ~= ds:shuffle(2):hash())
  T.eq(ds[1].n, 1)
end)

T.test("data_hash_is_of_the_content", function()
  local a = pl.data.from { { prompt = "a", completion = "b" } }
  T.eq(a:hash(), pl.data.from { { completion = "b", prompt = "a" } }:hash())
  T.ok(a:hash() ~= pl.data.from { { prompt = "a", completion = "c" } }:hash())
end)

T.test("data_save_and_load", function()
  local ds = pl.data.from { { prompt = "é\n\"", completion = " b", ids = { 1, 2 }, x = 0.1 } }
  local path = T.tmpdir() .. "/out.jsonl"
  ds:save(path)
  local again = pl.data.load(path)
  T.eq(again[1], ds[1])
  T.eq(again:hash(), ds:hash())
  T.raises(function() ds:save "/nowhere/x.jsonl" end, "/nowhere")
end)

T.test("data_prints", function()
  local s = tostring(pl.data.from { { prompt = "abcd", completion = "xy" }, { prompt = "ab", completion = { 1 } } })
  T.ok(s:find("Dataset: 2 rows (completion)", 1, true), s)
  T.ok(s:find("prompt      text, 3 bytes on average", 1, true), s)
end)

T.done()
