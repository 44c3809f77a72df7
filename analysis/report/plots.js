"use strict";
// The page's figures drawn by Plotly: from a panel's JSON (page_data.py) and the reader's choices to traces and a layout.

const choices = JSON.parse(document.getElementById("choices").textContent);
// What the reader has chosen. `size` is "" for all sizes; `hidden` are places of arms.
const chosen = { size: "", unit: "steps", x: "log", y: "log", hidden: new Set() };

const UNITS = { steps: "step", tokens: "tokens", flops: "FLOPs" };
const SYMBOLS = { o: "circle", D: "diamond", s: "square" };
const DIGITS = ".4~g";

// Plotly reads a little HTML in texts: names are shown as they are.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const known = (values) => values.filter((v) => v !== null);
const short = (value) => (value === null ? "–" : String(Number(value.toPrecision(4))).replace("-", "−"));

// Whether something that belongs to an arm, a size, both or neither is to be seen.
const shown = (it) =>
  !(it.arm !== null && chosen.hidden.has(it.arm)) &&
  (chosen.size === "" || it.size === null || it.size === Number(chosen.size));

// The factor from steps of a size to the chosen unit.
const factor = (panel, it) => {
  const size = choices.sizes[it.size ?? panel.size];
  return panel.x.time && chosen.unit !== "steps" && size ? size[chosen.unit] : 1;
};

const scaled = (values, by) => (by === 1 ? values : values.map((v) => (v === null ? null : v * by)));

