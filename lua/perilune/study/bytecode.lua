--- Which globals a Lua function names, read off its bytecode (the format of Lua 5.4). Nothing is run
--- here, and nothing guessed: of code that could reach any global nil is told, and so of a dump that
--- does not read as expected.
local bytecode = {}

-- What a dump starts with: signature, version, format, bytes that a careless copy would change, then the
-- sizes of an instruction, an integer and a float; an integer and a float follow.
local HEADER = "\x1bLua\x54\x00\x19\x93\r\n\x1a\n\x04\x08\x08"
local GETUPVAL, SETUPVAL, GETTABUP, SETTABUP = 9, 10, 11, 15
local NIL, FALSE, TRUE, INTEGER, FLOAT, SHORT, LONG = 0x00, 0x01, 0x11, 0x03, 0x13, 0x04, 0x14
-- With these in hand any global can be read by a name that is made up as the code runs.
local OPEN = { _G = true, load = true }

---@class perilune.study.Dump a dump and the place reached in it
local Dump = {}
Dump.__index = Dump

function Dump:skip(n)
  self.at = self.at + n
  if self.at > #self.code + 1 then error("the dump ends early", 0) end
end

function Dump:byte()
  self:skip(1)
  return self.code:byte(self.at - 1)
end

-- Seven bits a byte, the highest first; the last byte has its top bit set.
function Dump:size()
  local n = 0
  repeat
    local b = self:byte()
    n = n << 7 | b & 0x7f
    if n > #self.code then error("a size beyond the dump", 0) end
  until b >= 0x80
  return n
end

function Dump:string()
  local n = self:size()
  if n == 0 then return nil end
  self:skip(n - 1)
  return self.code:sub(self.at - n + 1, self.at - 1)
end

function Dump:constants()
  local out = {}
  for i = 0, self:size() - 1 do
    local kind = self:byte()
    if kind == SHORT or kind == LONG then
      out[i] = self:string()
      self.open = self.open or out[i] == "_G"
    elseif kind == INTEGER or kind == FLOAT then
      self:skip(8)
    elseif kind ~= NIL and kind ~= FALSE and kind ~= TRUE then
      error("a constant of an unknown kind", 0)
    end
  end
  return out
end

-- The upvalues that hold the globals' table, from 0. One of a function inside is its maker's upvalue, or a
-- register, which holds the globals only where GETUPVAL has put them there: that is told as open anyway.
function Dump:upvalues(env, is_inner)
  local out = {}
  for i = 0, self:size() - 1 do
    local is_register, index = self:byte() ~= 0, self:byte()
    self:skip(1) -- kind
    out[i] = is_inner and not is_register and env[index]
  end
  return is_inner and out or env
end

-- Notes what code of `count` instructions at `first` does with the globals.
function Dump:instructions(first, count, constants, env)
  for at = first, first + 4 * (count - 1), 4 do
    local word = string.unpack("I4", self.code, at)
    local op, a, b, c = word & 0x7f, word >> 7 & 0xff, word >> 16 & 0xff, word >> 24
    if op == GETTABUP and env[b] or op == SETTABUP and env[a] then
      local name = constants[op == GETTABUP and c or b]
      if not name then error("a global without a name", 0) end
      self.names[name] = true
      self.open = self.open or OPEN[name]
    elseif (op == GETUPVAL or op == SETUPVAL) and env[b] then
      self.open = true -- as a value, or for a name that does not fit an instruction
    end
  end
end

-- env: upvalues that hold the globals, of the function itself or (is_inner) of the one around it.
function Dump:func(env, is_inner)
  self:string() -- source
  self:size() -- first line
  self:size() -- last line
  self:skip(3) -- parameters, varargs, registers
  local count, first = self:size(), self.at
  self:skip(4 * count)
  local constants = self:constants()
  env = self:upvalues(env, is_inner)
  self:instructions(first, count, constants, env)
  for _ = 1, self:size() do self:func(env, true) end
  for _ = 1, 4 do
    if self:size() ~= 0 then error("a dump with debug information", 0) end
  end
end

local function read(code, env)
  local dump = setmetatable({ code = code, at = #HEADER + 1, names = {}, open = false }, Dump)
  if code:sub(1, #HEADER) ~= HEADER then return nil end
  dump:skip(8 + 8 + 1) -- an integer, a float, the number of upvalues
  dump:func(env, false)
  return not dump.open and dump.at == #code + 1 and dump.names or nil
end

---The globals that a function, or one inside it, reads or sets by name.
---@param code string what string.dump(f, true) gave
---@param env table<integer, boolean> the function's upvalues, from 0, that hold the table of globals
---@return table<string, boolean>|nil names nil: it may read any
function bytecode.globals(code, env)
  if not next(env) then return {} end
  local ok, names = pcall(read, code, env)
  return ok and names or nil
end

return bytecode
