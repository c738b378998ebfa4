-- Two rows that begin alike are read as two branches of one prompt: the same numbers and
-- gradients as read apart, fewer tokens read.
local T = require "tests.lua.harness"
local pl = require "perilune"
require("perilune.study.progress").quiet(true)

local tiny = pl.load "tests/golden/lm/tied"
local untied = pl.load "tests/golden/lm/untied"

local function row(prompt, answer)
  local ids = table.move(prompt, 1, #prompt, 1, {})
  table.move(answer, 1, #answer, #ids + 1, ids)
  return { ids = ids, start = #prompt + 1 }
end

local P = { 29, 30, 22, 29, 5, 6, 7 }
-- name, first row, second row, tokens read for both (apart: one less than each has)
local CASES = {
  { "two answers", row(P, { 35, 27, 18, 2 }), row(P, { 60, 7, 12, 49, 19, 2 }), 7 + 3 + 5 },
  { "identical answers", row(P, { 8, 9, 2 }), row(P, { 8, 9, 2 }), 7 + 2 + 2 },
  { "the chosen begins the rejected", row(P, { 8, 9 }), row(P, { 8, 9, 10, 2 }), 7 + 1 + 3 },
  { "an answer of one token", row(P, { 2 }), row(P, { 8, 9, 2 }), 7 + 2 },
  { "two answers of one token", row(P, { 2 }), row(P, { 3 }), 7 },
  { "a prompt of one token", row({ 5 }, { 8, 9, 2 }), row({ 5 }, { 10, 2 }), 3 + 2 },
  { "prompts that differ at once", row({ 1, 2, 3, 4, 5 }, { 8, 2 }), row({ 9, 2, 3, 4, 5 }, { 7, 2 }), 6 + 6 },
  { "prompts that differ later", row({ 1, 2, 3, 4, 5, 6 }, { 8, 2 }), row({ 1, 2, 3, 4, 9, 6 }, { 7, 2 }), 4 + 3 + 3 },
  { "a prompt cut on one side", row({ 1, 2, 3, 4, 5 }, { 8, 2 }), row({ 1, 2, 3, 4 }, { 5, 7, 2 }), 4 + 2 + 2 },
  { "a prompt of three", row({ 1, 2, 3 }, { 8, 2 }), row({ 1, 2, 3 }, { 7, 2 }), 4 + 4 },
}

-- Sums, and the gradients of a sum of them in which each row counts differently.
local function run(model, rows, share)
  for _, p in ipairs(model:parameters()) do p.grad = nil end
  local sums = share and model:pair_sums(rows):reshape(#rows) or model:completion_sums(rows)
  local weight = {}
  for i = 1, #rows do weight[i] = i % 2 == 1 and -1 - 0.1 * i or 0.7 + 0.05 * i end
  (sums * pl.tensor(weight)):sum():backward()
  local grads = {}
  for i, p in ipairs(model:parameters()) do grads[i] = p.grad:clone() end
  return sums:tolist(), grads
end

local function check(model, rows, what, tolerance)
  local apart, grads = run(model, rows, false)
  local together, shared_grads = run(model, rows, true)
  T.near(together, apart, tolerance)
  for i, g in ipairs(grads) do
    local off, size = (g - shared_grads[i]):abs():max():item(), g:abs():max():item()
    T.ok(off <= tolerance * math.max(1, size), ("%s: gradient %d is off by %g of %g"):format(what, i, off, size))
  end
end

for _, case in ipairs(CASES) do
  T.test("pair_with_" .. case[1]:gsub(" ", "_"), function()
    local rows = { case[2], case[3] }
    check(tiny, rows, case[1], 2e-5)
    local p = pl.profile(function() tiny:pair_sums(rows) end, { print = false })
    local read
    for _, r in ipairs(p.rows) do read = r.name == "embedding" and r.made // (4 * tiny.config.hidden_size) or read end
    T.eq(read, case[4] + 0.0)
  end)
end

local function all_rows()
  local rows = {}
  for _, case in ipairs(CASES) do
    rows[#rows + 1], rows[#rows + 2] = case[2], case[3]
  end
  return rows
end

T.test("pairs_of_all_kinds_in_one_batch", function()
  check(tiny, all_rows(), "tied", 5e-5)
  check(untied, all_rows(), "untied", 5e-5)
end)

T.test("pairs_with_learned_positions", function()
  local gpt2 = pl.models.new({ model_type = "gpt2", vocab_size = 61, n_positions = 16, n_embd = 16, n_layer = 2, n_head = 2 },
    { seed = 3 })
  check(gpt2, all_rows(), "gpt2", 5e-5)
end)

T.test("pairs_in_pieces_stay_together", function()
  pl.no_grad(function()
    local rows = all_rows()
    local whole, row_of, place, width, mask = tiny.decoder:score(rows, false, 100000, true)
    for _, budget in ipairs { 1, 7, 12, 20, 33 } do
      T.near((tiny.decoder:score(rows, false, budget, true)):tolist(), whole:tolist(), 1e-5)
    end
    local flat, row_of2, place2, width2, mask2 = tiny.decoder:score(rows, false, 100000)
    T.near(whole:tolist(), flat:tolist(), 2e-5)
    for _, two in ipairs { { row_of, row_of2 }, { place, place2 }, { mask, mask2 } } do
      T.eq(two[1]:tolist(), two[2]:tolist())
    end
    T.eq(width, width2)
  end)
end)

T.test("pairs_in_bf16", function()
  local rows = all_rows()
  local exact = tiny:completion_sums(rows):tolist()
  local half = pl.autocast("bf16", tiny.pair_sums, tiny, rows):reshape(#rows):tolist()
  for i, v in ipairs(exact) do T.near(half[i], v, 0.02 * math.abs(v)) end
end)

T.test("pairs_refuse_what_is_none", function()
  local rows = all_rows()
  T.raises(function() tiny:pair_sums { rows[1] } end, "pairs of rows")
  T.raises(function() tiny.decoder:score(rows, true, 100, true) end, "pairs of rows")
end)

T.done()
