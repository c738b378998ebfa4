-- pl.profile: what is counted, once each, and that off means off.
local T = require "tests.lua.harness"
local pl = require "perilune"
local core = require "perilune.core"
local base = core.base

local quiet = { print = false }

local function by_name(profile)
  local rows = {}
  for _, row in ipairs(profile.rows) do rows[row.name] = row end
  return rows
end

local function train()
  local x = pl.randn(8, 16, { seed = 1 }):requires_grad_()
  local w = pl.randn(16, 4, { seed = 2 }):requires_grad_()
  x:matmul(w):exp():sum():backward()
end

T.test("ops are counted forward and backward, with their work and what they make", function()
  local rows = by_name((pl.profile(function() train() train() end, quiet)))
  local m = rows.matmul
  T.eq(m.calls, 2)
  T.eq(m.backward_calls, 2)
  T.eq(m.flop, 2 * 3 * 2.0 * 8 * 16 * 4) -- forward, and backward for each input
  T.eq(m.made, 2 * 4.0 * (8 * 4 + 8 * 16 + 16 * 4))
  T.ok(m.forward > 0 and m.backward > 0 and m.gflops > 0)
  T.eq(rows.exp.calls, 2)
  T.eq(rows.exp.flop, 0.0)
  T.eq(rows.exp.gflops, nil)
end)

T.test("the results of f follow, nils too, and the rows add up to the time", function()
  local p, a, b, c = pl.profile(function()
    train()
    return 1, nil, 3
  end, quiet)
  T.eq({ a, b == nil, c }, { 1, true, 3 })
  local inside, share = 0, 0
  for i, row in ipairs(p.rows) do
    inside, share = inside + row.forward + row.backward, share + row.share
    T.ok(i == 1 or row.share <= p.rows[i - 1].share, "sorted")
  end
  T.near(inside + p.other, p.seconds, 1e-9)
  T.ok(share <= 1)
end)

T.test("a training step: the head, the update, and no more time in rows than passed", function()
  local model = pl.models.new({ vocab_size = 32, hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1,
    num_attention_heads = 2, max_position_embeddings = 32 }, { seed = 1 })
  local batch = { { ids = { 1, 2, 3, 4, 5, 6 }, start = 2, n_prompt = 1 } }
  local opt = pl.optim.adamw(model:parameters(), { lr = 1e-3 })
  local p = pl.profile(function()
    local loss = -model:completion_logprobs(batch):mean()
    loss:backward()
    opt:step()
  end, quiet)
  local sum = 0
  for _, row in ipairs(p.rows) do sum = sum + row.forward + row.backward end
  T.ok(sum <= p.seconds, "more time in rows than passed")
  local rows = by_name(p)
  T.eq(rows.token_logprob.flop, 3 * 2.0 * 5 * 32 * 16)
  T.ok(rows["(adamw)"].calls == 1 and rows["(adamw)"].gbs > 0)
  T.ok(rows["(adamw)"].bytes == 7 * 4.0 * model:num_parameters())
end)

T.test("generation has rows of its own: reading prompts, drawing tokens", function()
  local model = pl.models.new({ vocab_size = 32, hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1,
    num_attention_heads = 2, max_position_embeddings = 32 }, { seed = 1 })
  local rows = by_name((pl.profile(function() model:generate({ { 1, 2 } }, { max_tokens = 4, seed = 1 }) end, quiet)))
  T.ok(rows["(generate): prompts"].forward > 0)
  T.eq(rows["(generate): tokens"].calls, 4)
end)

T.test("a profile inside a profile sees its own part; afterwards counting is off", function()
  local inner
  local outer = pl.profile(function()
    train()
    inner = pl.profile(train, quiet)
  end, quiet)
  T.eq(by_name(inner).matmul.calls, 1)
  T.eq(by_name(outer).matmul.calls, 2)
  T.eq(core.profile.rows(), nil)
end)

T.test("an error in f comes through and switches counting off", function()
  T.raises(function() pl.profile(function() pl.zeros(2):matmul(pl.zeros(3)) end, quiet) end, "matmul")
  T.eq(core.profile.rows(), nil)
  T.raises(function() pl.profile(3) end, "wants a function")
  T.raises(function() pl.profile(train, { prnt = true }) end, 'did you mean "print"')
end)

T.test("results are the same bytes with and without", function()
  local function run()
    local x = pl.randn(33, 17, { seed = 5 }):requires_grad_()
    x:matmul(x:transpose(1, 2)):softmax(-1):log():sum():backward()
    return x.grad
  end
  local _, with = pl.profile(run, quiet)
  T.ok(core.lm.equal(run(), with))
end)

T.test("the table names its columns; the JSON can be read back", function()
  local p = pl.profile(train, quiet)
  local table_text = p:text()
  for _, word in ipairs { "op", "calls", "forward ms", "backward ms", "share", "GFLOP/s", "outside", "all" } do
    T.ok(table_text:find(word, 1, true), word)
  end
  T.eq(tostring(p), table_text)
  local read = base.json_decode(p:json())
  T.eq(#read.rows, #p.rows)
  T.eq(read.rows[1].name, p.rows[1].name)
end)

T.done()
