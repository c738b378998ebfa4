--- report.html: one self-contained page about a run, made of what the run noted and
--- what the recipe returned. It knows no recipe: claims, arms and other lists of rows
--- in a result, train histories, samples and verdicts have a form of their own, the
--- rest becomes tables.
local base = require("perilune.core").base
local columns = require "perilune.study.columns"
local html = require "perilune.study.html"
local progress = require "perilune.study.progress"
local svg = require "perilune.study.svg"

local report = {}

local text, number = html.text, html.number

local function section(title, body) return ("<section><h2>%s</h2>%s</section>\n"):format(text(title), body) end

local function card(body, class) return ("<div class=\"card %s\">%s</div>"):format(class or "", body) end

local PILL = { yes = "yes", no = "no", undecided = "undecided" }

local function signed(v) return (v >= 0 and "+" or "−") .. number(math.abs(v), 1) end

-- ------------------------------------------------------------------ claims

local function is_effect(row) return type(row) == "table" and row.effect and row.ci_low and row.ci_high end

local function effects(rows, margin)
  local reach = 1
  for _, row in ipairs(rows) do
    reach = math.max(reach, math.abs(row.effect), math.abs(row.ci_low), math.abs(row.ci_high))
  end
  local out = {}
  for i, row in ipairs(rows) do
    local holds = row.holds and ("<span class=\"pill %s\">%s</span>"):format(PILL[row.holds] or "none", text(row.holds))
      or ""
    local words = ("<strong>%s</strong><br><span class=soft>%s points, 95 %%: %s to %s</span>"):format(
      text(row.text or row.name or ""), signed(row.effect), signed(row.ci_low), signed(row.ci_high))
    local line = svg.interval {
      effect = row.effect, ci_low = row.ci_low, ci_high = row.ci_high, margin = margin, reach = reach * 1.1,
    }
    out[i] = card(("<div>%s</div><div>%s</div><div>%s</div>"):format(holds, words, line), "claim")
  end
  return "<div class=cards>" .. table.concat(out) .. "</div>"
end

-- -------------------------------------------------------------------- arms

local function arms(rows)
  local win, quality = {}, {}
  for i, arm in ipairs(rows) do
    local colour = i == 1 and "soft" or nil
    win[i] = {
      label = arm.name, value = arm.win_rate, ci_low = arm.ci_low, ci_high = arm.ci_high, points = arm.win_seeds,
      colour = colour,
    }
    if arm.true_quality then
      quality[#quality + 1] = {
        label = arm.name, value = arm.true_quality, ci_low = arm.quality_low, ci_high = arm.quality_high,
        points = arm.quality_seeds, colour = colour,
      }
    end
  end
  local panels = {}
  if #quality > 0 then
    panels[1] = card("<h3>True quality, %</h3>"
      .. svg.bars { rows = quality, max = 100, label = "true quality by arm" })
  end
  panels[#panels + 1] = card("<h3>Judged win rate, % (dashed: 50)</h3>"
    .. svg.bars { rows = win, max = 100, mark = 50, colour = "bar2", label = "win rate by arm" })
  return ("<div class=\"%s\">%s</div>%s"):format(#panels == 2 and "two" or "", table.concat(panels),
    "<p class=soft>Bars are means; lines are 95 % intervals; circles are single seeds.</p>")
end

-- ------------------------------------------------------------ lists of rows

local is_rows = columns.is_rows

local function cell(value) return text(columns.show(value)) end

local function rows_table(rows)
  local titles, cells, numeric = columns.of(rows)
  for _, row in ipairs(cells) do
    for c = 1, #titles do row[c] = text(row[c]) end
  end
  return html.table(titles, cells, numeric)
end

-- ----------------------------------------------------------------- samples

local VERDICT_CLASS = { win = "yes", loss = "no", tie = "none", invalid = "undecided" }

local function chip(verdict)
  if not verdict then return "" end
  return (" <span class=\"chip %s\">%s</span>"):format(VERDICT_CLASS[verdict] or "none", text(verdict))
end

local function answer(a)
  local score = ""
  if a.score then
    score = (" <span class=soft>%s</span>"):format(number(a.score, math.type(a.score) == "float" and 1 or nil))
  end
  return ("<div class=\"answer%s\"><div class=who><span>%s</span><span>%s%s</span></div><pre>%s</pre></div>"):format(
    a.better and " better" or "", text(a.label or ""), score, chip(a.verdict), text(a.text or ""))
end

local function samples(rows)
  local out = {}
  for i, row in ipairs(rows) do
    local answers = {}
    for k, a in ipairs(row.answers or {}) do answers[k] = answer(a) end
    out[i] = card(("<div class=prompt>%s</div>%s<div class=answers>%s</div>"):format(text(row.prompt or ""),
      row.verdict and chip(row.verdict) or "", table.concat(answers)))
  end
  return "<div class=cards>" .. table.concat(out) .. "</div>"
end

