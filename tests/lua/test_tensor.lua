-- The tensor surface in Lua: creation, indexing, arithmetic, gradients, errors.
local T = require "tests.lua.harness"
local pl = require "perilune"
local core = require "perilune.core"

T.test("creation", function()
  T.eq(pl.zeros(2, 3):tolist(), { { 0, 0, 0 }, { 0, 0, 0 } })
  T.eq(pl.zeros({ 2, 1 }):shape(), { 2, 1 })
  T.eq(pl.ones(2, { dtype = "i64" }):tolist(), { 1, 1 })
  T.eq(pl.full(2, 2, 0.5):tolist(), { { 0.5, 0.5 }, { 0.5, 0.5 } })
  T.eq(pl.full({ 3 }, 7):tolist(), { 7, 7, 7 })
  T.eq(pl.arange(3):tolist(), { 0, 1, 2 })
  T.eq(pl.arange(3):dtype(), "i64")
  T.eq(pl.arange(1, 2, 0.25):tolist(), { 1, 1.25, 1.5, 1.75 })
  T.eq(pl.arange(5, 0, -2):tolist(), { 5, 3, 1 })
  T.eq(pl.linspace(0, 1, 3):tolist(), { 0, 0.5, 1 })
  T.eq(pl.eye(2, 3):tolist(), { { 1, 0, 0 }, { 0, 1, 0 } })
  T.eq(pl.tensor({ true, false }):dtype(), "bool")
  T.eq(pl.tensor(3):dim(), 0)
  T.eq(pl.tensor({}):shape(), { 0 })
  T.eq(pl.tensor({ { 1 }, { 2 } }, { dtype = "f64" }):dtype(), "f64")
  T.eq(pl.tensor({ (1 << 60) + 1 }, { dtype = "i64" })[1]:item(), (1 << 60) + 1)
  T.eq(pl.zeros():item(), 0)
end)

T.test("random numbers are a function of the seed", function()
  T.ok(pl.randn(5000, { seed = 7 }):equal(pl.randn(5000, { seed = 7 })))
  T.ok(not pl.randn(50, { seed = 7 }):equal(pl.randn(50, { seed = 8 })))
  local n = pl.threads()
  pl.threads(1)
  local one = pl.rand(100000, { seed = 3 })
  pl.threads(4)
  local four = pl.rand(100000, { seed = 3 })
  pl.threads(n)
  T.ok(one:equal(four))
  T.ok(one:min():item() >= 0 and one:max():item() < 1)
  T.near(one:mean():item(), 0.5, 0.01)
  local g = pl.randn(100000, { seed = 3 })
  T.near(g:mean():item(), 0, 0.02)
  T.near(g:std():item(), 1, 0.02)
  pl.seed(5)
  local a, b = pl.randn(4), pl.randn(4)
  pl.seed(5)
  T.ok(pl.randn(4):equal(a) and pl.randn(4):equal(b) and not a:equal(b))
  local p = pl.randperm(100, { seed = 1 }):tolist()
  table.sort(p)
  for i = 1, 100 do T.eq(p[i], i) end
  local r = pl.randint(3, 6, 1000, { seed = 1 })
  T.eq(r:min():item(), 3)
  T.eq(r:max():item(), 5)
end)

