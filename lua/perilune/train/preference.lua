--- Training on preferences: rows {prompt, chosen, rejected}, a loss by name or a Lua
--- function of small tensors. Chosen and rejected go through the model in one forward
--- pass, as two branches of their prompt. The reference is the model as it came; its
--- log-probabilities are computed once for all rows, when a loss first reads them
--- (reference.lua), and never for a loss that does not.
local core = require("perilune.core").base
local losses = require "perilune.loss"
local options = require "perilune.options"
local pairs_of = require "perilune.loss.pairs"
local pl = require "perilune"
local progress = require "perilune.study.progress"
local reference = require "perilune.train.reference"
local sft = require "perilune.train.sft"

local preference = {}

-- Options that any named loss takes.
local COMMON = {
  loss = { "dpo", type = "string|function", doc = "a name (pl.loss.names()), or a function (p, o) -> tensor" },
  sft_reg = { type = "number", min = 0, doc = "weight of the chosen answer's summed negative log-likelihood" },
}
local WITH_REFERENCE = {
  reference_free = { false, doc = "take the reference's log-probabilities as 0" },
}

-- Which losses read an option: for the error about one that the chosen loss does not read.
local function readers(key)
  local out = {}
  for _, name in ipairs(losses.names()) do
    if losses.find(name).options[key] then
      out[#out + 1] = name
    end
  end
  return out
end

---Splits the given options: the trainer's, and the loss's own. An option nobody reads is an error.
---@param where string
---@param spec table the trainer's spec
---@param given table?
---@return table o trainer's options; o.loss as given
---@return table own the loss's options
---@return table def { name, pairs(p, own), t0, options }
function preference.options(where, spec, given)
  local all = {}
  for _, part in ipairs { spec, COMMON } do
    for k, v in pairs(part) do
      all[k] = v
    end
  end
  local chosen = type(given) == "table" and given.loss or nil
  if type(chosen) == "function" then
    all.sft_reg = nil
    local o, own = options.extra(where, all, given)
    return o, own, { name = "function", pairs = chosen, own = true, options = {} }
  end
  if chosen ~= nil and type(chosen) ~= "string" then
    options.resolve(where, COMMON, { loss = chosen })
  end
  local def = losses.find(chosen or "dpo", where)
  if def.t0 then
    for k, v in pairs(WITH_REFERENCE) do
      all[k] = v
    end
  end
  for k, v in pairs(def.options) do
    all[k] = v
  end
  for key in pairs(given or {}) do
    local by = not all[key] and readers(key) or {}
    if #by > 0 then
      error(("%s: the loss %s does not read the option %s (%s does)"):format(where, def.name, tostring(key),
        table.concat(by, ", ")), 0)
    end
  end
  local o = options.resolve(where, all, given)
  local own = {}
  for k in pairs(def.options) do
    own[k] = o[k]
  end
  return o, own, def
end

-- A table that notes which of its keys were read.
local function recorded(values)
  local read = {}
  local proxy = setmetatable({}, {
    __index = function(_, k)
      read[k] = true
      return values[k]
    end,
    __newindex = function()
      error("a loss must not change its options", 2)
    end,
    __pairs = function()
      for k in pairs(values) do
        read[k] = true
      end
      return next, values, nil
    end,
  })
  return proxy, read
end

-- Drops tokens of the prompt's start, after a BOS, so that n tokens of it stay.
local function shorten_prompt(t, n, bos)
  local keep = t.ids[1] == bos and 1 or 0
  local drop = t.start - 1 - n
  local ids = table.move(t.ids, 1, keep, 1, {})
  table.move(t.ids, keep + drop + 1, #t.ids, keep + 1, ids)
  t.ids, t.start, t.cut = ids, t.start - drop, t.cut or "prompt"
end

-- Pairs as two lists of token rows. Where one side's prompt was cut the other's is cut alike:
-- both answers are answers to the same prompt.
local function tokenize(where, model, rows, max_length)
  local chosen = sft.tokenize(where, model, rows, "chosen", max_length)
  local rejected = sft.tokenize(where, model, rows, "rejected", max_length)
  local bos = model.tokenizer and model.tokenizer:bos_declared()
  local counts = sft.count(chosen)
  for i, c in ipairs(chosen) do
    local r = rejected[i]
    local cut = not c.cut and r.cut -- as they came: what is shortened below is marked as cut too
    if c.start ~= r.start and (c.cut or r.cut) then
      local n = math.min(c.start, r.start) - 1
      shorten_prompt(c.start > r.start and c or r, n, bos)
    end
    if cut then
      counts["cut_" .. cut] = counts["cut_" .. cut] + 1
    end
  end
  return { chosen = chosen, rejected = rejected, counts = counts }
end

local function n_tokens(t)
  return #t.ids - t.start + 1
end

-- Log-probabilities [B, 2] of the pairs in `list`: the chosen's and the rejected's. Their prompt is
-- computed once.
local function both(model, tokens, list)
  local rows = {}
  for k, i in ipairs(list) do
    rows[2 * k - 1], rows[2 * k] = tokens.chosen[i], tokens.rejected[i]
  end
  return model:pair_sums(rows)
end

-- The reference's log-probabilities of all rows, batch by batch in the order of the
-- first epoch, so that the first step compares equal sums of equal batches.
local function reference_of(model, tokens, batches, bf16)
  local spec = { model = model, bf16 = bf16, batches = batches, chosen = tokens.chosen, rejected = tokens.rejected }
  return reference.get(spec, function()
    local out = { chosen = {}, rejected = {} }
    for i = 1, #tokens.chosen do -- rows that no step will read stay 0
      out.chosen[i], out.rejected[i] = 0.0, 0.0
    end
    local bar = progress.start { label = "reference", total = #batches, unit = "batch" }
    pl.no_grad(function()
      for at, list in ipairs(batches) do
        for k, sums in ipairs(both(model, tokens, list):tolist()) do
          out.chosen[list[k]], out.rejected[list[k]] = sums[1], sums[2]
        end
        bar:update(at)
      end
    end)
    bar:done()
    return out
  end)
end

local function column(values, list)
  local out = {}
  for k, i in ipairs(list) do
    out[k] = values[i]
  end
  return pl.tensor(out)
end

local function counted(tokens, list)
  local out = {}
  for k, i in ipairs(list) do
    out[k] = n_tokens(tokens[i]) + 0.0
  end
  return pl.tensor(out)
end

-- One number a pair from what a loss returned: [pairs], or the mean of this micro-batch.
local function share_of(where, value, n, total)
  if type(value) ~= "userdata" then
    error(("%s: the loss returned %s, wanted a tensor: one number, or one a pair"):format(where, type(value)), 0)
  end
  local size = value:numel()
  if size == n then
    return value:sum() * (1 / total)
  elseif size == 1 then
    return value:sum() * (n / total)
  end
  error(("%s: the loss returned %d numbers for %d pairs; wanted one, or one a pair"):format(where, size, n), 0)
end

-- Metrics of the pairs of one micro-batch, as sums.
local function sums_of(p, def, own, list, has_reference)
  local n, sums = #list, { pairs = #list }
  local lw, ll = p.chosen_logps:detach(), p.rejected_logps:detach()
  local w, l = lw:tolist(), ll:tolist()
  local rw, rl
  if def.rewards then
    local a, b = def.rewards(p, own)
    rw, rl = a:detach():tolist(), b:detach():tolist()
  else
    local beta = type(own.beta) == "number" and own.beta or 1
    local from_w, from_l = w, l
    if has_reference then
      from_w = (lw - p.ref_chosen_logps):tolist()
      from_l = (ll - p.ref_rejected_logps):tolist()
    end
    rw, rl = {}, {}
    local ratio_w, ratio_l, weights = 0, 0, 0
    for k = 1, n do
      rw[k], rl[k] = from_w[k] * beta, from_l[k] * beta
      ratio_w, ratio_l, weights = ratio_w + from_w[k], ratio_l + from_l[k], weights + math.exp(from_l[k])
    end
    if has_reference then
      sums["rewards/chosen_logprob_ratio"], sums["rewards/rejected_logprob_ratio"] = ratio_w, ratio_l
      sums["rewards/beta_normalized_margin"] = ratio_w - ratio_l
      sums["importance_weights/rejected"] = own.importance_correction and weights or nil
    end
  end
  local chosen, rejected, margins, right, logw, logl, tokens = 0, 0, 0, 0, 0, 0, 0
  local largest = 0
  local counts = p.chosen_tokens:tolist()
  for k = 1, n do
    chosen, rejected = chosen + rw[k], rejected + rl[k]
    margins = margins + rw[k] - rl[k]
    right = right + (rw[k] > rl[k] and 1 or 0)
    logw, logl, tokens = logw + w[k], logl + l[k], tokens + counts[k]
    largest = math.max(largest, math.abs(w[k]), math.abs(l[k]))
  end
  sums["rewards/chosen"], sums["rewards/rejected"] = chosen, rejected
  sums["rewards/margins"], sums["rewards/accuracies"] = margins, right
  sums["logps/chosen"], sums["logps/rejected"] = logw, logl
  sums.chosen_tokens, sums.largest = tokens, largest
  if has_reference then
    local a, b = p.ref_chosen_logps:tolist(), p.ref_rejected_logps:tolist()
    local c, d = 0, 0
    for k = 1, n do
      c, d = c + a[k], d + b[k]
    end
    sums["logps/reference_chosen"], sums["logps/reference_rejected"] = c, d
  end
  return sums
end

local function metrics_of(sums, total)
  local out = {}
  for name, value in pairs(sums) do
    if name:find("/", 1, true) then
      out[name] = value / total
    end
  end
  out["ppl/chosen"] = math.exp(-sums["logps/chosen"] / sums.chosen_tokens)
  return out
end

-- With policy = reference the loss has a known value and every margin is 0. Anything
-- else means that the two differ in weights, precision or template.
local function check_first(where, def, own, record, sums, total)
  local t0 = def.t0(own)
  local beta = own.beta or 1
  local slack = 2e-6 * sums.largest
  local off = math.abs(sums.plain_loss / total - t0)
  if off > 1e-5 * math.max(1, t0) + slack * math.max(beta, 4 * t0 * beta) then
    error(("%s: the first loss is %.7g, but %s is %.7g where policy and reference are the same model; "
      .. "their weights or inputs differ"):format(where, sums.plain_loss / total, def.name, t0), 0)
  end
  if math.abs(record["rewards/margins"]) > 1e-5 + slack * beta then
    error(("%s: the first margin is %.3g, not 0: policy and reference are not the same model"):format(where,
      record["rewards/margins"]), 0)
  end
end

---The task of a preference dataset.
---@param spec table
---  where, model (the policy), rows, o, own, def: as preference.options gave them
---  reference: the model as it came; nil where training is in place, then the policy is read before the first update
---  batches(n): lists of examples, in the order and sizes that training will use first
---@return table task
function preference.make(spec)
  local where, o, def, own = spec.where, spec.o, spec.def, spec.own
  local tokens = tokenize(where, spec.model, spec.rows, o.max_length)
  local given, read = own, nil
  if def.own then
    given, read = recorded(own)
  end
  local store
  local task
  local reading = 0 -- seconds, until the loop has asked for them

  local function read_reference(step)
    if not store then
      if not spec.reference and step > 0 then
        error(where .. ": the loss reads the reference for the first time after an update, but in_place = true "
          .. "gave it up", 0)
      end
      local began = core.now()
      store = reference_of(spec.reference or spec.model, tokens, spec.batches(task.n), o.bf16)
      if task.eval then
        task.eval.reference(step)
      end
      reading = reading + core.now() - began
    end
    return store
  end

  task = {
    where = where, label = spec.label or (def.own and "preference" or def.name), n = #spec.rows,
    counts = tokens.counts, reference = read_reference,
    weight = function()
      return 1
    end,
    trained = function(i)
      return n_tokens(tokens.chosen[i]) + n_tokens(tokens.rejected[i])
    end,
    tokens = function(i)
      return #tokens.chosen[i].ids + #tokens.rejected[i].ids
    end,
    row = function(i)
      return i
    end,
    shown = function(i)
      return tokens.chosen[i]
    end,
  }

  function task.micro(model, list, total, step)
    local sums, n = both(model, tokens, list), #list
    local p = pairs_of.new {
      chosen_logps = sums:select(2, 1),
      rejected_logps = sums:select(2, 2),
      chosen_tokens = counted(tokens.chosen, list),
      rejected_tokens = counted(tokens.rejected, list),
      ref_chosen_logps = function()
        return column(read_reference(step).chosen, list)
      end,
      ref_rejected_logps = function()
        return column(read_reference(step).rejected, list)
      end,
      reference_free = o.reference_free or nil,
    }
    local share = share_of(where, def.pairs(p, given), n, total)
    local stats = sums_of(p, def, own, list, store ~= nil or def.t0 ~= nil)
    stats.plain_loss = share:item() * total
    if o.sft_reg and o.sft_reg > 0 then
      share = share - p.chosen_logps:sum() * (o.sft_reg / total)
    end
    return share, stats
  end

  task.metrics = metrics_of

  function task.aside()
    local seconds = reading
    reading = 0
    return seconds
  end

  function task.first(record, sums, total)
    if read then
      for key in pairs(own) do
        if not read[key] then
          error(("%s: the loss did not read the option %s in the first step; is it misspelt?"):format(where,
            tostring(key)), 0)
        end
      end
    end
    if def.t0 and not o.reference_free then
      check_first(where, def, own, record, sums, total)
    end
  end

  function task.tensors()
    if not store then
      return {}
    end
    local out = { chosen = pl.tensor(store.chosen), rejected = pl.tensor(store.rejected) }
    for name, t in pairs(task.eval and task.eval.tensors() or {}) do
      out["eval/" .. name] = t
    end
    return out
  end

  function task.restore(saved)
    if saved.chosen then
      store = { chosen = saved.chosen:tolist(), rejected = saved.rejected:tolist() }
    end
    if task.eval then
      task.eval.restore { chosen = saved["eval/chosen"], rejected = saved["eval/rejected"] }
    end
  end

  if def.mixes_pairs and o.batch_size < 2 then
    error(("%s: the loss %s compares the pairs of a batch; it needs batch_size above 1"):format(where, def.name), 0)
  end
  return task
end

return preference
