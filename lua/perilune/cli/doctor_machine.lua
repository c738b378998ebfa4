--- What the system gives this process, for perilune doctor: cores, memory, huge pages and
--- NUMA nodes, each beside what cuts it. It measures no speed and writes nothing.
local base = require("perilune.core").base

local M = {}

local LIMIT_OF = { PL_MEMORY = "PL_MEMORY", group = "of the container or control group", caller = "set by a script" }

local function first_line(path)
  local f <close> = io.open(path)
  return f and f:read "l"
end

local function meminfo(name)
  for line in io.lines "/proc/meminfo" do
    local kib = line:match("^" .. name .. ":%s+(%d+)")
    if kib then return tonumber(kib) * 1024 end
  end
  return nil
end

---@param root? string another folder than /sys, for tests
---@return table report fields of the doctor's report; without a limit or the kernel's word, none
function M.look(root)
  root = root or "/sys"
  local cores, quota = base.cores()
  local limit, by = base.memory_limit()
  local pages = first_line(root .. "/kernel/mm/transparent_hugepage/enabled")
  local nodes = 0
  for _, name in ipairs(base.list_dir(root .. "/devices/system/node") or {}) do
    if name:find "^node%d+$" then nodes = nodes + 1 end
  end
  return {
    threads = base.threads(), cores = cores, cpu_quota = quota, threads_set = os.getenv "PL_THREADS" and true or nil,
    memory_total = meminfo "MemTotal", memory_free = meminfo "MemAvailable",
    memory_limit = limit > 0 and limit or nil, memory_limit_by = limit > 0 and by or nil,
    huge_pages = pages and pages:match "%[(%w+)%]", numa_nodes = math.max(nodes, 1),
  }
end

-- Two threads on one core would fight for it, so hardware threads beyond the first are no loss.
local function threads_of(r)
  local room = math.min(r.cores, r.cpu_quota or r.cores)
  if r.threads_set and r.threads < room then
    return ("%d threads where there is room for %d: PL_THREADS says so"):format(r.threads, room)
  elseif r.threads_set and r.threads > room then
    return ("%d threads where there is room for %d: PL_THREADS asks for more than cores and quota give"):format(
      r.threads, room)
  elseif r.threads < r.cores then
    return r.cpu_quota and r.cpu_quota < r.cores
      and ("%d threads on %d cores: the container or control group has a quota of processor time"):format(r.threads, r.cores)
      or ("%d threads on %d cores: there can be no more"):format(r.threads, r.cores)
  end
  return nil
end

---@param r table what look gave
---@return string[]
function M.warnings(r)
  local out = { threads_of(r) }
  if r.huge_pages == "never" then
    out[#out + 1] = "huge pages are off, which makes large tensors slower: echo madvise, as root, into "
      .. "/sys/kernel/mm/transparent_hugepage/enabled"
  end
  if r.numa_nodes > 1 then
    out[#out + 1] = ("%d NUMA nodes, of which the nearest holds most memory: run under numactl --interleave=all, or on one "
      .. "node with numactl --cpunodebind=0 --membind=0"):format(r.numa_nodes)
  end
  return out
end

local function gib(bytes) return bytes and ("%.1f GiB"):format(bytes / 2 ^ 30) or "unknown" end

---@param r table what look gave
---@return string text lines for people
function M.lines(r)
  return table.concat {
    ("threads         %d on %d core%s\n"):format(r.threads, r.cores, r.cores > 1 and "s" or ""),
    ("memory          %s, %s free, %s\n"):format(gib(r.memory_total), gib(r.memory_free),
      r.memory_limit and ("limit %s (%s)"):format(gib(r.memory_limit), LIMIT_OF[r.memory_limit_by]) or "no limit"),
    ("huge pages      %s\n"):format(r.huge_pages or "unknown"),
    ("NUMA nodes      %d\n"):format(r.numa_nodes),
  }
end

return M
