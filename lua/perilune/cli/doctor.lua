--- perilune doctor: what this machine can do and what slows it. Peak and product are
--- probed for about a second; `make bench` measures with care. With a spec of a
--- service (doctor openai:...): what that endpoint honours.
local base = require("perilune.core").base
local machine = require "perilune.cli.doctor_machine"
local pl = require "perilune"

local SIZE, SECONDS = 768, 0.4
local SLOW = 0.6 -- share of the peak below which a product is worth a warning

-- The best GFLOP/s of f() -> operations within the time.
local function best_of(f)
  local best, stop = 0, base.now() + SECONDS
  repeat
    local began = base.now()
    local flop = f()
    best = math.max(best, flop / (base.now() - began))
  until base.now() > stop
  return best / 1e9
end

-- Multiply-adds in registers on all threads: what the processor can do at most.
local function peak() return best_of(function() return base.fma_probe(1000000) end) end

-- The same for products of bf16, or nil where the kernels in use have no instruction for them.
local function bf16_peak()
  if base.bf16_probe(1) == 0 then return nil end
  return best_of(function() return base.bf16_probe(1000000) end)
end

-- A square f32 product.
local function product()
  local a, b = pl.randn(SIZE, SIZE, { seed = 1 }), pl.randn(SIZE, SIZE, { seed = 2 })
  return pl.no_grad(function()
    return best_of(function()
      local c <close> = a:matmul(b)
      return 2 * SIZE ^ 3
    end)
  end)
end

local function warnings(report)
  local out = machine.warnings(report)
  if report.matmul_gflops < SLOW * report.peak_gflops then
    out[#out + 1] = "products run far below the peak: is the machine busy with something else?"
  end
  return out
end

---@param words string[]
---@param flags {json: boolean?}
return function(words, flags)
  if words[1] then return require("perilune.cli.doctor_service")(words[1], flags) end
  local kernels, isa, has = base.isa()
  local report = machine.look()
  report.perilune, report.lua, report.processor = pl.version, _VERSION, base.cpu_name()
  report.kernels, report.isa, report.isa_available = kernels, isa, base.json_array(has)
  report.peak_gflops, report.peak_bf16_gflops, report.matmul_gflops = peak(), bf16_peak(), product()
  report.memory_peak = base.memory().rss_peak
  report.warnings = base.json_array(warnings(report))
  if flags.json then
    io.stdout:write(base.json_encode(report), "\n")
    return 0
  end
  io.stdout:write(
    ("perilune %s, %s\n"):format(report.perilune, report.lua),
    ("processor       %s\n"):format(report.processor),
    ("kernels         %s: %s of %s (PERILUNE_ISA)\n"):format(kernels, isa, table.concat(has, ", ")),
    ("f32 peak        %.0f GFLOP/s\n"):format(report.peak_gflops),
    report.peak_bf16_gflops and ("bf16 peak       %.0f GFLOP/s\n"):format(report.peak_bf16_gflops)
      or "bf16 peak       as f32: the kernels in use have no instruction for it\n",
    ("f32 product     %.0f GFLOP/s (%d x %d)\n"):format(report.matmul_gflops, SIZE, SIZE),
    machine.lines(report))
  for _, warning in ipairs(report.warnings) do io.stdout:write("warning: ", warning, "\n") end
  if #report.warnings == 0 then io.stdout:write "nothing slows it\n" end
  return 0
end
