-- What runs beside each kind of workload in `make bench-peers`: PyTorch 2.13 in the settings
-- of a user who installs it (usual) and of one who knows the machine (tuned: huge pages, freed
-- memory kept, short waits of the threads, AdamW in one kernel), and llama.cpp. Their programs
-- are scripts/peers/*.py. PyTorch 1.13 is not run.
local base = require("perilune.core").base
local child = require "scripts.bench.child"

local M = {}

local THREADS = base.threads() -- as many as ours takes
local USUAL = "OMP_NUM_THREADS=" .. THREADS
local TUNED = USUAL .. " GOMP_SPINCOUNT=2000 GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0"
  .. ":glibc.malloc.trim_threshold=30000000000:glibc.malloc.top_pad=268435456"

local function venv()
  return os.getenv "PERILUNE_BENCH_VENV" or (assert(base.exe_dir()) .. "/build/bench-venv")
end

local function has(module)
  return (os.execute(("%s -c 'import %s' 2>/dev/null"):format(child.quote(venv() .. "/bin/python"), module)))
end

local function python(env, script, ...)
  local words = { "env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE", env, child.quote(venv() .. "/bin/python"),
    "scripts/peers/" .. script }
  for _, word in ipairs { ... } do words[#words + 1] = child.quote(word) end
  return table.concat(words, " ")
end

local function torch(name, env, flags)
  return {
    name = "torch " .. name, module = "torch",
    command = function(w, seconds)
      local dtype = (w.peer == "gen" or w.peer == "prefill") and "bf16" or w.dtype
      return python(env, "torch_peer.py", w.peer, w.shape, w.batch or 1, w.length or 0, dtype, seconds, table.unpack(flags))
    end,
  }
end

-- The weights as a GGUF file, written once.
local function gguf(kind)
  local path = ("%s/15m-%s.gguf"):format(venv(), kind)
  if not base.exists(path) then
    assert(os.execute(python("", "gguf_model.py", path .. ".new", kind)), "gguf_model.py failed")
    assert(base.rename(path .. ".new", path))
  end
  return path
end

local function llama(kind, processes)
  return {
    name = ("llama.cpp %s%s"):format(kind, processes > 1 and (", %d processes"):format(processes) or ""), module = "llama_cpp",
    command = function(w, seconds)
      return python("OMP_NUM_THREADS=" .. math.max(1, THREADS // processes), "llama_peer.py", w.peer, gguf(kind),
        w.batch or 1, w.length or 0, seconds, processes)
    end,
  }
end

local tuned = torch("tuned", TUNED, { "fused" })

---The peers of a workload; beyond: a setting that the figure to reach was not made against.
---@return { name: string, command: fun(w: table, seconds: number): string, beyond?: boolean }[]
function M.of(w)
  if w.peer == "sft" then
    return { torch("usual", USUAL, {}), tuned }
  elseif w.peer == "dpo" then
    -- the figure to reach is against the step that trainers run, with the reference's forward in it
    local kept = torch("tuned, reference kept", TUNED, { "fused", "kept" })
    kept.beyond = true
    return { torch("usual", USUAL, {}), tuned, kept }
  elseif w.peer == "gen" then
    local list = { tuned, llama("q8_0", 1), llama("bf16", 1) }
    if w.batch > 1 then list[#list + 1] = llama("q8_0", 2) end
    return list
  end
  return { tuned, llama("f32", 1), llama("q8_0", 1), llama("bf16", 1) }
end

-- Which Python modules are there, asked once each.
local known = {}

---Runs a peer on a workload.
---@return table result with rate, or failed = why
function M.run(peer, w, seconds)
  if known[peer.module] == nil then known[peer.module] = has(peer.module) or false end
  if not known[peer.module] then return { failed = peer.module .. " is not installed in " .. venv() } end
  local r, problem = child.json(peer.command(w, seconds))
  return r or { failed = problem }
end

return M
