-- Models as directories: against transformers' numbers, back and forth, and what is refused.
local T = require "tests.lua.harness"
local pl = require "perilune"
local core = require "perilune.core"
local base = core.base

local GOLDEN = "tests/golden/lm"
local golden = base.json_read(GOLDEN .. "/logprobs.json")

-- log-probabilities of every row against the stored ones
local function matches(m, g, tol)
  local lp = pl.no_grad(function() return (m:logprobs(g.rows)) end)
  for i, want in ipairs(g.logprobs) do
    for t, v in ipairs(want) do
      T.near(lp[i][t]:item(), v, tol, ("row %d, token %d"):format(i, t + 1))
    end
    for t = #want + 1, lp:size(2) do T.eq(lp[i][t]:item(), 0.0) end
  end
end

-- gradients of the mean log-probability over all tokens, as the file lays the weights out
local function gradients_match(m, g, tol)
  local n = 0
  for _, row in ipairs(g.rows) do n = n + #row - 1 end
  (m:logprobs(g.rows):sum() / n):backward()
  local parts, order = {}, {}
  for i, w in ipairs(m.weights) do
    local at = m.family.stored and m.family.stored(w.name) or { tensor = m.params[i].name }
    local grad = m.params[i].grad
    if not parts[at.tensor] then order[#order + 1] = at.tensor end
    parts[at.tensor] = parts[at.tensor] or {}
    parts[at.tensor][at.part or 1] = at.transposed and grad:t() or grad
  end
  local names = 0
  for _ in pairs(g.gradients) do names = names + 1 end
  T.eq(#order, names)
  for _, name in ipairs(order) do
    local want = g.gradients[name]
    T.ok(want, name)
    local all = #parts[name] > 1 and pl.cat(parts[name], -1) or parts[name][1]
    local size, sine, cosine = 0, 0, 0
    for i, v in ipairs(all:reshape(-1):tolist()) do
      size, sine, cosine = size + math.abs(v), sine + v * math.sin(i), cosine + v * math.cos(0.7 * (i - 1))
    end
    for k, v in ipairs { size, sine, cosine } do
      T.near(v, want[k], tol * math.max(1, want[1]), ("%s, number %d"):format(name, k))
    end
  end
end

for _, name in ipairs { "tied", "untied", "half", "bias", "gpt2", "gpt2-untied" } do
  T.test("transformers_" .. name, function()
    local m = pl.load(GOLDEN .. "/" .. name)
    matches(m, golden[name], 1e-4)
    gradients_match(m, golden[name], 1e-4)
  end)
end

for _, name in ipairs { "tied", "untied", "half" } do
  T.test("transformers_greedy_" .. name, function()
    local m = pl.load(GOLDEN .. "/" .. name)
    local out = m:generate({ golden[name].prompt }, { temperature = 0, max_tokens = #golden[name].greedy })
    local want = golden[name].greedy
    for t, id in ipairs(out[1].ids) do T.eq(id, want[t]) end
    T.ok(out[1].finish == "length" or out[1].ids[#out[1].ids] == 2)
  end)
end

T.test("transformers_stories260K", function()
  local m = pl.load(T.need_shared() .. "/data/models/stories260K")
  T.eq(m:num_parameters(), 260032)
  matches(m, golden.stories260K, 1e-4)
end)

local function write(path, text)
  local f = assert(io.open(path, "wb"))
  f:write(text)
  f:close()
end

local function read(path)
  local f = assert(io.open(path, "rb"))
  local s = f:read "a"
  f:close()
  return s
end

-- A copy of a golden directory with changes to its config.
local made = 0
local function copy_of(name, change)
  made = made + 1
  local dir = ("%s/copy-%d"):format(T.tmpdir(), made)
  assert(os.execute(("cp -r '%s/%s' '%s'"):format(GOLDEN, name, dir)))
  local config = base.json_read(dir .. "/config.json")
  for k, v in pairs(change or {}) do config[k] = v end
  write(dir .. "/config.json", base.json_encode(config))
  return dir
end

T.test("save_and_load_again", function()
  for _, name in ipairs { "tied", "untied", "half" } do
    local m = pl.load(GOLDEN .. "/" .. name)
    local dir = T.tmpdir() .. "/saved-" .. name
    T.eq(m:save(dir), true)
    local again = pl.load(dir)
    T.ok(again:logprobs(golden[name].rows):equal((m:logprobs(golden[name].rows))))
    T.eq(base.json_read(dir .. "/config.json").torch_dtype, "float32")
    T.eq(again:stop_ids(), { 2 })
    m:save(dir) -- over the model that is there
    T.eq(pl.load(dir):hash(), again:hash())
    T.eq(#base.list_dir(dir), 3)
  end
  T.ok(#base.list_dir(T.tmpdir()) >= 3)
  for _, f in ipairs(base.list_dir(T.tmpdir())) do T.ok(not f:find "%.tmp%-" and not f:find "%.old%-", f) end
end)

-- Runs f, stopped after the n-th call that moves or removes something: as Ctrl-C does.
local function stopped_after(n, f)
  local real, calls = {}, 0
  for _, name in ipairs { "rename", "replace", "remove_tree" } do
    real[name] = base[name]
    base[name] = function(...)
      local ok, why = real[name](...)
      calls = calls + 1
      if calls == n then error "stopped here" end
      return ok, why
    end
  end
  local ok, why = pcall(f)
  for name, was in pairs(real) do base[name] = was end
  return not ok, why
end

T.test("save_over_a_model_is_whole_or_not_at_all", function()
  local a, b = pl.load(GOLDEN .. "/tied"), pl.load(GOLDEN .. "/untied")
  local dir, n, seen = T.tmpdir() .. "/replaced", 0, {}
  repeat
    n = n + 1
    a:save(dir)
    local stopped, why = stopped_after(n, function() b:save(dir) end)
    if stopped then T.ok(tostring(why):find "stopped here", why) end
    local hash = pl.load(dir):hash()
    T.ok(hash == a:hash() or hash == b:hash(), "neither the one nor the other")
    seen[hash] = true
  until not stopped
  T.ok(n > 2 and seen[a:hash()] and seen[b:hash()])
end)

T.test("a_model_set_aside_is_told_of", function()
  local dir = T.tmpdir() .. "/gone"
  T.raises(pl.load, "gone: no such directory$", dir)
  assert(base.mkdirs(dir .. ".old-12"))
  T.raises(pl.load, "a save was cut short, and what was there is " .. dir .. ".old-12: rename it to " .. dir, dir)
end)

T.test("save_refuses_what_is_no_model", function()
  local m = pl.load(GOLDEN .. "/tied")
  local dir = T.tmpdir() .. "/other"
  assert(base.mkdirs(dir))
  write(dir .. "/precious.txt", "x")
  T.raises(m.save, "holds other files", m, dir)
  T.raises(m.save, "is a file", m, dir .. "/precious.txt")
  T.raises(m.save, "wanted a directory's path", m)
  T.eq(read(dir .. "/precious.txt"), "x")
end)

T.test("freeze_takes_names_of_its_weights_only", function()
  local m = pl.load(GOLDEN .. "/untied")
  local names = { "lm_head.weight", "model.norm.weight" }
  m:freeze(names)
  local before = m:frozen()
  table.sort(before)
  T.eq(before, names)
  local cases = {
    { { "model.norm.weight", "model.embed_token.weight" }, 'did you mean "model.embed_tokens.weight"' },
    { { "nothing.like.it" }, 'unknown weight "nothing.like.it" (known: ' },
    { "model.norm.weight", 'wanted a list of weights\' names, got "model.norm.weight"' },
    { { ["model.norm.weight"] = true }, "got model.norm.weight = a boolean in it" },
    { { 3 }, "got 1 = a number in it" },
    { m:parameters()[1], "got a userdata" },
  }
  for _, case in ipairs(cases) do
    T.raises(m.freeze, case[2], m, case[1])
    T.eq(#m:frozen(), 2) -- an error changes nothing
  end
  T.raises(m.freeze, "got a nil", m)
  T.raises(function() pl.load(GOLDEN .. "/tied"):freeze { "lm_head.weight" } end, "unknown weight")
  T.eq(m:freeze({}):frozen(), {})
end)

T.test("tokenizer_files_are_kept", function()
  local from = T.need_shared() .. "/data/models/stories260K"
  local m = pl.load(from)
  local dir = T.tmpdir() .. "/stories"
  m:save(dir)
  for _, f in ipairs { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json" } do
    T.eq(read(dir .. "/" .. f), read(from .. "/" .. f), f)
  end
  local again = pl.load(dir)
  T.eq(again:hash(), m:hash())
  T.eq(again:stop_ids(), { 1, 2 })
  T.eq(again:end_token(), 2)
end)

T.test("refusals_name_what_is_wrong", function()
  local cases = {
    { { model_type = "lama" }, 'did you mean "llama"' },
    { { model_type = "mamba" }, 'unknown model_type "mamba"' },
    { { attention_bias = true }, "8 tensors are missing: model.layers.0.self_attn.k_proj.bias" },
    { { mlp_bias = true }, "6 tensors are missing: model.layers.0.mlp.down_proj.bias" },
    { { mlp_bias = "no" }, "mlp_bias is no; wanted a boolean" },
    { { rms_norm_eps = "1e-5" }, "rms_norm_eps is 1e-5; wanted a number" },
    { { hidden_act = "gelu" }, 'hidden_act "gelu" is not supported' },
    { { rope_parameters = { rope_type = "yarn", factor = 2.0 } }, 'rope_parameters of type "yarn"' },
    { { rope_scaling = { type = "dynamic", factor = 2.0 } }, 'rope_scaling of type "dynamic"' },
    { { quantization_config = { bits = 4 } }, "quantised weights" },
    { { hidden_size = 0 }, "hidden_size is 0; wanted a positive integer" },
    { { num_attention_heads = 3 }, "cannot share" },
    { { intermediate_size = 21 }, "has shape [20, 16]; config.json asks for [21, 16]" },
    { { num_hidden_layers = 3 }, "9 tensors are missing: model.layers.2" },
    { { num_hidden_layers = 1 }, "9 tensors that a LlamaForCausalLM does not have: model.layers.1" },
    { { tie_word_embeddings = false }, "1 tensors are missing: lm_head.weight (config.json does not say tie" },
  }
  for _, case in ipairs(cases) do
    local dir = copy_of("tied", case[1])
    local message = T.raises(pl.load, case[2], dir)
    T.ok(message:find(dir, 1, true) or message:find "decoder:", message)
  end
  T.raises(pl.load, "is true, but lm_head.weight is in the file and differs", copy_of("untied", { tie_word_embeddings = true }))
  T.raises(pl.load, "no such directory", T.tmpdir() .. "/nowhere")
  T.raises(pl.load, "is a file; wanted a Hugging Face directory", GOLDEN .. "/logprobs.json")
  T.raises(pl.load, "holds no config.json", "tests/golden")
  T.raises(pl.load, "wanted a directory's path, got a nil")
end)

T.test("damaged_directories", function()
  local dir = copy_of "tied"
  local path = dir .. "/model.safetensors"
  local bytes = read(path)
  write(path, bytes:sub(1, #bytes - 1))
  T.raises(pl.load, path, dir)
  os.remove(path)
  T.raises(pl.load, "no model.safetensors", dir)
  write(dir .. "/pytorch_model.bin", "PK")
  T.raises(pl.load, "pytorch_model.bin is a pickle, which can run code", dir)
  write(dir .. "/config.json", "{")
  T.raises(pl.load, "config.json", dir)
  dir = copy_of "untied"
  local index = base.json_read(dir .. "/model.safetensors.index.json")
  index.weight_map["lm_head.weight"] = "model-00001-of-00005.safetensors"
  write(dir .. "/model.safetensors.index.json", base.json_encode(index))
  T.raises(pl.load, 'says that "lm_head.weight" is in', dir)
  index.weight_map["lm_head.weight"] = "../tied/model.safetensors"
  write(dir .. "/model.safetensors.index.json", base.json_encode(index))
  T.raises(pl.load, "is not a file name", dir)
  dir = copy_of "untied"
  os.remove(dir .. "/model-00003-of-00005.safetensors")
  T.raises(pl.load, "model-00003-of-00005.safetensors", dir)
end)

local SMALL = { vocab_size = 11, hidden_size = 8, intermediate_size = 12, num_hidden_layers = 1, num_attention_heads = 2 }

T.test("new_models", function()
  local a, b = pl.models.new(SMALL, { seed = 4 }), pl.models.new(SMALL, { seed = 4 })
  local c = pl.models.new(SMALL, { seed = 5 })
  T.eq(a:hash(), b:hash())
  T.ok(a:hash() ~= c:hash())
  T.eq(a:num_parameters(), 11 * 8 * 2 + 8 * 3 + 4 * 64 + 3 * 96)
  local std = a:state_dict()["model.layers.0.mlp.up_proj.weight"]:std():item()
  T.ok(std > 0.01 and std < 0.03)
  T.eq(a:state_dict()["model.norm.weight"]:sum():item(), 8.0)
  T.raises(pl.models.new, "vocab_size is missing", { hidden_size = 8 })
  T.raises(pl.models.new, 'unknown option "sede"', SMALL, { sede = 1 })
  T.raises(a.score, "has no tokenizer", a, { "text" })
end)

T.test("clone_is_apart", function()
  local a = pl.models.new(SMALL, { seed = 4 })
  local hash = a:hash()
  local b = a:clone()
  T.eq(b:hash(), hash)
  pl.no_grad(function() b:parameters()[1]:mul_(2) end)
  T.ok(b:hash() ~= hash, "the hash follows in-place changes")
  T.eq(a:hash(), hash)
  b.config.vocab_size = 12
  T.eq(a.config.vocab_size, 11)
end)

T.test("parameters_and_print", function()
  local m = pl.models.new(SMALL, { seed = 1 })
  local names = {}
  for i, p in ipairs(m:parameters()) do names[i] = p.name end
  T.eq(names, { "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight" })
  local text = tostring(m)
  T.ok(text:find("LlamaForCausalLM: 744 parameters", 1, true), text)
  T.ok(text:find("self_attn.q_proj", 1, true), text)
end)

T.test("gradient_reaches_every_weight", function()
  local m = pl.load(GOLDEN .. "/untied")
  local rows = { { prompt = { 1, 5, 9 }, completion = { 2, 33, 60 } }, { 3, 4, 5, 6 } }
  local s = m:score(rows)
  T.eq(s:shape(), { 2 })
  s:sum():backward()
  -- finite differences along a random direction in every weight
  local ps = m:parameters()
  local slope, dirs = 0, {}
  for i, p in ipairs(ps) do
    T.ok(p.grad:abs():sum():item() > 0, p.name)
    local at = p:shape()
    at[#at + 1] = { seed = i }
    dirs[i] = pl.randn(table.unpack(at))
    slope = slope + (p.grad * dirs[i]):sum():item()
  end
  local function at(h)
    return pl.no_grad(function()
      for i, p in ipairs(ps) do p:add_(dirs[i] * h) end
      local v = m:score(rows):sum():item()
      for i, p in ipairs(ps) do p:sub_(dirs[i] * h) end
      return v
    end)
  end
  local h = 1e-3
  T.near((at(h) - at(-h)) / (2 * h) / slope, 1, 2e-2)
end)

---- GPT-2

local TINY = { model_type = "gpt2", vocab_size = 11, n_embd = 8, n_layer = 2, n_head = 2, n_positions = 16 }

-- name -> tensor of a directory's one file
local function file_of(dir)
  local st = assert(core.format.safetensors_open(dir .. "/model.safetensors"))
  local out = {}
  for _, name in ipairs(st:names()) do out[name] = st:tensor(name):clone() end
  st:close()
  return out
end

local function same_tensors(a, b)
  for name, t in pairs(a) do T.ok(b[name] and t:equal(b[name]), name) end
  for name in pairs(b) do T.ok(a[name], name) end
end

-- Six letters, then the six in order: each must be the likeliest of the three. (The sixth has no room in the context.)
T.test("gpt_nano_sort", function()
  local from = T.need_shared() .. "/data/models/gpt-nano-sort"
  local m = pl.load(from)
  T.eq(m:num_parameters(), 85728)
  local rows, at = {}, {}
  for n = 0, 728, 7 do
    local letters, k = {}, n
    for i = 1, 6 do letters[i], k = k % 3, k // 3 end
    local sorted = table.move(letters, 1, 6, 1, {})
    table.sort(sorted)
    for t = 1, 5 do
      for id = 0, 2 do
        local ids = table.move(sorted, 1, t - 1, 7, table.move(letters, 1, 6, 1, {}))
        ids[#ids + 1] = id
        rows[#rows + 1] = { ids = ids, start = #ids }
        at[#at + 1] = id == sorted[t]
      end
    end
  end
  local lp = pl.no_grad(function() return (m:completion_logprobs(rows)):tolist() end)
  for i, right in ipairs(at) do
    if right then T.ok(lp[i] > math.log(0.5), "row " .. i) end
  end
  local dir = T.tmpdir() .. "/sort"
  m:save(dir)
  same_tensors(file_of(from), file_of(dir))
  T.ok(read(dir .. "/config.json"):find '"eos_token_id": null')
  T.eq(pl.load(dir):hash(), m:hash())
end)

T.test("gpt2_saves_what_it_read", function()
  local m = pl.load(GOLDEN .. "/gpt2")
  local dir = T.tmpdir() .. "/gpt2"
  m:save(dir)
  same_tensors(file_of(GOLDEN .. "/gpt2"), file_of(dir))
  local config = base.json_read(dir .. "/config.json")
  T.eq({ config.architectures, config.n_embd, config.tie_word_embeddings }, { { "GPT2LMHeadModel" }, 15, true })
  local again = pl.load(GOLDEN .. "/gpt2-untied")
  again:save(dir) -- bf16 in shards becomes f32 in one file
  T.eq(pl.load(dir):hash(), again:hash())
end)

-- As the model without its head is published: no "transformer.", and the masks of old exports.
T.test("gpt2_by_short_names", function()
  local want = pl.load(GOLDEN .. "/gpt2")
  local dir = copy_of "gpt2"
  local long, short = file_of(dir), {}
  for name, t in pairs(long) do short[name:gsub("^transformer%.", "")] = t end
  short["h.0.attn.bias"], short["h.1.attn.masked_bias"] = pl.zeros(1, 1, 64, 64), pl.zeros(1)
  core.format.safetensors_write(dir .. "/model.safetensors", short)
  T.eq(pl.load(dir):hash(), want:hash())
  short["transformer.wpe.weight"] = pl.zeros(64, 15)
  core.format.safetensors_write(dir .. "/model.safetensors", short)
  T.raises(pl.load, "holds both transformer.wpe.weight and wpe.weight", dir)
  short["transformer.wpe.weight"], short["h.0.attn.c_attn.weight"] = nil, pl.zeros(45, 15)
  core.format.safetensors_write(dir .. "/model.safetensors", short)
  T.raises(pl.load, "h.0.attn.c_attn.weight has shape [45, 15]; config.json asks for [15, 45]", dir)
  short["h.0.attn.c_attn.weight"] = nil
  core.format.safetensors_write(dir .. "/model.safetensors", short)
  T.raises(pl.load, "1 tensors are missing: transformer.h.0.attn.c_attn.weight", dir)
  short["h.0.attn.c_attn.weight"], short["h.0.crossattention.q_attn.bias"] = long["transformer.h.0.attn.c_attn.weight"], pl.zeros(15)
  core.format.safetensors_write(dir .. "/model.safetensors", short)
  T.raises(pl.load, "1 tensors that a GPT2LMHeadModel does not have: h.0.crossattention.q_attn.bias", dir)
end)

T.test("gpt2_refusals", function()
  local cases = {
    { { activation_function = "gelu" }, 'activation_function "gelu" is not supported' },
    { { activation_function = "relu" }, 'activation_function "relu" is not supported' },
    { { activation_function = 3 }, "activation_function is 3; wanted a string" },
    { { scale_attn_by_inverse_layer_idx = true }, "scale_attn_by_inverse_layer_idx = true is not supported" },
    { { add_cross_attention = true }, "add_cross_attention = true is not supported" },
    { { scale_attn_weights = false }, "scale_attn_weights = false is not supported" },
    { { pruned_heads = { ["0"] = { 1 } } }, "pruned_heads is not supported" },
    { { quantization_config = { bits = 4 } }, "quantised weights" },
    { { n_embd = 16 }, "n_embd = 16 does not divide into n_head = 3 heads" },
    { { n_head = 0 }, "n_head is 0; wanted a positive integer" },
    { { n_layer = "2" }, "n_layer is 2; wanted a positive integer" },
    { { n_inner = -4 }, "n_inner is -4; wanted a positive integer" },
    { { n_inner = 61 }, "c_fc.weight has shape [15, 60]; config.json asks for [15, 61]" },
    { { n_positions = 32 }, "wpe.weight has shape [64, 15]; config.json asks for [32, 15]" },
    { { vocab_size = 1 << 40 }, "the vocabulary size is 1099511627776" },
    { { layer_norm_epsilon = -1.0 }, "eps -1" },
    { { layer_norm_epsilon = "x" }, "layer_norm_epsilon is x; wanted a number" },
    { { tie_word_embeddings = "false" }, "tie_word_embeddings is false; wanted a boolean" },
    { { tie_word_embeddings = false }, "1 tensors are missing: lm_head.weight (config.json does not say tie" },
    { { n_layer = 1 }, "12 tensors that a GPT2LMHeadModel does not have: transformer.h.1" },
    { { n_layer = 3 }, "12 tensors are missing: transformer.h.2" },
    { { model_type = "gpt-2" }, 'did you mean "gpt2"' },
  }
  for _, case in ipairs(cases) do T.raises(pl.load, case[2], copy_of("gpt2", case[1])) end
  pl.load(copy_of("gpt2", { activation_function = "gelu_pytorch_tanh", reorder_and_upcast_attn = true }))
end)

T.test("every_architecture_generates", function()
  for _, name in ipairs { "bias", "gpt2" } do
    local m = pl.load(GOLDEN .. "/" .. name)
    local out = m:generate({ { 1, 2 }, { 3, 4, 5 } }, { n = 2, max_tokens = 12, seed = 4 })
    local sums = m:score(out):tolist()
    for i, answer in ipairs(out) do T.near(sums[i], answer.logprob, 1e-4 * #answer.ids, name) end
  end
end)

T.test("gpt2_new", function()
  local m = pl.models.new(TINY, { seed = 3 })
  T.eq(m:num_parameters(), (11 + 16) * 8 + 2 * (12 * 64 + 13 * 8) + 16)
  local w = m:state_dict()
  T.eq(w["transformer.h.1.ln_2.weight"]:sum():item(), 8.0)
  for name, p in pairs(w) do
    if name:find "bias$" then T.eq(p:abs():sum():item(), 0.0, name) end
  end
  local big = pl.models.new({ model_type = "gpt2", vocab_size = 500, n_embd = 64, n_layer = 8, n_head = 4 }, { seed = 3 })
  w = big:state_dict()
  T.eq(big.shape.context, 1024)
  for _, name in ipairs { "wte", "wpe", "h.0.attn.c_attn.v", "h.7.mlp.c_fc" } do
    T.near(w["transformer." .. name .. ".weight"]:std():item(), 0.02, 1e-3, name)
  end
  for _, name in ipairs { "attn.c_proj", "mlp.c_proj" } do
    T.near(w["transformer.h.3." .. name .. ".weight"]:std():item(), 0.005, 5e-4, name)
  end
  local text = tostring(m)
  T.ok(text:find("GPT2LMHeadModel: 1,976 parameters", 1, true) and text:find("transformer.h, 2 of 872 parameters", 1, true), text)
  local copy = m:clone()
  T.eq(copy:hash(), m:hash())
  local long = {}
  for i = 1, 17 do long[i] = i % 11 end
  T.raises(m.score, "the limit is 16", m, { long })
end)

T.done()
