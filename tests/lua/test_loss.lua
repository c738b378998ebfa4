-- Preference losses: unit values, finite differences, what each reads.
local T = require "tests.lua.harness"
local pl = require "perilune"

-- Value where policy equals reference (T0) and at s_w = 2, s_l = -3, n_w = 4, n_l = 2 (T1), both at
-- beta = .1, epsilon = .1 (EXO .001). From a table computed outside this program.
local ROWS = {
  { "dpo", t0 = 0.693147, t1 = 0.474077 },
  { "cdpo", t0 = 0.693147, t1 = 0.524077 },
  { "robust", t0 = 0.693147, t1 = 0.411577 },
  { "robust_eps", t0 = 6.931472, t1 = 5.240770 },
  { "hinge", t0 = 1, t1 = 0.5 },
  { "ipo", t0 = 25, t1 = 9 },
  { "ipo_sum", t0 = 25, t1 = 0 },
  { "sigmoid_norm", t0 = 0.693147, t1 = 0.598139 },
  { "exo_pair", t0 = 2.761231, t1 = 1.945734, o = { label_smoothing = 0.001 } },
  { "nca_pair", t0 = 1.386294, t1 = 1.274386 },
  { "bco_pair", t0 = 1.386294, t1 = 1.152494 },
  { "sppo_hard", t0 = 50, t1 = 13 },
  { "apo_zero", t0 = 1, t1 = 0.875723 },
  { "apo_down", t0 = 1, t1 = 0.927375 },
  { "aot", t0 = 0.693147, o = { label_smoothing = 0.1 } },
  { "aot_unpaired", t0 = 0.693147, o = { label_smoothing = 0.1 } },
  { "discopop", t0 = 0.846574, t1 = 0.606525 },
  { "dpop", t0 = 0.693147, t1 = 0.474077 },
}

local function t(...)
  return pl.tensor { ... }
end

-- Pairs with given log-ratios on top of some reference.
local function at(sw, sl)
  return {
    chosen_logps = t(-7 + sw, -4 + sw), rejected_logps = t(-5 + sl, -9 + sl),
    ref_chosen_logps = t(-7, -4), ref_rejected_logps = t(-5, -9),
    chosen_tokens = t(4, 4), rejected_tokens = t(2, 2),
  }
end

local function options(row)
  local o = { beta = 0.1 }
  local def = pl.loss.find(row[1])
  if def.options.label_smoothing then o.label_smoothing = 0.1 end
  for k, v in pairs(row.o or {}) do o[k] = v end
  return o
end

for _, row in ipairs(ROWS) do
  T.test("loss_" .. row[1] .. "_unit_values", function()
    local o = options(row)
    local def = pl.loss[row[1]]
    T.near(def(at(0, 0), o):tolist(), { row.t0, row.t0 }, 2e-6 * math.max(1, row.t0), "T0")
    T.near(def.t0(require("perilune.options").resolve("x", def.options, o)), row.t0, 1e-6, "def.t0")
    if row.t1 then
      T.near(def(at(2, -3), o):tolist(), { row.t1, row.t1 }, 3e-6, "T1")
    end
  end)
end

T.test("loss_every_reference_loss_is_in_the_table", function()
  local seen = {}
  for _, row in ipairs(ROWS) do seen[row[1]] = true end
  for _, name in ipairs(pl.loss.names()) do
    T.eq(seen[name] or false, pl.loss.find(name).t0 ~= nil, name)
  end
end)

T.test("loss_torchtune_values", function()
  for i, delta in ipairs { 0, 10, 20 } do
    T.near(pl.loss.dpo(at(delta, 0), {}):tolist()[1], ({ 0.693147, 0.313262, 0.126928 })[i], 1e-6)
    T.near(pl.loss.hinge(at(delta, 0), {}):tolist()[1], ({ 1, 0, 0 })[i], 1e-6)
  end
end)

local function answers(aw, al)
  return { chosen_logps = t(aw * 4, aw * 4), rejected_logps = t(al * 2, al * 2), chosen_tokens = t(4, 4),
    rejected_tokens = t(2, 2) }
end

T.test("loss_without_reference_values", function()
  T.near(pl.loss.simpo(answers(-0.7, -0.7), {}):tolist()[1], 0.974077, 1e-6)
  T.near(pl.loss.simpo(answers(-0.5, -1), { gamma = 0.5, beta = 2 }):tolist()[1], 0.474077, 1e-6)
  T.near(pl.loss.cpo(answers(-0.5, -1), {}):tolist()[1], math.log(2) + 0.5, 1e-6)       -- L equal: -2, -2
  local orpo = pl.loss.orpo(answers(-0.5, -1), { beta = 1 }):tolist()[1]
  T.near(orpo - 0.5, 0.320300, 2e-6)
  T.near(pl.loss.orpo(answers(-0.7, -0.7), { beta = 0.1 }):tolist()[1], 0.7 + 0.1 * math.log(2), 1e-6)
end)

