// One chart: lines over steps on a canvas (uPlot), with its numbers in the caption and, on request, as a table.
//
//   line   { name, steps, values, low?, high?, raw?, hue }    low and high draw a band; raw is drawn faintly behind it
//
// Pointing at a chart shows the values of that step in every chart. Dragging zooms all of them to the same steps, a
// double click shows everything again. With the keyboard: ← → move from step to step, Enter opens the step's groups.

import uPlot from "./vendor/uPlot.esm.js";
import { el, number } from "./dom.js";

const HIGH = 150, SYNC = "steps";
const DOUBLE_CLICK = 300; // ms in which a second click may follow
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const faint = (colour, share) => `color-mix(in srgb, ${colour} ${share}%, transparent)`;

// Exponential moving average; unknown values stay unknown and are skipped.
export function smooth(values, weight) {
  let last = null;
  return values.map((v) => {
    if (v === null || v === undefined) return v;
    last = last === null ? v : weight * last + (1 - weight) * v;
    return last;
  });
}

// Mean, lowest and highest of several runs at the steps that all of them have.
export function band(series) {
  const maps = series.map(([steps, values]) => new Map(steps.map((s, i) => [s, values[i]])));
  const steps = series[0][0].filter((s) => maps.every((m) => m.get(s) !== null && m.get(s) !== undefined));
  const at = steps.map((s) => maps.map((m) => m.get(s)));
  return { steps, values: at.map((v) => v.reduce((a, b) => a + b) / v.length), low: at.map((v) => Math.min(...v)), high: at.map((v) => Math.max(...v)) };
}

// Columns for uPlot: every step of any line; `undefined` if a line has no such step, null if its value is unknown.
function aligned(lines, { weight, log }) {
  const steps = [...new Set(lines.flatMap((l) => l.steps))].sort((a, b) => a - b);
  const at = new Map(steps.map((s, i) => [s, i]));
  const column = (own, values) => {
    const found = new Array(steps.length).fill(undefined);
    own.forEach((s, i) => { const v = values[i]; found[at.get(s)] = v === null || (log && v <= 0) ? null : v; });
    return found;
  };
  const data = [steps], series = [{}], bands = [];
  for (const line of lines) {
    const colour = style(`--c${line.hue}`), about = { spanGaps: false, points: { show: false } };
    if (line.low) {
      bands.push({ series: [data.length, data.length + 1], fill: faint(colour, 16) });
      for (const edge of [line.high, line.low]) { data.push(column(line.steps, smooth(edge, weight))); series.push({ ...about, stroke: "transparent", width: 0 }); }
    } else if (weight) { data.push(column(line.steps, line.values)); series.push({ ...about, stroke: faint(colour, 28), width: 1 }); }
    data.push(column(line.steps, smooth(line.values, weight)));
    series.push({ ...about, stroke: colour, width: 1.5, points: { size: 4, fill: colour, stroke: colour, show: line.steps.length < 30 } });
  }
  return { data, series, bands };
}

const usable = (lines, log) => lines.filter((l) => l.values.some((v) => v !== null && (!log || v > 0)));

