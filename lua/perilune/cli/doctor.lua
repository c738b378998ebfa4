--- perilune doctor: what this machine can do and what slows it. Peak and product are
--- probed for about a second; `make bench` measures with care. With a spec of a
--- service (doctor openai:...): what that endpoint honours.
local base = require("perilune.core").base
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

local function meminfo(name)
  for line in io.lines "/proc/meminfo" do
    local kib = line:match("^" .. name .. ":%s+(%d+)")
    if kib then return tonumber(kib) * 1024 end
  end
  return nil
end

local function cpus()
  local n = 0
  for line in io.lines "/proc/cpuinfo" do
    if line:find "^processor" then n = n + 1 end
  end
  return n
end

local function warnings(report)
  local out = {}
  if report.threads < cpus() then
    out[#out + 1] = ("%d threads on %d processors (PL_THREADS, or what this process may use)"):format(
      report.threads, cpus())
  end
  if report.matmul_gflops < SLOW * report.peak_gflops then
    out[#out + 1] = "products run far below the peak: is the machine busy with something else?"
  end
  return out
end

---@param words string[]
---@param flags {json: boolean?}
return function(words, flags)
  if words[1] then return require("perilune.cli.doctor_service")(words[1], flags) end
  local memory = base.memory()
  local kernels, isa, has = base.isa()
  local report = {
    perilune = pl.version, lua = _VERSION, processor = base.cpu_name(), threads = base.threads(),
    kernels = kernels, isa = isa, isa_available = base.json_array(has),
    peak_gflops = peak(), peak_bf16_gflops = bf16_peak(), matmul_gflops = product(),
    memory_total = meminfo "MemTotal",
    memory_free = meminfo "MemAvailable", memory_peak = memory.rss_peak,
  }
  report.warnings = base.json_array(warnings(report))
  if flags.json then
    io.stdout:write(base.json_encode(report), "\n")
    return 0
  end
  local function gib(bytes) return bytes and ("%.1f GiB"):format(bytes / 2 ^ 30) or "unknown" end
  io.stdout:write(
    ("perilune %s, %s\n"):format(report.perilune, report.lua),
    ("processor       %s\n"):format(report.processor),
    ("threads         %d\n"):format(report.threads),
    ("kernels         %s: %s of %s (PERILUNE_ISA)\n"):format(kernels, isa, table.concat(has, ", ")),
    ("f32 peak        %.0f GFLOP/s\n"):format(report.peak_gflops),
    report.peak_bf16_gflops and ("bf16 peak       %.0f GFLOP/s\n"):format(report.peak_bf16_gflops)
      or "bf16 peak       as f32: the kernels in use have no instruction for it\n",
    ("f32 product     %.0f GFLOP/s (%d x %d)\n"):format(report.matmul_gflops, SIZE, SIZE),
    ("memory          %s, %s free\n"):format(gib(report.memory_total), gib(report.memory_free)))
  for _, warning in ipairs(report.warnings) do io.stdout:write("warning: ", warning, "\n") end
  if #report.warnings == 0 then io.stdout:write "nothing slows it\n" end
  return 0
end
