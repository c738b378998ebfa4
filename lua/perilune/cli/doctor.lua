--- perilune doctor: what this machine can do and what slows it. The peak is probed
--- with square products for about a second; `make bench` measures with care.
local base = require("perilune.core").base
local pl = require "perilune"

local SIZE, SECONDS = 768, 0.8

-- GFLOP/s of a square f32 product, the best of what fits into the time.
local function peak()
  local a = pl.randn(SIZE, SIZE, { seed = 1 })
  local b = pl.randn(SIZE, SIZE, { seed = 2 })
  local best, flop = 0, 2 * SIZE ^ 3
  local stop = base.now() + SECONDS
  pl.no_grad(function()
    repeat
      local began = base.now()
      local c <close> = a:matmul(b)
      best = math.max(best, flop / (base.now() - began))
    until base.now() > stop
  end)
  return best / 1e9
end

local function meminfo(name)
  for line in io.lines "/proc/meminfo" do
    local kib = line:match("^" .. name .. ":%s+(%d+)")
    if kib then return tonumber(kib) * 1024 end
  end
  return nil
end

local function cpu_flags()
  for line in io.lines "/proc/cpuinfo" do
    local flags = line:match "^flags%s*:%s*(.*)$"
    if flags then return " " .. flags .. " " end
  end
  return ""
end

local function warnings(report)
  local out = {}
  local forced = os.getenv "OPENBLAS_CORETYPE"
  local wide = cpu_flags():find " avx512f " ~= nil
  if wide and report.blas_core and not report.blas_core:find "SkylakeX" and not report.blas_core:find "Cooperlake"
    and not report.blas_core:find "Sapphire" and not report.blas_core:find "Zen" then
    out[#out + 1] = ("OpenBLAS uses its %s core although the processor has AVX-512%s; products run at half speed"):format(
      report.blas_core, forced and (" (OPENBLAS_CORETYPE=" .. forced .. " says so: unset it)") or "")
  elseif forced then
    out[#out + 1] = ("OPENBLAS_CORETYPE=%s is set: unset it and let OpenBLAS choose its own core"):format(forced)
  end
  return out
end

---@param _ string[]
---@param flags {json: boolean?}
return function(_, flags)
  local memory = base.memory()
  local report = {
    perilune = pl.version, lua = _VERSION, processor = base.cpu_name(), threads = base.threads(),
    blas_core = base.blas_core(), matmul_gflops = peak(), memory_total = meminfo "MemTotal",
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
    ("OpenBLAS core   %s\n"):format(report.blas_core),
    ("f32 product     %.0f GFLOP/s (%d x %d, best of %.1f s)\n"):format(report.matmul_gflops, SIZE, SIZE, SECONDS),
    ("memory          %s, %s free\n"):format(gib(report.memory_total), gib(report.memory_free)))
  for _, warning in ipairs(report.warnings) do io.stdout:write("warning: ", warning, "\n") end
  if #report.warnings == 0 then io.stdout:write "nothing slows it\n" end
  return 0
end