T.test("indexing counts from 1 and from the end", function()
  local x = pl.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
  T.eq(x[1][3]:item(), 3)
  T.eq(x[-1][-3]:item(), 4)
  T.eq(#x, 2)
  T.eq(x[{ {}, { 2, 3 } }]:tolist(), { { 2, 3 }, { 5, 6 } })
  T.eq(x[{ 2, { 1, 2 } }]:tolist(), { 4, 5 })
  T.eq(x[{ {}, -1 }]:tolist(), { 3, 6 })
  T.eq(x:slice(2, 2, -1):tolist(), { { 2, 3 }, { 5, 6 } })
  T.eq(x:slice(2, 3):tolist(), { { 3 }, { 6 } })
  T.eq(x:narrow(2, 1, 2):tolist(), { { 1, 2 }, { 4, 5 } })
  T.eq(x[pl.tensor({ 2, 1, 2 }, { dtype = "i64" })]:tolist(), { { 4, 5, 6 }, { 1, 2, 3 }, { 4, 5, 6 } })
  T.raises(function() return x[3] end, "index 3 is outside 1..2")
  T.raises(function() return x[0] end, "index 0")
  T.raises(function() return x[1.5] end, "integer")
  T.raises(function() return x[{ 1, 1, 1 }] end, "3 indices for 2 dims")
  T.raises(function() return x[{ { 2, 5 } }] end, "does not lie in 1..2")
  T.raises(function() return x[1][1][1] end, "0%-dim")
end)

T.test("assignment through an index", function()
  local x = pl.zeros(2, 3)
  x[1] = 7
  x[{ 2, { 1, 2 } }] = pl.tensor { 1, 2 }
  T.eq(x:tolist(), { { 7, 7, 7 }, { 1, 2, 0 } })
  x[2] = x[1]
  T.eq(x[2]:tolist(), { 7, 7, 7 })
  local y = pl.arange(5)
  y[{ { 2, 5 } }] = y[{ { 1, 4 } }] -- overlapping: read first
  T.eq(y:tolist(), { 0, 0, 1, 2, 3 })
  local w = pl.zeros(2):requires_grad_()
  T.raises(function() w[1] = 1 end, "leaf")
  pl.no_grad(function() w[1] = 1 end)
  T.eq(w:tolist(), { 1, 0 })
  T.raises(function() x[1] = "a" end, "tensor")
  T.raises(function() x[1] = pl.zeros(2) end, "%[2%]")
end)

T.test("arithmetic with numbers keeps the dtype", function()
  local x = pl.tensor { 1, 2 }
  T.eq((2 * x + 1):tolist(), { 3, 5 })
  T.eq((1 - x):tolist(), { 0, -1 })
  T.eq((x / 2):tolist(), { 0.5, 1 })
  T.eq((2 ^ x):tolist(), { 2, 4 })
  T.eq((-x):tolist(), { -1, -2 })
  T.eq((pl.arange(3) + 1):dtype(), "i64")
  T.eq((pl.arange(3) + 0.5):dtype(), "f32")
  T.eq((pl.zeros(2, { dtype = "f64" }) + 1):dtype(), "f64")
  T.raises(function() return x + "1" end, "add: argument 2")
  T.raises(function() return x + {} end, "add: argument 2 .- table")
  T.raises(function() return x // 2 end, "")
end)

T.test("== asks for identity, eq compares values", function()
  local x = pl.ones(2)
  local y = pl.ones(2)
  T.ok(x == x and x ~= y)
  T.eq(x:eq(y):tolist(), { true, true })
  local w = pl.ones(1):requires_grad_()
  w:sum():backward()
  T.ok(w.grad == w.grad)
end)

T.test("positions count from 1 in and out", function()
  local x = pl.tensor { 3, 9, 4 }
  T.eq(x:argmax():item(), 2)
  local v, at = x:topk(2)
  T.eq(v:tolist(), { 9, 4 })
  T.eq(at:tolist(), { 2, 3 })
  local _, order = x:sort()
  T.eq(order:tolist(), { 1, 3, 2 })
  T.eq(x:index_select(1, { 3, 1 }):tolist(), { 4, 3 })
  T.eq(x:index_select(1, { -1 }):tolist(), { 4 })
  T.raises(function() return x:index_select(1, { 0 }) end, "counts from 1")
  T.raises(function() return x:index_select(1, { 4 }) end, "4")
  T.raises(function() return x:index_select(0, { 1 }) end, "dim counts from 1")
  local m, where = pl.tensor({ { 1, 5 }, { 7, 2 } }):max(2)
  T.eq(m:tolist(), { 5, 7 })
  T.eq(where:tolist(), { 2, 1 })
  T.eq(pl.embedding(pl.tensor { { 1 }, { 2 } }, { 0, 1 }):tolist(), { { 1 }, { 2 } })
end)

T.test("gradients", function()
  local w = pl.tensor({ 1, 2 }):requires_grad_()
  local loss = (w * w):sum()
  loss:backward()
  T.eq(w.grad:tolist(), { 2, 4 })
  ;(w * 3):sum():backward()
  T.eq(w.grad:tolist(), { 5, 7 })
  w.grad = nil
  T.eq(w.grad, nil)
  w.grad = pl.tensor { 1, 1 }
  w:zero_grad()
  T.eq(w.grad, nil)
  T.raises(function() loss:backward() end, "already used")
  T.raises(function() (w * 2):backward() end, "backward")
  local y = w * 2
  y:backward(pl.tensor { 1, 10 })
  T.eq(w.grad:tolist(), { 2, 20 })
  T.ok(not (w:detach() * 2).requires_grad)
  T.ok(not pl.no_grad(function() return w * 2 end).requires_grad)
  T.ok(pl.grad_enabled())
  T.raises(function() pl.no_grad(function() error "inside" end) end, "inside")
  T.ok(pl.grad_enabled(), "an error must not leave recording off")
  T.raises(function() y:requires_grad_() end, "leaves")
  T.raises(function() pl.arange(3):requires_grad_() end, "i64")
end)

T.test("autocast_multiplies_in_bf16_and_ends_with_the_call", function()
  local x = pl.tensor { { 1 + 2 ^ -10, 1 } } -- the first rounds to 1 in bf16
  local w = pl.tensor({ { 1, 2 ^ -10 } }):requires_grad_()
  local exact, half = 1 + 2 ^ -9, 1 + 2 ^ -10
  T.eq(pl.linear(x, w):item(), exact)
  local y = pl.autocast("bf16", function(...)
    T.eq(select("#", ...), 2)
    T.eq(pl.autocast("f32", pl.linear, x, w):item(), exact)
    T.eq(pl.linear(x:to "f64", w):item(), exact, "f64 is never rounded")
    return pl.linear(x, w)
  end, 1, 2)
  T.eq(y:item(), half)
  T.eq(y:dtype(), "f32")
  y:backward(pl.tensor { { 1 + 2 ^ -10 } }) -- outside: follows the forward pass
  T.eq(w.grad:tolist(), { { 1, 1 } })
  T.eq(pl.linear(x, w):item(), exact, "off again")
  T.raises(function() pl.autocast("bf16", function() error "inside" end) end, "inside")
  T.eq(pl.linear(x, w):item(), exact, "an error must not leave it on")
  T.raises(function() pl.autocast("f16", print) end, "bf16")
  T.raises(function() pl.autocast("bf16", 3) end, "function")
  T.ok(not pl.no_grad(function() return pl.autocast("bf16", pl.linear, x, w) end).requires_grad)
end)

T.test("gradcheck accepts right gradients and names wrong ones", function()
  T.ok(pl.gradcheck(function(a, b) return (a:matmul(b)):softmax(-1):log():sum() end,
    pl.randn(3, 4, { seed = 1 }), pl.randn(4, 5, { seed = 2 })))
  T.raises(function()
    -- detach hides one path: the gradient is half of what it should be
    pl.gradcheck(function(a) return (a * a:detach()):sum() end, pl.randn(2, 2, { seed = 1 }))
  end, "gradcheck: input 1, element %[1%]%[1%]")
  T.raises(function() pl.gradcheck(function(a) return a:detach():sum() end, pl.ones(1)) end, "recorded")
  T.raises(function() pl.gradcheck(pl.exp, 3) end, "input 1 must be a tensor")
  T.raises(function() pl.gradcheck(pl.exp, pl.ones(1), { esp = 1 }) end, 'did you mean "eps"')
end)

T.test("in place", function()
  local x = pl.tensor { 1, 2 }
  local y = x
  x:add_(1):mul_(2):sub_(pl.ones(2)):div_(1)
  T.eq(y:tolist(), { 3, 5 })
  x:fill_(4)
  x:zero_()
  T.eq(x:tolist(), { 0, 0 })
  x:copy_(pl.tensor { 8, 9 })
  T.eq(x:tolist(), { 8, 9 })
  T.raises(function() x:add_(pl.ones(2, 2)) end, "stays")
  T.raises(function() pl.arange(2):add_(0.5) end, "i64")
  local w = pl.ones(2):requires_grad_()
  T.raises(function() w:add_(1) end, "no_grad")
  local z = w * 2
  local loss = (z * z):sum()
  local before = z:version()
  pl.no_grad(function() z:detach():add_(1) end)
  T.ok(z:version() > before)
  T.raises(function() loss:backward() end, "modified in place")
end)

T.test("equal is bitwise, allclose is not", function()
  local x = pl.tensor { 1, 2 }
  T.ok(x:equal(pl.tensor { 1, 2 }))
  T.ok(not x:equal(pl.tensor({ 1, 2 }, { dtype = "f64" })))
  T.ok(not x:equal(pl.tensor { { 1, 2 } }))
  T.ok(x:allclose(x + 1e-7))
  T.ok(not x:allclose(x + 1e-2))
  T.ok(x:allclose(x + 1e-2, { atol = 0.1 }))
  T.ok(not pl.tensor({ 0 / 0 }):allclose(pl.tensor { 0 / 0 }))
  T.ok(pl.tensor({ 1 / 0 }):allclose(pl.tensor { 1 / 0 }))
  T.raises(function() x:allclose(x, { rtoll = 1 }) end, 'did you mean "rtol"')
end)

T.test("values come out as they are", function()
  T.eq(math.type(pl.arange(3)[2]:item()), "integer")
  T.eq(pl.tensor({ true }):item(), true)
  T.raises(function() return pl.zeros(2):item() end, "one element, got %[2%]")
  T.eq(pl.zeros(2, 0):tolist(), { {}, {} })
end)

T.test("names, printing, release", function()
  local x = pl.zeros(2)
  x.name = "w"
  T.eq(x.name, "w")
  T.raises(function() x.name = 3 end, "string")
  T.raises(function() x.nmae = 3 end, "no field")
  T.raises(function() return x.matmull end, 'did you mean "matmul"')
  T.ok(tostring(pl.ones(2, 3)):find "f32 %[2, 3%]")
  x:free()
  x:free()
  T.eq(tostring(x), "tensor (freed)")
  T.raises(function() return x + 1 end, "freed")
  T.raises(function() return x[1] end, "freed")
  do
    local y <close> = pl.zeros(10)
  end
end)

T.test("errors name the function, the argument and both shapes", function()
  local x = pl.zeros(2, 3)
  T.raises(function() return x:matmul(x) end, "matmul.*2.*3")
  T.raises(function() return x + pl.zeros(4) end, "add.*%[2, 3%].*%[4%]")
  T.raises(function() return pl.randn(3, { sede = 1 }) end, 'randn: unknown option "sede" %(did you mean "seed"%?%)')
  T.raises(function() return pl.zeros(2, { dtype = "float32" }) end, "f32")
  T.raises(function() return pl.zeros(-1) end, "zeros")
  T.raises(function() return pl.zeros(1 << 40, 1 << 40) end, "zeros")
  T.raises(function() return pl.zeros(1.5) end, "integer")
  T.raises(function() return pl.tensor { { 1, 2 }, { 3 } } end, "%[2%] has 1 values")
  T.raises(function() return pl.tensor { 1, "x" } end, "%[2%] must be a number, got string")
  T.raises(function() return pl.tensor(nil) end, "nil")
  T.raises(function() return x:sum(1, 2, 3, 4) end, "sum")
  T.raises(function() return pl.zeroes(1) end, 'did you mean "zeros"')
  local _, err = pcall(function() return x:matmul(x) end)
  T.ok(err:find "test_tensor.lua:%d+:", err)
end)

-- Every function and method with wrong things in every position: it may raise, it must not crash.
local function torture(quick)
  local freed = pl.zeros(2)
  freed:free()
  local shared = pl.tensor { { 1, 2 }, { 3, 4 } }
  local values = {
    function() return nil end, function() return 0 / 0 end, function() return 1e300 end,
    function() return math.maxinteger end, function() return math.mininteger end, function() return 0 end,
    function() return -1 end, function() return "x" end, function() return true end, function() return {} end,
    function() return { 1, 2 } end, function() return { {} } end, function() return print end,
    function() return freed end, function() return shared end, function() return pl.zeros(0) end,
    function() return pl.tensor(0 / 0) end, function() return pl.arange(2) end, function() return core end,
    function() return pl.tensor({ true, false }) end, function() return { shared, shared } end,
    function() return coroutine.create(print) end, function() return { seed = 1 } end,
  }
  local skip = { free = true, seed = true, no_grad = true, autocast = true, op_rows = true }
  local calls, raised = 0, 0
  local limit = core.base.memory_limit
  limit(1 << 30)
  for _, row in ipairs(core.tensor.op_rows()) do
    if not skip[row.name] and (row.is_function or row.is_method) then
      local f = core.tensor[row.name] or pl.zeros(1)[row.name]
      local slots = select(2, (row.params .. ","):gsub(",", ","))
      for position = 1, math.min(slots + 1, 5) do
        for _, wrong in ipairs(values) do
          for _, others in ipairs(quick and { shared } or { shared, 1, freed }) do
            local args = {}
            for i = 1, slots do args[i] = others end
            args[position] = wrong()
            calls = calls + 1
            local ok, err = pcall(f, table.unpack(args, 1, math.max(slots, position)))
            if not ok then
              raised = raised + 1
              T.ok(type(err) == "string" and #err > 0)
            end
          end
        end
      end
    end
  end
  limit(0)
  return calls, raised
end

T.test("argument torture: wrong things in every position raise and never crash", function()
  local calls, raised = torture(os.getenv "PL_TEST_QUICK" ~= nil)
  T.ok(calls > 5000 and raised > calls // 2, ("%d calls, %d raised"):format(calls, raised))
  T.eq((pl.ones(2) + 1):tolist(), { 2, 2 })
end)

T.test("memory: dead tensors are collected before they pile up", function()
  collectgarbage()
  local base = pl.memory().live
  local peak = 0
  for _ = 1, 400 do
    pl.zeros(1 << 18) -- 1 MB each
    peak = math.max(peak, pl.memory().live - base)
  end
  T.ok(peak < 100e6, ("%.0f MB"):format(peak / 1e6))
end)

T.test("when an allocation fails the error says so and nothing leaks", function()
  local x = pl.randn(64, 64, { seed = 1 }):requires_grad_()
  local function work()
    local y = (x:matmul(x):tanh() * 2):sum()
    y:backward()
    x.grad = nil
    return y:item()
  end
  local good = work()
  collectgarbage()
  collectgarbage()
  local live = pl.memory().live
  local failures = 0
  for n = 1, 60 do
    core.base.fail_at(n)
    local ok, result = pcall(work)
    core.base.fail_at(0)
    x.grad = nil
    if ok then
      T.eq(result, good)
    else
      failures = failures + 1
      T.ok(tostring(result):find "memory", result)
    end
  end
  collectgarbage()
  collectgarbage()
  T.ok(failures > 0)
  T.ok(pl.memory().live <= live + 4096, ("%d bytes more"):format(pl.memory().live - live))
end)

T.test("a limit on memory is an error that can be caught", function()
  core.base.memory_limit(pl.memory().live + (8 << 20))
  T.raises(function()
    local keep = {}
    for i = 1, 100 do keep[i] = pl.zeros(1 << 18) end
  end, "zeros: .*memory")
  core.base.memory_limit(0)
  T.eq(pl.ones(1):item(), 1)
end)

T.done()