function resolved(expression) {
  const probe = document.createElement("i");
  probe.style.color = expression;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// The page's colours as they are now; made again when the theme changes.
let colours;
function readColours() {
  const at = (name) => resolved(`var(--${name})`);
  const series = Array.from({ length: 8 }, (_, i) => at(`s${i}`));
  colours = { ink: at("ink"), quiet: at("quiet"), grid: at("grid"), edge: at("edge"), paper: at("paper"), series };
}

const faint = (colour, opacity) => colour.replace(/^rgba?\(([^,]+,[^,]+,[^,)]+).*$/, `rgba($1, ${opacity})`);

// The rows that still have a mark, as a map from old to new places.
function rowsLeft(panel) {
  const used = new Set(panel.marks.filter(shown).flatMap((m) => m.y.map((y) => Math.round(y))));
  const left = panel.rows.map((text, i) => i).filter((i) => used.has(i) || !panel.rows[i].trim());
  return new Map(left.map((old, now) => [old, now]));
}

function bandTrace(line, x, log) {
  const least = Math.min(...known(line.y).filter((v) => v > 0)) / 10;
  const floor = (v) => (log && v !== null ? Math.max(v, least) : v); // no zero on a logarithmic axis
  return {
    x: [...x, ...[...x].reverse()], y: [...line.high, ...[...line.low].reverse()].map(floor),
    mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: faint(colours.series[line.c], 0.16), hoverinfo: "skip",
  };
}

function lineTrace(panel, line, x) {
  const interval = line.low ? line.low.map((low, i) => ` [${short(low)}, ${short(line.high[i])}]`) : [];
  const where = panel.x.time ? "" : " at %{x:.4~g}";
  return {
    x, y: line.y, mode: "lines", opacity: line.o, meta: [plain(line.name)], customdata: interval,
    line: { color: colours.series[line.c], width: line.w, dash: line.dash ? line.dash.replace(/([\d.]+)/g, "$1px") : "solid" },
    ...(line.name
      ? { hovertemplate: `%{meta[0]}: %{y:${DIGITS}}${line.low ? "%{customdata}" : ""}${where}<extra></extra>` }
      : { hoverinfo: "skip" }),
  };
}

function markTrace(panel, mark, rows) {
  const colour = colours.series[mark.c];
  const along = mark.upright ? mark.y : scaled(mark.x, factor(panel, mark));
  const bars = mark.low && {
    type: "data", symmetric: false, color: colour, thickness: 1.6, width: 0,
    array: mark.high.map((h, i) => h - along[i]), arrayminus: mark.low.map((l, i) => along[i] - l),
  };
  const interval = mark.low ? ` [${short(mark.low[0])}, ${short(mark.high[0])}]` : "";
  const value = panel.rows ? `%{x:${DIGITS}}` : mark.upright ? `%{y:${DIGITS}}` : `(%{x:${DIGITS}}, %{y:${DIGITS}})`;
  return {
    x: scaled(mark.x, factor(panel, mark)),
    y: rows ? mark.y.map((y) => y - Math.round(y) + rows.get(Math.round(y))) : mark.y,
    mode: "markers", meta: [plain(mark.name), plain(mark.note)],
    marker: {
      size: 8, color: colour, line: { width: mark.filled ? 0 : 1.6, color: colour },
      symbol: SYMBOLS[mark.shape] + (mark.filled ? "" : "-open"),
    },
    ...(bars ? { [mark.upright ? "error_y" : "error_x"]: bars } : {}),
    hovertemplate: `%{meta[0]}: ${value}${interval}${mark.note ? "<br>%{meta[1]}" : ""}<extra></extra>`,
  };
}

function heatTrace(panel) {
  const { names, values, low, high, opacity, digits } = panel.heat;
  const colour = colours.series[1];
  const text = (v) => (v === null ? "–" : v.toFixed(digits).replace(/^(-?)0\./, "$1."));
  return {
    type: "heatmap", z: values, zmin: low, zmax: high, showscale: false, xgap: 2, ygap: 2, hoverongaps: false,
    colorscale: [[0, faint(colour, opacity[0])], [1, faint(colour, opacity[1])]],
    ...(digits === null ? {} : { text: values.map((row) => row.map(text)), texttemplate: "%{text}" }),
    customdata: values.map((_, i) => names.map((name) => plain(`${names[i]} and ${name}`))),
    textfont: { color: colours.ink }, hovertemplate: `%{customdata}: %{z:.3f}<extra></extra>`,
  };
}

function axis(title, more) {
  return {
    title: { text: plain(title), standoff: 6, font: { size: 11.5 } }, automargin: true, gridcolor: colours.grid, zeroline: false,
    showline: true, linecolor: colours.quiet, ticks: "outside", ticklen: 4, tickcolor: colours.quiet, nticks: 7, ...more,
  };
}

// Whether x, which is no time, spans less than two decades: 0.5, 1 and 2 are then written out.
function narrow(panel) {
  const x = [...panel.lines, ...panel.marks].flatMap((drawn) => drawn.x);
  return !panel.x.time && Math.max(...x) < 100 * Math.min(...x);
}

function layoutOf(panel, rows, width) {
  const log = { x: panel.x.log && chosen.x === "log", y: panel.y.log && chosen.y === "log" };
  const range = panel.y.range && (log.y ? panel.y.range.map(Math.log10) : panel.y.range);
  const none = { showline: false, ticks: "", showgrid: false };
  const listed = (names) => ({ tickvals: names.map((_, i) => i), ticktext: names.map(plain) });
  const x = axis(panel.x.time ? UNITS[chosen.unit] : panel.x.label, {
    type: log.x ? "log" : "linear", hoverformat: panel.x.time ? ".4~s" : DIGITS,
    exponentformat: panel.rows ? "none" : panel.x.time && chosen.unit === "steps" ? "SI" : "power",
    nticks: width < 420 ? 5 : 6, tickangle: 0,
    ...(log.x && narrow(panel) ? { dtick: "D2", tickformat: "~g" } : {}),
    ...(panel.heat ? { ...none, ...listed(panel.heat.names), tickangle: -35, title: undefined } : {}),
  });
  const y = axis(panel.y.label, {
    type: log.y ? "log" : "linear", nticks: log.y ? 4 : 6, hoverformat: DIGITS,
    ...(log.y ? { tickformat: "~g" } : { exponentformat: "power", minexponent: 3 }), ...(range ? { range } : {}),
    ...(rows ? { ...none, ...listed([...rows.keys()].map((i) => panel.rows[i])), range: [rows.size - 0.4, -0.6] } : {}),
    ...(panel.heat ? { ...none, ...listed(panel.heat.names), autorange: "reversed", title: undefined } : {}),
  });
  const line = { type: "line", line: { color: colours.ink, width: 1 }, opacity: 0.6, layer: "below" };
  const zero = panel.rows
    ? { ...line, xref: "x", yref: "paper", x0: panel.zero, x1: panel.zero, y0: 0, y1: 1 }
    : { ...line, xref: "paper", yref: "y", x0: 0, x1: 1, y0: panel.zero, y1: panel.zero };
  return {
    width, height: heightOf(panel, width, rows), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    margin: { l: 10, r: 14, t: panel.title ? 30 : 10, b: 10 },
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colours.ink },
    title: { text: `<b>${plain(panel.title)}</b>`, font: { size: 13 }, x: 0, xref: "container", xanchor: "left", y: 0.99, yanchor: "top" },
    // All lines at a step at once, but where there are points to be told by themselves.
    hovermode: panel.x.time && !panel.marks.length && panel.lines.length <= 30 ? "x unified" : "closest",
    hoverlabel: { bgcolor: colours.paper, bordercolor: colours.edge, font: { color: colours.ink, size: 12 } },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    shapes: panel.zero === null ? [] : [zero], xaxis: x, yaxis: y,
    // A zoom stays as it is until an axis means something else.
    uirevision: [chosen.unit, log.x, log.y, chosen.size, rows ? rows.size : 0].join(),
  };
}

function heightOf(panel, width, rows) {
  const ratio = panel.extent[1] / panel.extent[0];
  if (panel.heat) return Math.round(Math.max(width * ratio, 130));
  if (rows) return 90 + (panel.extent[1] * 84 - 76) * (rows.size / panel.rows.length || 1);
  return Math.round(Math.min(440, Math.max(230, width * ratio)));
}

// Traces and layout of a panel for a width in pixels.
function plot(panel, width) {
  const rows = panel.rows && rowsLeft(panel);
  const layout = layoutOf(panel, rows, width);
  if (panel.heat) return { data: [heatTrace(panel)], layout };
  const lines = panel.lines.filter(shown).map((line) => ({ line, x: scaled(line.x, factor(panel, line)) }));
  const bands = lines.filter(({ line }) => line.low);
  const data = [
    ...bands.map(({ line, x }) => bandTrace(line, x, layout.yaxis.type === "log")),
    ...lines.map(({ line, x }) => lineTrace(panel, line, x)),
    ...panel.marks.filter(shown).map((mark) => markTrace(panel, mark, rows)),
  ];
  return { data, layout };
}
