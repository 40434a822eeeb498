"""Style sheet of the pages, and the script that draws their charts. Nothing in them loads anything.

A Python module because Flower's app bundles carry no CSS and no JavaScript.
"""

STYLE = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.6; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-font-smoothing: antialiased;
}
main { max-width: 1120px; margin: 0 auto; padding: 72px 40px 96px; }
h1, h2, h3, p, dl, dd, ul, figure { margin: 0; }
.eyebrow { color: var(--muted); font-size: 13px; letter-spacing: .06em; }
h1 {
  font-size: 22px; font-weight: 600; letter-spacing: -.01em; line-height: 1.3; margin-top: 6px;
  overflow-wrap: anywhere;
}
.conclusion {
  font-size: clamp(24px, 3.4vw, 36px); line-height: 1.28; letter-spacing: -.018em; max-width: 30em;
  margin-top: 28px; text-wrap: pretty; overflow-wrap: break-word;
}
.caveat { color: var(--muted); margin-top: 18px; max-width: 44em; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 1px;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  margin: 48px 0 0;
}
.tiles > div { background: var(--card); padding: 18px 20px; min-width: 0; }
.tiles dt { color: var(--muted); font-size: 13px; }
.tiles dd { font-size: 22px; font-weight: 600; letter-spacing: -.01em; line-height: 1.35; }
.tiles dd.detail { font-size: 13px; font-weight: 400; color: var(--muted); letter-spacing: 0; }
section { margin-top: 80px; }
h2 { font-size: 24px; font-weight: 600; letter-spacing: -.015em; line-height: 1.3; }
h2 + p, h2 + div, h2 + p + div { margin-top: 12px; }
section > p { max-width: 44em; }
h3 { font-size: 15px; font-weight: 600; }
figure {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 22px 24px 18px; margin-top: 24px; min-width: 0; break-inside: avoid;
}
.chart { margin-top: 10px; width: 100%; overflow: hidden; }
.reading {
  color: var(--muted); font-size: 14px; line-height: 1.5; margin-top: 10px; max-width: 52em;
}
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); column-gap: 24px; }
.note { color: var(--muted); font-size: 14px; line-height: 1.5; margin-top: 14px; }
.empty { color: var(--muted); }
.scroll {
  overflow-x: auto; margin-top: 20px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px;
}
table { border-collapse: collapse; width: 100%; font-size: 15px; line-height: 1.4; }
th, td { padding: 11px 14px; text-align: left; vertical-align: top; font-weight: 400; }
.scroll th:first-child {
  padding-left: 20px; max-width: 220px; overflow-wrap: break-word; min-width: 112px;
}
.scroll td:last-child, .scroll thead th:last-child { padding-right: 20px; }
thead th {
  font-size: 13px; line-height: 1.35; color: var(--muted); vertical-align: bottom;
  border-bottom: 1px solid var(--line);
}
thead small { display: block; font-size: 12px; font-weight: 600; color: var(--ink); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
thead th.number { white-space: normal; }
.swatch {
  display: block; width: 18px; height: 4px; border-radius: 2px; margin: 0 0 6px auto;
}
.absolute, .normalised { display: block; }
.normalised { color: var(--muted); font-size: 13px; }
.best .absolute { font-weight: 700; }
.best .normalised { font-weight: 700; color: var(--ink); }
.samples, .error { color: var(--muted); font-size: 14px; }
tr.total { background: var(--soft); }
tr.total th { font-weight: 600; }
details { margin-top: 20px; }
summary { cursor: pointer; color: var(--muted); font-size: 15px; }
details .scroll { margin-top: 12px; }
code, pre {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
}
code { font-size: .92em; overflow-wrap: anywhere; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  overflow-x: auto; margin: 18px 0 0; font-size: 14px; line-height: 1.6;
}
pre code { font-size: inherit; overflow-wrap: normal; }
ul { padding-left: 1.15em; margin-top: 14px; max-width: 46em; }
li + li { margin-top: 8px; }
.facts { columns: 2; column-gap: 40px; margin-top: 8px; }
.facts table { break-inside: avoid; margin: 0 0 12px; font-size: 14px; }
.facts caption { text-align: left; color: var(--muted); font-size: 13px; padding: 10px 0 6px; }
.facts th, .facts td { padding: 5px 0; border-top: 1px solid var(--line); }
.facts th { width: 52%; padding-right: 16px; }
.facts td { overflow-wrap: anywhere; }
@media (max-width: 760px) {
  main { padding: 40px 18px 64px; }
  section { margin-top: 60px; }
  .tiles { grid-template-columns: 1fr 1fr; margin-top: 36px; }
  .tiles > div { padding: 14px 16px; }
  .tiles dd { font-size: 19px; }
  .tiles > div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  figure { padding: 16px 12px 14px; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .facts { columns: 1; }
  th, td { padding: 10px; }
  .scroll th:first-child { position: sticky; left: 0; background: var(--card); padding-left: 14px;
    min-width: 118px; max-width: 140px; }
  .scroll tr.total th:first-child { background: var(--soft); }
}
@media print {
  @page { size: A4; margin: 14mm; }
  body { background: none; font-size: 10.5pt; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  main { padding: 0; max-width: none; }
  section { margin-top: 36px; }
  .conclusion { font-size: 19pt; }
  .scroll { overflow: visible; }
  .scroll th:first-child { min-width: 0; position: static; }
  .scroll table { font-size: 8pt; }
  .scroll thead th, .scroll small, .scroll .normalised, .scroll .samples, .scroll .error {
    font-size: 7pt;
  }
  .scroll table th, .scroll table td { padding: 5px 4px; }
  .scroll table th:first-child { padding-left: 10px; }
  .scroll table .number:last-child { padding-right: 10px; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  h2, h3 { break-after: avoid; }
  tr, pre, .tiles { break-inside: avoid; }
}
"""

SCRIPT = """\
"use strict";
const page = JSON.parse(document.getElementById("charts").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const paint = (value, palette) => {
  if (typeof value === "string") return value.startsWith("--") ? palette[value.slice(2)] : value;
  if (Array.isArray(value)) return value.map((item) => paint(item, palette));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, paint(v, palette)]));
};
const put = (target, path, value) => {
  const keys = path.split(".");
  const last = keys.pop();
  keys.reduce((inner, key) => inner[key], target)[last] = value;
};
const draw = (chart, printing) => {
  const element = document.getElementById("chart-" + chart.key);
  const palette = dark.matches && !printing ? page.dark : page.light;
  const width = printing ? 620 : element.clientWidth;
  const layout = paint({ ...page.layout, ...chart.layout }, palette);
  layout.width = width;
  layout.height = chart.height;
  const narrow = width < 700 ? Object.entries(chart.narrow) : [];
  for (const [path, value] of narrow) put(layout, path, value);
  if (width < 400) layout.legend.font.size = 11;
  Plotly.react(element, paint(chart.data, palette), layout, { displayModeBar: false });
};
const drawAll = (printing) => page.charts.forEach((chart) => draw(chart, printing));
drawAll(false);
let waiting = 0;
let lastWidth = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === lastWidth) return;
  lastWidth = window.innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => drawAll(false), 120);
});
dark.addEventListener("change", () => drawAll(false));
window.addEventListener("beforeprint", () => {
  clearTimeout(waiting);
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  drawAll(true);
});
window.addEventListener("afterprint", () => drawAll(false));
"""