-- Verdicts with their texts, as judge stages kept them: a few of each arm's first seed.
local function judged(run)
  local rows, seen = {}, {}
  for _, verdict in ipairs(run.verdicts) do
    local name = verdict.arm or "model"
    if not seen[name] and type(verdict.result) == "table" then
      seen[name] = true
      for i, e in ipairs(verdict.result.examples or {}) do
        if i > 6 then break end
        rows[#rows + 1] = {
          prompt = e.prompt,
          answers = {
            { label = name, text = e.a, verdict = e.verdict, better = e.verdict == "win" },
            { label = "against", text = e.b, better = e.verdict == "loss" },
          },
        }
      end
    end
  end
  return rows
end

-- ------------------------------------------------------------------ curves

-- What to draw of a train history, in this order; each list is one chart.
local CHARTS = {
  { title = "loss", keys = { "loss" } },
  { title = "reward margin", keys = { "rewards/margins" }, zero = true },
  { title = "rewards: chosen, rejected", keys = { "rewards/chosen", "rewards/rejected" }, zero = true },
  { title = "log-probabilities: chosen, rejected", keys = { "logps/chosen", "logps/rejected" } },
  { title = "reward accuracy", keys = { "rewards/accuracies" } },
}
local COLOURS = { "one", "two" }

