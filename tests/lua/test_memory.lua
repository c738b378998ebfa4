-- A training step that runs out of memory, anywhere: a clear error, the weights and the
-- optimizer as they were, nothing leaked, and the step taken again gives the same bytes.
local T = require "tests.lua.harness"
local core = require "perilune.core"
local pl = require "perilune"

local QUICK = os.getenv "PL_TEST_QUICK" == "1"

local function fresh()
  local m = pl.models.new({
    vocab_size = 61, hidden_size = 16, intermediate_size = 24, num_hidden_layers = 2, num_attention_heads = 2,
    max_position_embeddings = 32, tie_word_embeddings = true,
  }, { seed = 3 })
  return m, pl.optim.adamw(m:parameters(), { lr = 1e-2 })
end

local ROWS = { { ids = { 1, 5, 9, 60, 2, 7 }, start = 2 }, { ids = { 4, 4, 8 }, start = 3 } }

local function step(m, opt)
  opt:zero_grad()
  local loss = -m:completion_logprobs(ROWS):mean()
  loss:backward()
  opt:step()
  return loss:item()
end

T.test("a_step_that_runs_out_of_memory_leaves_the_model_unharmed", function()
  local twin, twin_opt = fresh()
  step(twin, twin_opt)
  local want = twin:hash()
  local m, opt = fresh()
  local before = m:hash()
  collectgarbage()
  collectgarbage()
  local live, failed, n = pl.memory().live, 0, 1
  while true do
    core.base.fail_at(n)
    local ok, message = pcall(step, m, opt)
    core.base.fail_at(0)
    if ok then break end
    failed = failed + 1
    T.ok(tostring(message):find "memory", message)
    T.eq(m:hash(), before)
    n = n + (QUICK and 7 or 1)
  end
  T.ok(failed > (QUICK and 5 or 20), failed)
  T.eq(m:hash(), want)
  opt:zero_grad()
  collectgarbage()
  collectgarbage()
  local moments = 2 * 4 * m:num_parameters()
  T.ok(pl.memory().live <= live + moments + 16384, ("%d bytes more"):format(pl.memory().live - live))
end)

-- Bytes in use after `f`, garbage left out.
local function live_after(f)
  f()
  collectgarbage()
  collectgarbage()
  return pl.memory().live
end

T.test("what_sampling_packed_is_gone_while_training", function()
  local function model()
    return pl.models.new({
      vocab_size = 4000, hidden_size = 32, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 1,
      max_position_embeddings = 32, tie_word_embeddings = true,
    }, { seed = 3 })
  end
  local function sample(m, dtype) m:generate({ { 1, 2, 3 } }, { max_tokens = 2, dtype = dtype, seed = 1 }) end
  local m = model()
  local size = 4 * m:num_parameters()
  local before = live_after(function() end)
  local packed = live_after(function() sample(m, "f32") end)
  T.ok(packed - before > size * 0.9, packed - before)

  local rows = { { prompt = { 1, 5 }, completion = { 9, 60 } }, { prompt = { 4 }, completion = { 4, 8 } } }
  local pairs_of = { { prompt = { 1, 5 }, chosen = { 9, 60 }, rejected = { 9 } } }
  for _, case in ipairs {
    { "sft", rows, {} }, { "sft", rows, { in_place = true } }, { "preference", pairs_of, {} },
  } do
    local name, data, o = table.unpack(case)
    o.max_steps = 3
    local function most(sampled)
      local source, worst = model(), 0
      if sampled then sample(source, "f32") end
      o.on_step = function(_, policy)
        worst = math.max(worst, live_after(function() end))
        if sampled then sample(policy, "f32") end
      end
      pl.train[name](source, data, o)
      return worst
    end
    local plain, after = most(false), most(true)
    T.ok(after < plain + size * 0.1, ("%s: %d bytes more of %d"):format(name, after - plain, size))
  end

  -- the next generation packs again; one that is running keeps what it reads
  local again = m:generate({ { 1, 2, 3 } }, { max_tokens = 4, temperature = 0 })[1]
  m.decoder:release_pack()
  T.eq(m:generate({ { 1, 2, 3 } }, { max_tokens = 4, temperature = 0 })[1].ids, again.ids)
  local g <close> = core.lm.generator(m.decoder, 1, {}, "f32")
  local held = live_after(function() end)
  m.decoder:release_pack()
  T.ok(live_after(function() end) > held - size * 0.1)
  g:close()
  T.ok(live_after(function() m.decoder:release_pack() end) < held - size * 0.9)
end)

T.test("a_steady_step_asks_the_system_for_nothing", function()
  if QUICK then return end -- under the sanitizers nothing is kept, so that every use after free is seen
  local m = pl.models.new({
    vocab_size = 3000, hidden_size = 64, intermediate_size = 160, num_hidden_layers = 3, num_attention_heads = 2,
    max_position_embeddings = 128, tie_word_embeddings = true,
  }, { seed = 3 })
  local opt = pl.optim.adamw(m:parameters(), { lr = 1e-3 })
  local rows = {}
  for r = 1, 8 do
    rows[r] = { ids = {}, start = 2 }
    for i = 1, 128 do rows[r].ids[i] = (r * 7919 + i * i * 31) % 3000 end
  end
  local function step()
    opt:zero_grad()
    local loss <close> = -m:completion_logprobs(rows):mean()
    loss:backward()
    opt:step()
  end
  for _, precision in ipairs { "f32", "bf16" } do
    pl.autocast(precision, function()
      for _ = 1, 3 do step() end
      collectgarbage()
      local before = pl.memory().fresh
      for _ = 1, 3 do step() end
      T.eq(pl.memory().fresh - before, 0)
    end)
  end
end)

T.done()
