--- Pieces of a page. Every text goes through html.text: completions are hostile
--- input. The page needs no network and runs no script; its policy says so.
local html = {}

local ESCAPE = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

---Text as a page or an attribute can hold it. What is no UTF-8, and controls that
---XML forbids, become U+FFFD.
---@param value any
---@return string
function html.text(value)
  local text = tostring(value)
  if not utf8.len(text) then text = text:gsub("[\128-\255]", "\u{FFFD}") end
  return (text:gsub("[&<>\"']", ESCAPE):gsub("[\0-\8\11\12\14-\31\127]", "\u{FFFD}"))
end

---A number for people: percent with one digit, the rest with three that count.
---@param value any
---@param digits? integer
---@return string
function html.number(value, digits)
  if type(value) ~= "number" then return html.text(value) end
  if digits then return ("%." .. digits .. "f"):format(value) end
  if math.type(value) == "integer" then return tostring(value) end
  local size = math.abs(value)
  if size ~= 0 and (size < 1e-3 or size >= 1e6) then return ("%.2e"):format(value) end
  if size >= 100 then return ("%.1f"):format(value) end
  return (("%.4f"):format(value):gsub("0+$", ""):gsub("%.$", ""))
end

---@param columns string[] titles
---@param rows string[][] cells that are HTML already
---@param numeric? table<integer, boolean> columns that stand to the right
---@return string
function html.table(columns, rows, numeric)
  numeric = numeric or {}
  local out = { "<div class=scroll><table>" }
  if table.concat(columns) ~= "" then
    out[#out + 1] = "<thead><tr>"
    for c, title in ipairs(columns) do
      out[#out + 1] = ("<th%s>%s</th>"):format(numeric[c] and " class=num" or "", html.text(title))
    end
    out[#out + 1] = "</tr></thead>"
  end
  out[#out + 1] = "<tbody>"
  for _, row in ipairs(rows) do
    out[#out + 1] = "<tr>"
    for c = 1, #columns do
      out[#out + 1] = ("<td%s>%s</td>"):format(numeric[c] and " class=num" or "", row[c] or "")
    end
    out[#out + 1] = "</tr>"
  end
  out[#out + 1] = "</tbody></table></div>"
  return table.concat(out)
end

local STYLE = [[
:root{--bg:#fbfbf9;--card:#fff;--ink:#1d2129;--soft:#5d6673;--line:#e2e4e8;--grid:#eceef1;--bar:#4a78b5;--bar2:#5b9a8b;
--one:#2f66ad;--two:#d9772b;--good:#1d7a4c;--goodbg:#e1f3e8;--bad:#b3372f;--badbg:#fbe5e2;--open:#8a6100;--openbg:#fbf0d2}
@media(prefers-color-scheme:dark){:root{--bg:#15181d;--card:#1c2026;--ink:#e6e8ec;--soft:#9aa3b0;--line:#2f353e;--grid:#272c34;
--bar:#6d9bd8;--bar2:#6fb3a2;--one:#79a9e6;--two:#eb9a58;--good:#7ed3a4;--goodbg:#183526;--bad:#f19a91;--badbg:#40211f;
--open:#e8c268;--openbg:#3a300f}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 80px}
h1{font-size:28px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:19px;margin:44px 0 12px;padding-bottom:6px;border-bottom:1px solid var(--line)}
h3{font-size:15px;margin:18px 0 6px}
p{margin:8px 0}
.lead{font-size:16px;color:var(--soft);max-width:62em}
.facts{color:var(--soft);font-size:13px}
.soft{color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:12px;white-space:nowrap}
td.num,th.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.cards{display:grid;gap:12px}.card>h3{margin-top:0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.claim{display:grid;grid-template-columns:104px 1fr 280px;gap:16px;align-items:center}
.pill{display:inline-block;padding:3px 12px;border-radius:99px;font-weight:600;font-size:13px;text-align:center}
.yes{color:var(--good);background:var(--goodbg)}.no{color:var(--bad);background:var(--badbg)}
.undecided{color:var(--open);background:var(--openbg)}.none{color:var(--soft);background:var(--grid)}
.two{display:grid;grid-template-columns:1fr 1fr;gap:16px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:14px}
.chart h3{margin:0 0 4px;font-size:13px}
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--soft)}
svg .name{font-size:12.5px;fill:var(--ink)} svg .value{font-size:12px;fill:var(--ink)}
.prompt{white-space:pre-wrap;font-weight:600;overflow-wrap:anywhere}
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:10px;margin-top:10px}
.answer{border:1px solid var(--line);border-radius:8px;padding:8px 10px;min-width:0}
.answer.better{border-color:var(--good);box-shadow:inset 3px 0 0 var(--good)}
.answer .who{font-size:12px;color:var(--soft);display:flex;justify-content:space-between;gap:8px;align-items:center}
.answer pre{margin:4px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,monospace;
max-height:260px;overflow-y:auto}
.chip{font-size:11px;padding:0 8px;border-radius:99px;font-weight:600}
details{margin-top:10px}summary{cursor:pointer;color:var(--soft)}
@media(max-width:820px){.two,.claim{grid-template-columns:1fr}}
@media print{body{background:#fff}.card{break-inside:avoid}}
]]

---@param title string
---@param body string HTML
---@return string
function html.page(title, body)
  return table.concat {
    "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
    "<meta name=viewport content=\"width=device-width, initial-scale=1\"><meta name=color-scheme content=\"light dark\">",
    "<title>", html.text(title), "</title><style>", STYLE, "</style></head>\n<body><main>\n", body,
    "\n</main></body></html>\n",
  }
end

return html
