-- What perilune doctor says of a machine, on machines made up here.
local T = require "tests.lua.harness"
local base = require("perilune.core").base
local machine = require "perilune.cli.doctor_machine"

local function report(more)
  local r = { threads = 8, cores = 8, huge_pages = "madvise", numa_nodes = 1 }
  for k, v in pairs(more) do r[k] = v end
  return r
end

-- The one warning about a machine.
local function warned(more, ...)
  local list = machine.warnings(report(more))
  T.eq(#list, 1)
  for _, text in ipairs { ... } do T.ok(list[1]:find(text, 1, true), list[1]) end
end

T.test("a thread on each core is no reason for a warning", function()
  T.eq(machine.warnings(report {}), {})
  T.eq(machine.warnings(report { threads_set = true }), {})
  T.eq(machine.warnings(report { cpu_quota = 16 }), {})
  T.eq(machine.warnings(report { threads = 2, cpu_quota = 2, threads_set = true, cores = 2 }), {})
end)

T.test("what cuts the threads is named", function()
  warned({ threads = 3, threads_set = true }, "3 threads where there is room for 8", "PL_THREADS")
  warned({ threads = 2, cpu_quota = 2 }, "2 threads on 8 cores", "quota of processor time")
  warned({ threads = 1, cpu_quota = 2, threads_set = true }, "1 threads where there is room for 2", "PL_THREADS")
  warned({ threads = 8, cpu_quota = 2, threads_set = true }, "8 threads where there is room for 2", "PL_THREADS asks for more")
  warned({ threads = 256, cores = 300 }, "256 threads on 300 cores")
end)

local function tree(name, pages, nodes)
  local root = T.tmpdir() .. "/" .. name
  assert(base.mkdirs(root .. "/kernel/mm/transparent_hugepage"))
  assert(base.write_file(root .. "/kernel/mm/transparent_hugepage/enabled", pages))
  for _, node in ipairs(nodes) do assert(base.mkdirs(root .. "/devices/system/node/" .. node)) end
  return root
end

T.test("huge pages and NUMA nodes are read and what slows is said", function()
  local r = machine.look(tree("large", "always madvise [never]\n", { "node0", "node1", "node12", "nodes", "power" }))
  T.eq({ r.huge_pages, r.numa_nodes }, { "never", 3 })
  local list = table.concat(machine.warnings(r), "\n")
  T.ok(list:find("huge pages are off", 1, true) and list:find("3 NUMA nodes", 1, true), list)
  T.ok(list:find("numactl --interleave=all", 1, true), list)
  r = machine.look(tree("small", "always [madvise] never\n", { "node0" }))
  T.eq({ r.huge_pages, r.numa_nodes }, { "madvise", 1 })
  r = machine.look(T.tmpdir() .. "/nothing")
  T.eq({ r.huge_pages, r.numa_nodes }, { nil, 1 })
end)

T.test("a limit on memory is shown with its origin", function()
  local r = report { memory_total = 64 << 30, memory_free = 32 << 30, memory_limit = 19 << 29, memory_limit_by = "group" }
  T.ok(machine.lines(r):find("64.0 GiB, 32.0 GiB free, limit 9.5 GiB (of the container or control group)", 1, true))
  r.memory_limit = nil
  T.ok(machine.lines(r):find("32.0 GiB free, no limit\n", 1, true))
  base.memory_limit(1 << 40)
  local seen = machine.look()
  base.memory_limit(0)
  T.eq({ seen.memory_limit, seen.memory_limit_by }, { 1 << 40, "caller" })
  T.eq(machine.look().memory_limit, nil)
end)

T.done()
