--- Where finished stages lie: one directory a key, written beside its place and
--- renamed into it, so that a reader finds a whole entry or none. Every file of
--- an entry is listed with its hash; one that does not fit is damage, and the
--- stage is computed again. What a value looks like on disk is kinds.lua's.
local base = require("perilune.core").base
local hash = require "perilune.study.hash"
local process = require "perilune.study.process"

local store = {}

local MANIFEST = "stage.json"

---The directory that runs and remembered stages live in: PL_HOME, or ./runs.
---@return string
function store.home()
  local home = os.getenv "PL_HOME"
  return store.override or (home and home ~= "" and home) or "runs"
end

---Another home for the rest of the process (`--home=DIR`, tests); nil: the usual one.
---@param dir string|nil
function store.set_home(dir) store.override = dir end

local function stages() return store.home() .. "/.stages" end
local function place(key) return ("%s/%s/%s"):format(stages(), key:sub(1, 2), key:sub(3, 40)) end

local function must(ok, message)
  if ok == nil or ok == false then error(message or "a file operation failed", 0) end
  return ok
end

-- Files of a directory with their sizes and hashes, folders included.
local function inventory(dir, prefix, out)
  for _, name in ipairs(must(base.list_dir(dir))) do
    local path = dir .. "/" .. name
    if base.is_dir(path) then
      inventory(path, prefix .. name .. "/", out)
    elseif prefix .. name ~= MANIFEST then
      out[#out + 1] = { name = prefix .. name, sha256 = must(hash.file(path)) }
    end
  end
  return out
end

---@class perilune.study.Entry
---@field dir string
---@field hash string|nil the value's own hash
---@field seconds number what it took to compute
---@field calls integer
---@field meta table what the kind noted

---The entry of a key.
---@param key string
---@return perilune.study.Entry|nil
---@return string|nil reason set if an entry is there but damaged
function store.find(key)
  local dir = place(key)
  if not base.exists(dir) then return nil end
  local manifest, message = base.json_read(dir .. "/" .. MANIFEST)
  if not manifest then return nil, message end
  if manifest.key ~= key then return nil, dir .. ": made for another key" end
  for _, file in ipairs(manifest.files or {}) do
    local sum = hash.file(dir .. "/" .. file.name)
    if sum ~= file.sha256 then
      return nil, ("%s/%s: %s"):format(dir, file.name, sum and "its bytes have changed" or "missing")
    end
  end
  manifest.dir = dir
  return manifest
end

local made = 0
---Stores a value under a key. Until the last step nothing is visible.
---@param key string
---@param write fun(dir: string): table fills an empty directory; returns what to note: {hash, meta}
---@param facts {name: string, kind: string, seconds: number, calls: integer}
---@return perilune.study.Entry
function store.put(key, write, facts)
  local dir = place(key)
  made = made + 1
  local temporary = ("%s.tmp.%d.%d"):format(dir, base.pid(), made)
  must(base.remove_tree(temporary))
  must(base.mkdirs(temporary))
  local ok, problem = pcall(function()
    local noted = write(temporary)
    local manifest = {
      format = 1, key = key, name = facts.name, kind = facts.kind, seconds = facts.seconds, calls = facts.calls,
      hash = noted.hash, meta = noted.meta, files = inventory(temporary, "", {}),
    }
    must(base.write_file(temporary .. "/" .. MANIFEST, base.json_encode(manifest, { indent = 1 }) .. "\n"))
    if not base.rename(temporary, dir) then
      -- The name is taken: by a whole entry of another process (same content, keep it) or by damage.
      if not store.find(key) then
        must(base.remove_tree(dir))
        must(base.rename(temporary, dir))
      end
    end
  end)
  if not ok then
    base.remove_tree(temporary)
    error(problem, 0)
  end
  base.remove_tree(temporary)
  return (assert(store.find(key)))
end

---A directory that outlives a killed run: checkpoints of a stage in the making.
---@param key string
---@return string
function store.scratch(key)
  local dir = place(key) .. ".work"
  must(base.mkdirs(dir))
  return dir
end

---@param key string
function store.drop_scratch(key) base.remove_tree(place(key) .. ".work") end

-- Renaming a full directory onto another full one fails: that is the lock, and it
-- needs nothing but what the file system promises.
local function claim(lock, mine)
  local own = ("%s.%d"):format(lock, base.pid())
  base.remove_tree(own)
  must(base.mkdirs(own))
  must(base.write_file(own .. "/owner", mine))
  if base.rename(own, lock) then return true end
  base.remove_tree(own)
  return false
end

---Takes the lock of a key; while another living process has it, waits.
---@param key string
---@param waiting fun() called once if there is something to wait for
---@return table lock a to-be-closed value: `local lock <close> = store.lock(...)`
function store.lock(key, waiting)
  local lock = place(key) .. ".lock"
  must(base.mkdirs(("%s/%s"):format(stages(), key:sub(1, 2))))
  local mine = process.mine()
  local told = false
  while not claim(lock, mine) do
    local owner = base.read_file(lock .. "/owner")
    if owner and (owner == mine or not process.alive(owner)) then
      -- Left behind by a killed process, or by ours where Ctrl-C came at the wrong moment (nothing
      -- takes a lock twice). Only one process can move it away.
      local aside = ("%s.stale.%d"):format(lock, base.pid())
      base.rename(lock, aside)
      base.remove_tree(aside)
    else
      if not told then
        told = true
        waiting()
      end
      base.sleep(0.2)
    end
  end
  return base.finally(function() base.remove_tree(lock) end)
end

return store
