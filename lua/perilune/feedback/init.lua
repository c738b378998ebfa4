--- Teachers and critics at work: demonstrate (a teacher answers prompts), sample (a
--- model answers them), join (two sets of answers side by side), compare (a critic
--- prefers, giving training data), rate (a critic gives numbers). All are stages: in
--- a recipe's run what is done is not done again.
local base = require("perilune.core").base
local ai = require "perilune.ai"
local common = require "perilune.feedback.common"
local judge = require "perilune.feedback.judge"
local options = require "perilune.options"
local progress = require "perilune.study.progress"
local stage = require "perilune.study.stage"
local standin = require "perilune.study.standin"

local feedback = {}

local function data() return require "perilune.data" end

local TEMPLATE = { type = "string", doc = "judge prompt of an AI service, see feedback.templates.names()" }
local CACHE = { type = "boolean", doc = "remember also outside a recipe" }

local DEMONSTRATE = {
  n = { 1, min = 1, doc = "answers to each prompt" },
  seed = { 0, doc = "of the teacher's draws" },
  max_tokens = { 128, min = 1, doc = "longest answer, where the teacher can be told" },
  temperature = { type = "number", min = 0, doc = "where the teacher can be told" },
  top_p = { type = "number", min = 0, max = 1, doc = "where the teacher can be told" },
  system = { type = "string", doc = "system prompt of an AI service" },
  finish = { "any", choices = { "any", "stop" },
    doc = "stop: answers that did not end by themselves (they ran into max_tokens) are dropped" },
  min_chars = { 0, min = 0, doc = "shorter answers are dropped" },
  max_chars = { math.maxinteger, min = 1, doc = "longer answers are dropped" },
  max_prompt_chars = { math.maxinteger, min = 1, doc = "longer prompts are not asked" },
  cache = CACHE,
}

-- What keeps an answer out of the data, or nil.
local function gate(reply, o)
  if type(reply) ~= "table" or type(reply.text) ~= "string" then return "invalid" end
  if not reply.text:find "%S" then return "empty" end
  if o.finish == "stop" and reply.finish ~= "stop" then return "cut" end
  local chars = utf8.len(reply.text) or #reply.text
  return (chars < o.min_chars or chars > o.max_chars) and "length" or nil
end

-- A progress line for providers that tell how far they are, and for model:generate, which tells its tokens.
local function watch(label, total)
  local bar = progress.start { label = label, total = total, unit = "answer" }
  return bar, function(now, figures)
    if type(now) ~= "table" then return bar:update(now, figures) end
    bar:update(now.done, { ["tokens/s"] = now.tokens / math.max(1e-9, base.now() - bar.began) })
  end
end

local function with(o, extra)
  for k, v in pairs(extra) do o[k] = v end
  return o
end

local function without(o, ...)
  local out = {}
  for k, v in pairs(o) do out[k] = v end
  for _, k in ipairs { ... } do out[k] = nil end
  return out
end

