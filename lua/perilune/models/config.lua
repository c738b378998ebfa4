--- What families share in reading a config.json: defaults, types, and refusals that
--- name the file and the key. It must not know any family.
local config = {}

---@param where string # the file, or who asked
function config.refuse(where, message, ...)
  error((where .. ": " .. message):format(...), 0)
end

---Refuses what is no positive integer.
function config.check_size(full, key, where)
  local v = full[key]
  if math.type(v) ~= "integer" or v < 1 then
    config.refuse(where, "%s is %s; wanted a positive integer", key, v == nil and "missing" or tostring(v))
  end
end

---A copy of what was given with the defaults filled in: a default's type is the key's type, and
---the needed keys are positive integers. Quantised weights are refused for all families.
---@param given table # as config.json
---@param defaults table<string, any>
---@param needed string[]
---@param where string
---@return table
function config.fill(given, defaults, needed, where)
  local full = {}
  for k, v in pairs(defaults) do full[k] = v end
  for k, v in pairs(given) do full[k] = v end
  for _, key in ipairs(needed) do config.check_size(full, key, where) end
  for k, v in pairs(defaults) do
    if type(full[k]) ~= type(v) then
      config.refuse(where, "%s is %s; wanted a %s", k, type(full[k]) == "table" and "a table" or tostring(full[k]), type(v))
    end
  end
  if full.quantization_config then
    config.refuse(where, "quantised weights (quantization_config) are not supported; use the f32, f16 or bf16 model")
  end
  return full
end

return config