export function chart(title, allLines, options = {}) {
  const { weight = 0, log = false, onstep = null, marks = [], range = {}, table = false, hrefOf = null } = options;
  const lines = usable(allLines, log);
  if (!lines.length) return null;
  const told = el("figcaption", {});
  const names = () => told.replaceChildren(el("b", {}, title), ...lines.map((l) => el("span", { class: `key c${l.hue}` }, l.name)));
  names();
  if (table) return el("figure", {}, told, numbers(title, lines, hrefOf));

  const columns = aligned(lines, { weight, log });
  const raw = lines.map((l) => new Map(l.steps.map((s, i) => [s, l.low ? `${number(l.values[i], 3)} (${number(l.low[i], 3)}–${number(l.high[i], 3)})` : number(l.values[i], 3)])));
  const ends = (l) => { const known = l.values.filter((v) => v !== null); return `${l.name} from ${number(known[0], 3)} to ${number(known.at(-1), 3)}`; };
  const box = el("div", { class: "plot", role: "img", tabindex: 0, "aria-label": `${title}: ${lines.map(ends).join(", ")}` });
  const figure = el("figure", {}, told, box);
  let plot = null, opens = 0;
  const tell = (index) => {
    const step = index === null || index === undefined ? null : columns.data[0][index];
    if (step === null) names();
    else told.replaceChildren(el("b", {}, title), el("span", { class: "quiet" }, `step ${step}`), ...lines.map((l, i) => el("span", { class: `key c${l.hue}` }, `${l.name} ${raw[i].get(step) ?? "–"}`)));
  };
  const axis = () => ({ stroke: style("--quiet"), font: "10px system-ui, sans-serif", grid: { stroke: style("--line"), width: 1 }, ticks: { show: false } });
  const draw = (width) => {
    plot?.destroy();
    plot = new uPlot({
      width, height: HIGH, legend: { show: false }, series: columns.series, bands: columns.bands, padding: [6, 6, 0, 0],
      scales: { x: { time: false, ...(range.min === undefined ? {} : { min: range.min, max: range.max }) }, y: log ? { distr: 3 } : { range: (u, low, high) => (low === null ? [0, 1] : low === high ? [Math.min(low, 0), low > 0 ? 1.25 * low : 1] : uPlot.rangeNum(low, high, 0.08, true)) } },
      axes: [{ ...axis(), size: 22, gap: 2, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000], grid: { show: false } },
        { ...axis(), size: 44, gap: 4, space: 34, values: (u, splits) => splits.map((v) => (v === null ? null : short(v))) }],
      cursor: { sync: { key: SYNC, scales: ["x", null] }, drag: { x: true, y: false, dist: 5 }, y: false, points: { size: 5 } },
      hooks: {
        setCursor: [(u) => tell(u.cursor.idx)],
        setScale: [(u, key) => { // stored for charts that are drawn later
          if (key !== "x" || u.status === 0) return;
          const whole = u.scales.x.min <= u.data[0][0] && u.scales.x.max >= u.data[0].at(-1);
          if (whole) { delete range.min; delete range.max; } else { range.min = u.scales.x.min; range.max = u.scales.x.max; }
        }],
        draw: [(u) => {
          for (const step of marks) {
            const x = u.valToPos(step, "x", true);
            if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
            u.ctx.save();
            u.ctx.strokeStyle = style("--warn"); u.ctx.setLineDash([3, 3]); u.ctx.beginPath();
            u.ctx.moveTo(x, u.bbox.top); u.ctx.lineTo(x, u.bbox.top + u.bbox.height); u.ctx.stroke();
            u.ctx.restore();
          }
        }],
      },
    }, columns.data, box);
    let down = 0;
    plot.over.addEventListener("mousedown", (e) => { down = e.clientX; });
    plot.over.addEventListener("click", (e) => {
      clearTimeout(opens); // a second click makes a double click, which leaves the zoom and the page stays
      if (!onstep || e.detail > 1 || Math.abs(e.clientX - down) >= 4 || plot.cursor.idx === null) return;
      const step = columns.data[0][plot.cursor.idx];
      opens = setTimeout(() => onstep(step), DOUBLE_CLICK);
    });
  };
  box.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const at = plot?.cursor.idx;
    if (move) {
      event.preventDefault(); event.stopPropagation();
      const next = Math.min(Math.max((at ?? (move > 0 ? -1 : columns.data[0].length)) + move, 0), columns.data[0].length - 1);
      plot.setCursor({ left: plot.valToPos(columns.data[0][next], "x"), top: 20 });
    } else if (event.key === "Enter" && onstep && at !== null && at !== undefined) onstep(columns.data[0][at]);
  });
  let wide = 0;
  const seen = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width < 40 || width === wide) return;
    wide = width;
    if (plot) plot.setSize({ width, height: HIGH }); else draw(width);
  });
  seen.observe(box);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () => { Object.assign(columns, aligned(lines, { weight, log })); if (wide) draw(wide); };
  scheme.addEventListener("change", recolour);
  figure.leave = () => { clearTimeout(opens); seen.disconnect(); scheme.removeEventListener("change", recolour); plot?.destroy(); };
  return figure;
}

// 1,500,000 as 1.5M: an axis has 44 px.
function short(v) {
  const size = Math.abs(v);
  if (size >= 1e9) return `${+(v / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(v / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(v / 1e3).toPrecision(3)}k`;
  if (size && size < 1e-3) return v.toExponential(0);
  return String(+v.toPrecision(4));
}

function numbers(title, lines, hrefOf) {
  const steps = [...new Set(lines.flatMap((l) => l.steps))].sort((a, b) => a - b);
  const maps = lines.map((l) => new Map(l.steps.map((s, i) => [s, l.low ? [l.values[i], l.low[i], l.high[i]] : [l.values[i]]])));
  const cell = (found) => (found === undefined ? "" : found[0] === null ? "unknown" : number(found[0], 4) + (found.length > 1 ? ` (${number(found[1], 4)}–${number(found[2], 4)})` : ""));
  return el("div", { class: "scroll numbers", tabindex: 0, role: "region", "aria-label": `${title}, table` }, el("table", { class: "list" }, el("caption", { class: "sr" }, title),
    el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "num" }, "step"), lines.map((l) => el("th", { scope: "col", class: "num" }, l.name)))),
    el("tbody", {}, steps.map((s) => el("tr", {}, el("th", { scope: "row", class: "num" }, hrefOf ? el("a", { href: hrefOf(s) }, s) : s), maps.map((m) => el("td", { class: "num" }, cell(m.get(s)))))))));
}

// A row of charts that replaces an earlier one; the listeners of the earlier ones are removed.
export function fillCharts(place, figures) {
  for (const old of place.children) old.leave?.();
  const found = figures.filter(Boolean);
  place.replaceChildren(...(found.length ? found : [el("p", { class: "quiet" }, "no metrics yet")]));
}

// A small line without axes, for a cell of a table. Values are shares, 0 to 1; null is a gap.
export function sparkline(values, label, make) {
  const wide = 90, high = 18;
  const x = (i) => 1 + (values.length > 1 ? (i / (values.length - 1)) * (wide - 2) : wide / 2);
  const y = (v) => 1 + (1 - v) * (high - 2);
  const points = values.map((v, i) => (v === null ? null : `${x(i).toFixed(1)},${y(v).toFixed(1)}`)).filter(Boolean);
  return make("svg", { class: "spark", viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label },
    make("line", { class: "grid", x1: 0, x2: wide, y1: y(0), y2: y(0) }), make("line", { class: "grid", x1: 0, x2: wide, y1: y(1), y2: y(1) }),
    points.length > 1 ? make("polyline", { class: "line c0", points: points.join(" ") }) : points.map((p) => make("circle", { class: "dot c0", cx: p.split(",")[0], cy: p.split(",")[1], r: 2 })));
}
