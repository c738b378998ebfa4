---@meta perilune.core.format
--- Files of tensors and of events (src/bind/format.c). For the language server only; written by hand.
error "this file describes perilune.core.format to the language server; it is not to be required"

---@class perilune.format
local format = {}

---Maps a file and checks all of it but the data themselves.
---@param path string
---@return perilune.Safetensors|nil
---@return string|nil message
function format.safetensors_open(path) end

---Writes a file atomically, in the order of the reference library. Raises on failure.
---@param path string
---@param tensors table<string, perilune.Tensor>
---@param metadata table<string, string>? # default {format = "pt"}
---@return true
function format.safetensors_write(path, tensors, metadata) end

---Makes a TensorBoard event file in a directory that exists.
---@param dir string
---@return perilune.EventWriter|nil
---@return string|nil message
function format.tfevents_open(dir) end

---@class perilune.Safetensors
local Safetensors = {}

---@return string[] # in the order of the data
function Safetensors:names() end

---@param name string
---@return {dtype: string, shape: integer[], bytes: integer} # dtype as the file says it: "F32"
function Safetensors:info(name) end

---A copy. F16 becomes f32, small integers i32, U32 i64; U64, 8-bit floats and complex numbers raise.
---@param name string
---@return perilune.Tensor
function Safetensors:tensor(name) end

---@return table<string, string>
function Safetensors:metadata() end

function Safetensors:close() end

---@class perilune.EventWriter
local EventWriter = {}

---@param tag string # "loss", "rewards/margins"
---@param step integer # 0 or more
---@param value number
function EventWriter:scalar(tag, step, value) end

---@return string
function EventWriter:path() end

function EventWriter:close() end

return format