local function group_curves(run)
  local groups, order = {}, {}
  for _, curve in ipairs(run.curves_of) do
    local id = (curve.arm or "") .. "\0" .. curve.name
    if not groups[id] then
      groups[id] = { title = curve.arm and ("%s: %s"):format(curve.arm, curve.name) or curve.name, curves = {} }
      order[#order + 1] = groups[id]
    end
    table.insert(groups[id].curves, curve)
  end
  return order
end

local function column(history, key)
  local xs, ys = {}, {}
  for i, row in ipairs(history) do
    if type(row[key]) == "number" then
      xs[#xs + 1], ys[#ys + 1] = row.step or i, row[key]
    end
  end
  return xs, ys
end

local function chart(group, spec)
  local series = {}
  for _, curve in ipairs(group.curves) do
    for k, key in ipairs(spec.keys) do
      local xs, ys = column(curve.history, key)
      if #xs > 1 then
        series[#series + 1] = {
          x = xs, y = ys, colour = COLOURS[k], opacity = #group.curves > 1 and 0.7 or 1,
          label = key .. (curve.seed ~= nil and ", seed " .. tostring(curve.seed) or ""),
        }
      end
    end
  end
  if #series == 0 then return "" end
  local key = ""
  if #spec.keys == 2 then
    key = "<br><span style=\"color:var(--one)\">■</span> chosen <span style=\"color:var(--two)\">■</span> rejected"
  end
  return card(("<h3>%s: %s%s</h3>%s"):format(text(group.title), text((spec.title:gsub(":.*", ""))), key,
    svg.curves { series = series, zero = spec.zero, label = group.title .. " " .. spec.title }), "chart")
end

local function curves(run)
  local out = {}
  for _, group in ipairs(group_curves(run)) do
    for _, spec in ipairs(CHARTS) do
      local drawn = chart(group, spec)
      if drawn ~= "" then out[#out + 1] = drawn end
    end
  end
  if #out == 0 then return "" end
  return section("Training",
    "<p class=soft>One line a seed.</p><div class=charts>" .. table.concat(out) .. "</div>")
end

-- ------------------------------------------------------------ own sections

local OWN = {
  note = function(s) return "<p>" .. text(s.text) .. "</p>" end,
  bars = function(s)
    return section(s.title, card(svg.bars { rows = s.rows, unit = s.unit, max = s.max, label = s.title }))
  end,
  curves = function(s)
    for i, series in ipairs(s.series) do series.colour = series.colour or COLOURS[(i - 1) % #COLOURS + 1] end
    local drawn = svg.curves { series = s.series, x = s.x, label = s.title }
    return section(s.title, "<div class=charts>" .. card(drawn) .. "</div>")
  end,
  table = function(s)
    local rows, numeric = {}, {}
    for i, row in ipairs(s.rows) do
      rows[i] = {}
      for c = 1, #s.columns do
        rows[i][c] = cell(row[c])
        numeric[c] = numeric[c] ~= false and type(row[c]) == "number"
      end
    end
    return section(s.title, html.table(s.columns, rows, numeric))
  end,
  samples = function(s) return section(s.title, samples(s.rows)) end,
}

-- ------------------------------------------------------------------ ledger

local function ledger(run)
  local rows, seconds, calls, kept = {}, 0, 0, 0
  local paid = 0
  for i, s in ipairs(run.stages) do
    seconds, calls = seconds + (s.seconds or 0), calls + (s.calls or 0)
    if s.state == "kept" then kept = kept + 1 else paid = paid + (s.seconds or 0) end
    rows[i] = {
      text(s.arm or ""), s.seed ~= nil and text(s.seed) or "", text(s.name), text(s.state),
      number(s.seconds or 0, 1), (s.calls or 0) > 0 and tostring(s.calls) or "", text((s.key or ""):sub(1, 12)),
    }
  end
  local line = ("%d stages, of which %d were kept from earlier runs; %s of computing in all, %s in this run; "
    .. "%d calls to teachers and critics."):format(#rows, kept, progress.duration(seconds), progress.duration(paid), calls)
  local titles = { "arm", "seed", "stage", "state", "seconds", "calls", "key" }
  return section("Ledger", ("<p>%s</p><details><summary>every stage</summary>%s</details>"):format(text(line),
    html.table(titles, rows, { [2] = true, [5] = true, [6] = true })))
end

-- What teachers and critics over HTTP were paid.
local function bill(run)
  local b = run.bill
  if not b then return "" end
  local rows = {}
  for i, s in ipairs(b.stages) do
    rows[i] = {
      text(s.stage), tostring(s.calls), tostring(s.attempts), tostring(s.possibly_paid), tostring(s.prompt_tokens),
      tostring(s.completion_tokens), s.unknown_price > 0 and "unknown" or number(s.usd, 4), number(s.usd_possibly, 4),
    }
  end
  local line = ("%d answers of services over all runs of this study: %s dollars paid, %s possibly paid for %d requests "
    .. "whose reply never came%s."):format(b.answered, number(b.paid, 4), number(b.possibly, 4), b.possibly_n,
    b.unknown > 0 and ("; the price of %d is unknown"):format(b.unknown) or "")
  local titles = { "stage", "answers", "requests", "possibly paid", "input tokens", "output tokens", "dollars",
    "dollars possibly paid" }
  return section("Bill", ("<p>%s</p>%s"):format(text(line), html.table(titles, rows,
    { [2] = true, [3] = true, [4] = true, [5] = true, [6] = true, [7] = true, [8] = true })))
end

local function pairs_table(values)
  local keys, rows = {}, {}
  for k in pairs(values) do keys[#keys + 1] = k end
  table.sort(keys)
  for i, k in ipairs(keys) do
    local v = values[k]
    rows[i] = { text(k), type(v) == "table" and text(base.json_encode(v)) or text(v) }
  end
  return html.table({ "", "" }, rows)
end

local function logged(run)
  if #run.logged == 0 then return "" end
  return section("Logged", rows_table(run.logged))
end

-- What a result holds beside arms, claims and notes.
local SPECIAL = { arms = true, claims = true, notes = true, margin = true }

local function rest(result)
  local keys, out, plain = {}, {}, {}
  for k in pairs(result) do
    if not SPECIAL[k] then keys[#keys + 1] = k end
  end
  table.sort(keys, function(a, b) return tostring(a) < tostring(b) end)
  for _, k in ipairs(keys) do
    local v = result[k]
    if is_rows(v) then
      local title = tostring(k):gsub("_", " "):gsub("^%l", string.upper)
      out[#out + 1] = section(title, is_effect(v[1]) and effects(v, result.margin) or rows_table(v))
    else
      plain[k] = v
    end
  end
  if next(plain) then out[#out + 1] = section("Result", pairs_table(plain)) end
  return table.concat(out)
end

---The page of a run.
---@param run perilune.study.Run
---@param result any what the recipe returned
---@return string
function report.page(run, result)
  local facts = run.facts
  local out = {
    ("<h1>%s</h1><p class=lead>%s</p>"):format(text(run.recipe.name), text(run.recipe.doc)),
    ("<p class=facts>%s · %s · %s · %s · %d thread%s · perilune %s</p>"):format(text(run.id), text(facts.started),
      progress.duration(run.seconds), text(facts.processor), facts.threads, facts.threads == 1 and "" or "s",
      text(facts.perilune)),
  }
  local function add(part) out[#out + 1] = part end
  local has_samples = false
  if type(result) == "table" then
    if is_rows(result.claims) and is_effect(result.claims[1]) then
      add(section("Claims", effects(result.claims, result.margin)))
    end
    if is_rows(result.arms) and result.arms[1].name then
      add(section("Arms", arms(result.arms) .. rows_table(result.arms)))
    end
    if type(result.notes) == "table" then
      for _, note in ipairs(result.notes) do add("<p class=soft>" .. text(note) .. "</p>") end
    end
    if is_rows(result) then add(section("Result", rows_table(result))) else add(rest(result)) end
  elseif result ~= nil then
    add(section("Result", "<p>" .. text(result) .. "</p>"))
  end
  for _, s in ipairs(run.sections) do
    has_samples = has_samples or s.kind == "samples"
    add(OWN[s.kind](s))
  end
  add(logged(run))
  add(curves(run))
  local examples = not has_samples and judged(run) or {}
  if #examples > 0 then add(section("Answers and verdicts", samples(examples))) end
  add(bill(run))
  add(ledger(run))
  add(section("Options", pairs_table(run.params)))
  add(section("Manifest",
    "<details><summary>versions, processor, keys</summary>" .. pairs_table(facts) .. "</details>"))
  return html.page(run.recipe.name .. " " .. run.id, table.concat(out, "\n"))
end

return report
