--- Charts as inline SVG: horizontal bars with intervals, an interval on a line, and
--- curves. Colours come from the page's variables, so that dark pages stay readable.
local html = require "perilune.study.html"

local svg = {}

local function f(x) return (("%.1f"):format(x):gsub("%.0$", "")) end

-- Round steps that cut a range into about n pieces.
local function ticks(low, high, n)
  if high <= low then high = low + 1 end
  local raw = (high - low) / n
  local power = 10 ^ math.floor(math.log(raw, 10))
  local step = 10 * power
  for _, m in ipairs { 1, 2, 2.5, 5 } do
    if raw <= m * power * 1.0001 then
      step = m * power
      break
    end
  end
  local out = {}
  for k = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) do out[#out + 1] = k * step end
  return out
end

local function tick_text(v)
  if v == 0 then return "0" end
  local size = math.abs(v)
  if size >= 1e5 or size < 1e-3 then return (("%.0e"):format(v):gsub("e([+-])0+", "e%1"):gsub("e%+", "e")) end
  return (("%.4f"):format(v):gsub("0+$", ""):gsub("%.$", ""))
end

local function is_finite(v) return type(v) == "number" and v == v and math.abs(v) < math.huge end

local function range(values, low, high)
  for _, v in pairs(values) do
    if is_finite(v) then
      low, high = math.min(low, v), math.max(high, v)
    end
  end
  return low, high
end

---Horizontal bars with intervals and a dot for each seed.
---@param spec {rows: table[], unit: string?, max: number?, mark: number?, colour: string?, label: string?}
---@return string rows are {label, value, ci_low?, ci_high?, points?}
function svg.bars(spec)
  local left, right, row_height, width = 150, 56, 28, 520
  local low, high = 0, spec.max or 0
  for _, row in ipairs(spec.rows) do
    low, high = range({ row.value, row.ci_low, row.ci_high }, low, high)
    low, high = range(row.points or {}, low, high)
  end
  if high <= low then high = low + 1 end
  local height = #spec.rows * row_height + 26
  local function x(v) return left + (v - low) / (high - low) * (width - left - right) end
  local out = { ("<svg viewBox=\"0 0 %d %d\" role=img aria-label=\"%s\">"):format(width, height,
    html.text(spec.label or "bars")) }
  local function add(text, ...) out[#out + 1] = text:format(...) end
  for _, t in ipairs(ticks(low, high, 5)) do
    add("<line x1=%s x2=%s y1=0 y2=%d stroke=\"var(--grid)\"/>", f(x(t)), f(x(t)), height - 22)
    add("<text x=%s y=%d text-anchor=middle>%s</text>", f(x(t)), height - 7, tick_text(t))
  end
  if spec.mark then
    add("<line x1=%s x2=%s y1=0 y2=%d stroke=\"var(--soft)\" stroke-dasharray=\"3 3\"/>", f(x(spec.mark)),
      f(x(spec.mark)), height - 22)
  end
  for i, row in ipairs(spec.rows) do
    local y = (i - 1) * row_height
    local mid = y + row_height / 2
    add("<text class=name x=%d y=%s text-anchor=end>%s</text>", left - 10, f(mid + 4), html.text(row.label))
    if is_finite(row.value) then
      local from, to = math.min(x(0), x(row.value)), math.max(x(0), x(row.value))
      add("<rect x=%s y=%s width=%s height=%d rx=2 fill=\"var(--%s)\" opacity=.75><title>%s: %s</title></rect>",
        f(from), f(y + 6), f(math.max(1, to - from)), row_height - 12, row.colour or spec.colour or "bar",
        html.text(row.label), html.number(row.value, 1))
      local edge = to
      if is_finite(row.ci_low) and is_finite(row.ci_high) then
        add("<path d=\"M%s %sH%sM%s %sv8M%s %sv8\" stroke=\"var(--ink)\" stroke-width=1.4 fill=none>",
          f(x(row.ci_low)), f(mid), f(x(row.ci_high)), f(x(row.ci_low)), f(mid - 4), f(x(row.ci_high)), f(mid - 4))
        add("<title>95 %%: %s to %s</title></path>", html.number(row.ci_low, 1), html.number(row.ci_high, 1))
        edge = math.max(edge, x(row.ci_high))
      end
      for _, p in ipairs(row.points or {}) do
        if is_finite(p) then
          add("<circle cx=%s cy=%s r=2.6 fill=\"var(--card)\" stroke=\"var(--ink)\"><title>%s</title></circle>",
            f(x(p)), f(mid), html.number(p, 1))
          edge = math.max(edge, x(p))
        end
      end
      add("<text class=value x=%s y=%s>%s%s</text>", f(edge + 7), f(mid + 4), html.number(row.value, 1),
        html.text(spec.unit or ""))
    end
  end
  out[#out + 1] = "</svg>"
  return table.concat(out)
end

---One effect with its interval, zero, and the margin within which it does not count.
---@param spec {effect: number, ci_low: number, ci_high: number, margin: number?, reach: number}
---@return string
function svg.interval(spec)
  local width, height, pad = 280, 40, 12
  local reach = spec.reach
  local function x(v) return pad + (v + reach) / (2 * reach) * (width - 2 * pad) end
  local out = { ("<svg viewBox=\"0 0 %d %d\" role=img aria-label=\"effect %s, 95 %% interval %s to %s\">"):format(
    width, height, html.number(spec.effect, 1), html.number(spec.ci_low, 1), html.number(spec.ci_high, 1)) }
  local function add(text, ...) out[#out + 1] = text:format(...) end
  if spec.margin and spec.margin > 0 then
    add("<rect x=%s y=2 width=%s height=22 fill=\"var(--grid)\"/>", f(x(-spec.margin)),
      f(x(spec.margin) - x(-spec.margin)))
  end
  add("<line x1=%s x2=%s y1=2 y2=24 stroke=\"var(--soft)\"/>", f(x(0)), f(x(0)))
  add("<path d=\"M%s 13H%sM%s 8v10M%s 8v10\" stroke=\"var(--one)\" stroke-width=2 fill=none />", f(x(spec.ci_low)),
    f(x(spec.ci_high)), f(x(spec.ci_low)), f(x(spec.ci_high)))
  add("<circle cx=%s cy=13 r=4.5 fill=\"var(--one)\"/>", f(x(spec.effect)))
  for _, t in ipairs(ticks(-reach, reach, 4)) do
    add("<text x=%s y=37 text-anchor=middle>%s</text>", f(x(t)), (t > 0 and "+" or "") .. tick_text(t))
  end
  out[#out + 1] = "</svg>"
  return table.concat(out)
end

-- At most this many points a line: means of neighbours.
local POINTS = 160

local function thin(xs, ys)
  local n = #xs
  if n <= POINTS then return xs, ys end
  local out_x, out_y = {}, {}
  for k = 1, POINTS do
    local first, last = (k - 1) * n // POINTS + 1, k * n // POINTS
    local sx, sy = 0, 0
    for i = first, last do sx, sy = sx + xs[i], sy + ys[i] end
    out_x[k], out_y[k] = sx / (last - first + 1), sy / (last - first + 1)
  end
  return out_x, out_y
end

local function finite(xs, ys)
  local out_x, out_y = {}, {}
  for i = 1, math.min(#xs, #ys) do
    local v = ys[i]
    if is_finite(v) then
      out_x[#out_x + 1], out_y[#out_y + 1] = xs[i], v
    end
  end
  return out_x, out_y
end

---Lines over steps.
---@param spec {series: table[], x: string?, label: string?, zero: boolean?} series {label, x, y, colour?, opacity?}
---@return string
function svg.curves(spec)
  local width, height, left, right, top, bottom = 340, 200, 46, 10, 8, 30
  local x_low, x_high, y_low, y_high = math.huge, -math.huge, math.huge, -math.huge
  local lines = {}
  for i, series in ipairs(spec.series) do
    local xs, ys = thin(finite(series.x, series.y))
    lines[i] = { xs = xs, ys = ys }
    x_low, x_high = range(xs, x_low, x_high)
    y_low, y_high = range(ys, y_low, y_high)
  end
  if x_low > x_high then x_low, x_high, y_low, y_high = 0, 1, 0, 1 end
  if spec.zero then y_low, y_high = math.min(0, y_low), math.max(0, y_high) end
  if y_high == y_low then y_low, y_high = y_low - 0.5, y_high + 0.5 end
  if x_high == x_low then x_high = x_low + 1 end
  local function x(v) return left + (v - x_low) / (x_high - x_low) * (width - left - right) end
  local function y(v) return height - bottom - (v - y_low) / (y_high - y_low) * (height - top - bottom) end
  local out = { ("<svg viewBox=\"0 0 %d %d\" role=img aria-label=\"%s\">"):format(width, height,
    html.text(spec.label or "curves")) }
  local function add(text, ...) out[#out + 1] = text:format(...) end
  for _, t in ipairs(ticks(y_low, y_high, 4)) do
    add("<line x1=%d x2=%d y1=%s y2=%s stroke=\"var(--grid)\"/>", left, width - right, f(y(t)), f(y(t)))
    add("<text x=%d y=%s text-anchor=end>%s</text>", left - 6, f(y(t) + 4), tick_text(t))
  end
  for _, t in ipairs(ticks(x_low, x_high, 4)) do
    add("<text x=%s y=%d text-anchor=middle>%s</text>", f(x(t)), height - 14, tick_text(t))
  end
  add("<text x=%d y=%d text-anchor=end>%s</text>", width - right, height - 2, html.text(spec.x or "step"))
  for i, line in ipairs(lines) do
    local series, points = spec.series[i], {}
    for k = 1, #line.xs do points[k] = f(x(line.xs[k])) .. "," .. f(y(line.ys[k])) end
    add("<polyline points=\"%s\" fill=none stroke=\"var(--%s)\" stroke-width=1.4 stroke-linejoin=round opacity=%s>",
      table.concat(points, " "), series.colour or "one", f(series.opacity or 1))
    add("<title>%s</title></polyline>", html.text(series.label or ""))
  end
  out[#out + 1] = "</svg>"
  return table.concat(out)
end

return svg