T.test("loss_importance_correction", function()
  T.near(pl.loss.dpo(at(2, -3), { importance_correction = true }):tolist()[1], 0.023603, 1e-6)
end)

T.test("loss_dpop_punishes_a_falling_chosen_answer", function()
  local x = 0.1 * ((-2 - -3) - 5 * 2)
  T.near(pl.loss.dpop(at(-2, -3), { lambda = 5 }):tolist()[1], math.log(1 + math.exp(-x)), 1e-5)
end)

T.test("loss_aot_sorts_the_batch", function()
  local p = at(0, 0)
  p.chosen_logps, p.rejected_logps = t(-1, -9), t(-5, -5)         -- differences 4, -4; reference -2, 5
  local got = pl.loss.aot(p, {}):tolist()
  T.near(got, { math.log(1 + math.exp(0.1 * 2)), math.log(1 + math.exp(0.1 * 1)) }, 1e-6)
end)

-- Against central differences in f64, at a point that is no corner of any loss.
for _, name in ipairs(pl.loss.names()) do
  T.test("loss_" .. name .. "_gradient", function()
    local def = pl.loss[name]
    local o = def.options.beta and { beta = 0.3 } or {}
    local function value(w, l)
      return def({
        chosen_logps = w, rejected_logps = l,
        ref_chosen_logps = pl.tensor({ -7, -4, -3.3 }, { dtype = "f64" }),
        ref_rejected_logps = pl.tensor({ -5, -9, -2.1 }, { dtype = "f64" }),
        chosen_tokens = pl.tensor({ 4, 2, 7 }, { dtype = "f64" }),
        rejected_tokens = pl.tensor({ 2, 5, 3 }, { dtype = "f64" }),
      }, o):sum()
    end
    local w0, l0 = { -6.2, -4.9, -3.1 }, { -5.4, -8.3, -2.9 }
    local w = pl.tensor(w0, { dtype = "f64" }):requires_grad_()
    local l = pl.tensor(l0, { dtype = "f64" }):requires_grad_()
    value(w, l):backward()
    local largest = 0
    for side, list in ipairs { w0, l0 } do
      for i = 1, 3 do
        local h = 1e-5
        local function moved(d)
          local a, b = { table.unpack(w0) }, { table.unpack(l0) };
          (side == 1 and a or b)[i] = list[i] + d
          return value(pl.tensor(a, { dtype = "f64" }), pl.tensor(b, { dtype = "f64" })):item()
        end
        local want = (moved(h) - moved(-h)) / (2 * h)
        local got = (side == 1 and w or l).grad:tolist()[i]
        T.near(got, want, 1e-6 * math.max(1, math.abs(want)), ("side %d, pair %d"):format(side, i))
        largest = math.max(largest, math.abs(got))
      end
    end
    T.ok(largest > 1e-3, "no gradient reached the log-probabilities")
  end)
end

T.test("loss_gradient_facts", function()
  local function slope(name, delta)
    local p = at(0, 0)
    p.chosen_logps = t(-7 + delta, -4 + delta):requires_grad_()
    local w = p.chosen_logps
    pl.loss[name](p, {}):sum():backward()
    return w.grad:tolist()[1]
  end
  T.near(slope("dpo", 0), -0.05, 1e-7)
  T.near(slope("hinge", 0), -0.1, 1e-7)
  T.near(slope("hinge", 11), 0, 1e-7)
  T.near(slope("ipo_sum", 0), -10, 1e-4)
end)

T.test("loss_names_and_errors", function()
  T.eq(pl.loss.find("sigmoid").name, "dpo")
  T.raises(function() pl.loss.find "dop" end, 'did you mean "dpo"')
  T.raises(function() pl.loss.find "../init" end, "unknown loss")
  T.raises(function() pl.loss.dpo(at(0, 0), { gamma = 1 }) end, "unknown option")
  T.raises(function() local _ = require("perilune.loss.pairs").new({}).chosn end, 'did you mean "chosen"')
  T.ok(tostring(pl.loss.dpo):find "Rafailov")
  for _, name in ipairs(pl.loss.names()) do
    local def = pl.loss.find(name)
    T.ok(def.formula and def.source and def.options and def.name == name, name)
  end
end)

T.test("loss_reads_only_what_it_needs", function()
  local read = {}
  local p = require("perilune.loss.pairs").new {
    chosen_logps = t(-1), rejected_logps = t(-2), chosen_tokens = t(2), rejected_tokens = t(2),
    ref_chosen_logps = function() read[1] = true return t(-1) end,
    ref_rejected_logps = function() read[2] = true return t(-2) end,
  }
  pl.loss.simpo(p, {})
  T.eq(read, {})
  pl.loss.dpo(p, {})
  T.eq(read, { true, true })
end)

T.done()