---A teacher's answers to prompts, as training data. What is dropped is counted: invalid and
---empty answers, those cut off (finish = "stop") and those of a wrong length.
---@param teacher any what pl.ai takes, or a client
---@param prompts any dataset or list of {prompt} or of strings
---@param opts? table see DEMONSTRATE
---@return perilune.Dataset rows {prompt, completion, ids?, finish, tokenizer?}; .counts {asked, kept, invalid, empty, cut, length, skipped}: kept to length add up to asked; skipped prompts were not
function feedback.demonstrate(teacher, prompts, opts)
  local o = options.resolve("feedback.demonstrate", DEMONSTRATE, opts)
  local client = ai.client(teacher)
  if o.system and not client.provider.whole then
    error(("feedback.demonstrate: %s takes no system prompt"):format(client.name), 0)
  end
  local list, skipped = {}, 0
  for _, prompt in ipairs(common.prompts("feedback.demonstrate", prompts)) do
    if (utf8.len(prompt) or #prompt) <= o.max_prompt_chars then
      list[#list + 1] = prompt
    else
      skipped = skipped + 1
    end
  end
  local function requests_of()
    local requests = {}
    for _, prompt in ipairs(list) do
      for index = 1, o.n do requests[#requests + 1] = { task = "demonstrate", prompt = prompt, index = index } end
    end
    return requests
  end
  return stage.remember {
    name = "demonstrate", kind = "dataset", cache = o.cache, inputs = { client, list }, options = without(o, "cache"),
    estimate = function()
      local plan = client:plan("demonstrate", requests_of(), o)
      plan.tokens = plan.tokens or #list * o.n * (common.prompt_tokens(list) + o.max_tokens)
      return plan
    end,
    standin = function()
      local rows = {}
      for _, prompt in ipairs(list) do
        for _ = 1, o.n do
          local completions = standin.list("completion", 1, { max_tokens = o.max_tokens })
          rows[#rows + 1] = { prompt = prompt, finish = "stop", completions = completions }
        end
      end
      return standin.dataset("demonstrations", rows)
    end,
    compute = function(ctx)
      local requests = requests_of()
      local bar, on_progress = watch("demonstrate", #requests)
      local replies = client:demonstrate(requests,
        with(without(o, "cache"), { on_progress = on_progress, stage = "demonstrate" }))
      bar:done()
      ctx.calls = #requests
      local rows = {}
      local counts = { asked = #requests, kept = 0, invalid = 0, empty = 0, cut = 0, length = 0, skipped = skipped }
      for i, reply in ipairs(replies) do
        local out = gate(reply, o)
        counts[out or "kept"] = counts[out or "kept"] + 1
        if not out then
          rows[#rows + 1] = {
            prompt = requests[i].prompt, completion = common.clean(reply.text), ids = reply.ids, finish = reply.finish,
            tokenizer = reply.tokenizer,
          }
        end
      end
      local out = data().from(rows)
      rawset(out, "counts", counts)
      return out
    end,
  }
end

local SAMPLE = {
  n = { 1, min = 1, doc = "answers to each prompt" },
  max_tokens = { 128, min = 1, doc = "longest answer" },
  temperature = { 1.0, type = "number", min = 0, doc = "0: greedy" },
  top_p = { type = "number", min = 0, max = 1 },
  top_k = { type = "integer", min = 0 },
  min_p = { type = "number", min = 0, max = 1 },
  dtype = common.DTYPE,
  stop = { type = "table", doc = "texts at which an answer ends" },
  seed = { 0, doc = "of the draws" },
  cache = CACHE,
}

---A model's answers to prompts.
---@param model perilune.Model
---@param prompts any dataset or list of {prompt} or of strings
---@param opts? table see SAMPLE
---@return perilune.Dataset rows {prompt, completions = {{text, ids, logprob, finish, tokenizer}, ...}}
function feedback.sample(model, prompts, opts)
  local o = options.resolve("feedback.sample", SAMPLE, opts)
  local list = common.prompts("feedback.sample", prompts)
  return stage.remember {
    name = "sample", kind = "dataset", cache = o.cache, inputs = { model, list }, options = without(o, "cache"),
    estimate = function()
      return { tokens = #list * o.n * o.max_tokens, note = "sampled here" }
    end,
    standin = function() return common.standin("samples", list, o.n, o.max_tokens) end,
    compute = function()
      local bar, on_progress = watch("sample", #list * o.n)
      local answers = model:generate(list, with(without(o, "cache"), { on_progress = on_progress }))
      bar:done()
      local tokenizer = model.tokenizer:hash()
      local rows = {}
      for i, prompt in ipairs(list) do
        local completions = {}
        for k = 1, o.n do
          local answer = answers[(i - 1) * o.n + k]
          completions[k] = {
            text = common.clean(answer.text), ids = answer.ids, logprob = answer.logprob, finish = answer.finish,
            tokenizer = tokenizer,
          }
        end
        rows[i] = { prompt = prompt, completions = completions }
      end
      return data().from(rows)
    end,
  }
end

local function named(answer, name)
  local out = type(answer) == "table" and without(answer) or { text = answer }
  out.source = name
  return out
end

local JOIN = { names = { type = "table", doc = "what the answers of each side are called" } }

---Two sets of answers side by side, matched by prompt in order of appearance:
---candidates for compare. Prompts that stand on one side only are dropped and counted.
---@param a perilune.Dataset demonstrations or samples
---@param b perilune.Dataset
---@param opts? {names: string[]?}
---@return perilune.Dataset rows {prompt, completions = {of a, of b}}; .counts {read, used, unmatched}
function feedback.join(a, b, opts)
  local o = options.resolve("feedback.join", JOIN, opts)
  local names = o.names or { "first", "second" }
  local function rows_of()
    local waiting, rows = {}, {}
    for _, row in ipairs(b:rows()) do
      local queue = waiting[row.prompt] or {}
      waiting[row.prompt] = queue
      for _, answer in ipairs(common.answers(row)) do queue[#queue + 1] = answer end
    end
    local asked = 0
    for _, row in ipairs(a:rows()) do
      for _, answer in ipairs(common.answers(row)) do
        asked = asked + 1
        local other = waiting[row.prompt] and table.remove(waiting[row.prompt], 1)
        if other then
          local answers = { named(answer, names[1]), named(other, names[2]) }
          rows[#rows + 1] = { prompt = row.prompt, completions = answers }
        end
      end
    end
    local left = 0
    for _, queue in pairs(waiting) do left = left + #queue end
    return rows, { read = asked, used = #rows, unmatched = asked - #rows + left }
  end
  if standin.is(a) or standin.is(b) then
    local prompts = {}
    for i = 1, math.min(#a, #b) do prompts[i] = a[i].prompt end
    return common.standin("candidates", prompts, 2)
  end
  -- The result is a function of the two: its hash is known before its rows are needed.
  return data().deferred {
    hash = base.sha256(table.concat({ "join", a:hash(), b:hash(), names[1], names[2] }, "\0")), load = rows_of,
  }
end

local COMPARE = {
  order = judge.ORDER,
  pairs = judge.PAIRS,
  seed = { 0, doc = "of the order coin and of an oracle's noise" },
  template = TEMPLATE,
  max_invalid = common.MAX_INVALID,
  cache = CACHE,
}

---Lets a critic compare the answers to each prompt; what it preferred is training data.
---Ties and invalid verdicts are left out of the rows and counted; two equal texts are
---a tie without a call. A judge's probability counts as preference above 0.5 or below.
---@param critic any what pl.ai takes, or a client
---@param candidates any rows {prompt, completions = {...}} with two or more answers each
---@param opts? table see COMPARE
---@return perilune.Dataset rows {prompt, chosen, rejected}; .counts {win, tie, loss, invalid, asked}, win = the first
function feedback.compare(critic, candidates, opts)
  local o = options.resolve("feedback.compare", COMPARE, opts)
  local client = ai.client(critic)
  local function pairs_of() return judge.pairs_of("feedback.compare", candidates, o.pairs) end
  local verdicts = judge.stage {
    name = "compare", client = client, inputs = { candidates }, pairs = pairs_of, order = o.order, seed = o.seed,
    template = o.template, max_invalid = o.max_invalid, cache = o.cache, options = { pairs = o.pairs },
  }
  if standin.is(verdicts) then
    local rows = {}
    for i, pair in ipairs(pairs_of()) do rows[i] = { prompt = pair.prompt } end
    return standin.dataset("preferences", rows)
  end
  local function preferences()
    local rows = {}
    for i, pair in ipairs(pairs_of()) do
      local code = verdicts.codes:sub(i, i)
      if code == "w" then
        rows[#rows + 1] = { prompt = pair.prompt, chosen = pair.a, rejected = pair.b }
      elseif code == "l" then
        rows[#rows + 1] = { prompt = pair.prompt, chosen = pair.b, rejected = pair.a }
      end
    end
    return rows
  end
  local source = type(candidates) == "table" and type(candidates.hash) == "function"
  if not source then
    local out = data().from(preferences())
    rawset(out, "counts", verdicts.counts)
    return out
  end
  return data().deferred {
    hash = base.sha256(table.concat({ "preferences", candidates:hash(), o.pairs, verdicts.codes }, "\0")),
    counts = verdicts.counts, load = preferences,
  }
end

local RATE = {
  seed = { 0, doc = "of an oracle's noise" },
  template = TEMPLATE,
  max_invalid = common.MAX_INVALID,
  cache = CACHE,
}

-- More different ratings than this are no scale but a measurement.
local MOST_GRADES = 20

-- How often each rating was given, from the lowest; nil where there are too many different ones.
local function distribution(ratings)
  local times, grades = {}, {}
  for _, rating in ipairs(ratings) do
    if not times[rating] then grades[#grades + 1] = rating end
    times[rating] = (times[rating] or 0) + 1
  end
  if #grades > MOST_GRADES then return nil end
  table.sort(grades)
  for i, rating in ipairs(grades) do grades[i] = { rating = rating, n = times[rating] } end
  return grades
end

-- A field that most rows lack; of a stand-in nothing is known.
local function optional(row, name)
  if standin.is(row) then return nil end
  return row[name]
end

---A critic's rating of each answer.
---@param critic any what pl.ai takes, or a client
---@param rows any rows {prompt, completion, reference?, turns?}
---@param opts? table see RATE
---@return perilune.Dataset the rows in their order with .rating (invalid ones left out); .counts {asked, rated,
--- invalid, mean, distribution = {{rating, n}, ...} from the lowest, where there are at most 20 different ones}
function feedback.rate(critic, rows, opts)
  local o = options.resolve("feedback.rate", RATE, opts)
  local client = ai.client(critic)
  client:check("rate", o)
  local function requests_of()
    local requests = {}
    for i = 1, #rows do
      local row = rows[i]
      requests[i] = {
        task = "rate", prompt = row.prompt, answer = common.answers(row)[1],
        reference = optional(row, "reference"), turns = optional(row, "turns"),
      }
    end
    return requests
  end
  return stage.remember {
    name = "rate", kind = "dataset", cache = o.cache, inputs = { client, rows },
    options = { seed = o.seed, template = o.template },
    estimate = function() return client:plan("rate", requests_of(), { seed = o.seed, template = o.template }) end,
    standin = function() return standin.dataset("ratings", standin.is(rows) and rows:rows() or rows) end,
    compute = function(ctx)
      local requests = requests_of()
      local bar, on_progress = watch("rate", #requests)
      local guard = common.guard("feedback.rate", client, o.max_invalid)
      local replies = client:rate(requests, {
        seed = o.seed, template = o.template, stage = "rate", on_invalid = guard.on_invalid,
        on_progress = function(done, figures)
          on_progress(done, figures)
          guard.early(done)
        end,
      })
      bar:done()
      ctx.calls = #requests
      local out, ratings = {}, {}
      for i = 1, #rows do
        if type(replies[i]) == "number" then
          out[#out + 1], ratings[#ratings + 1] = without(rows[i]), replies[i]
          out[#out].rating = replies[i]
        end
      end
      guard.finish(#requests, #requests - #ratings)
      local sum = 0
      for _, rating in ipairs(ratings) do sum = sum + rating end
      local set = data().from(out)
      rawset(set, "counts", {
        asked = #requests, rated = #ratings, invalid = #requests - #ratings,
        mean = #ratings > 0 and sum / #ratings or nil, distribution = distribution(ratings),
      })
      return set
    end,
  }
end

---A check of a judge before it is paid for much: adversarial answers, clear pairs, both orders.
---@param critic any what pl.ai takes, or a client
---@param opts? {template: string?, prompts: table[]?, seed: integer?, cache: boolean?}
---@return perilune.Probe
function feedback.probe(critic, opts) return require "perilune.feedback.probe"(critic, opts) end

---Several judges on the same pairs: majority, agreement, and what each leans to.
---@param critics any[] two or more of what pl.ai takes, or clients
---@param candidates any rows {prompt, completions} or {prompt, a, b}
---@param opts? table as for compare
---@return perilune.Panel
function feedback.panel(critics, candidates, opts)
  return require "perilune.feedback.panel"(critics, candidates, opts)
end

local wrap = require "perilune.feedback.wrap"
feedback.wrap, feedback.unwrap = wrap.wrap, wrap.unwrap

---The judge prompts: feedback.templates.names(), feedback.templates.get(name).
feedback.templates = require "perilune.feedback.templates"

return feedback
