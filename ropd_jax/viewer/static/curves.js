// The page of a run: one small chart per family of metrics, all with the same steps below them.

import { apiOf, el, get, linkTo, number, svg } from "./dom.js";

const CHARTS = [
  ["reward", ["reward/mean", "reward/reference_mean"]],
  ["held-out accuracy", ["eval/accuracy", "eval/sampled_accuracy"]],
  ["groups", ["teacher/unscored_frac", "group/zero_variance_frac"]],
  ["response length, tokens", ["sample/length_mean"]],
  ["entropy", ["update/entropy"]],
  ["gradient norm", ["update/grad_norm"]],
];
const WIDE = 420, HIGH = 150, LEFT = 44, BOTTOM = 18;

const ticks = (low, high) => [low, (low + high) / 2, high];

export function smooth(values, weight) {
  let last = null;
  return values.map((v) => {
    if (v === null) return null;
    last = last === null ? v : weight * last + (1 - weight) * v;
    return last;
  });
}

export function chart(title, series, { weight = 0, log = false, onstep = null } = {}) {
  const shown = series.map(([name, [steps, values]]) => {
    const usable = values.map((v) => (v === null || (log && v <= 0) ? null : v));
    const drawn = smooth(usable, weight);
    return { name, points: steps.map((s, i) => [s, drawn[i]]).filter((p) => p[1] !== null), raw: new Map(steps.map((s, i) => [s, values[i]])) };
  }).filter((s) => s.points.length);
  if (!shown.length) return null;
  const all = shown.flatMap((s) => s.points);
  const scale = log ? Math.log10 : (v) => v;
  let low = Math.min(...all.map((p) => scale(p[1]))), high = Math.max(...all.map((p) => scale(p[1])));
  if (low === high) { low -= 0.5; high += 0.5; }
  const first = Math.min(...all.map((p) => p[0])), last = Math.max(...all.map((p) => p[0]), first + 1);
  const x = (step) => LEFT + ((step - first) / (last - first)) * (WIDE - LEFT - 8);
  const y = (value) => 8 + (1 - (scale(value) - low) / (high - low)) * (HIGH - BOTTOM - 8);
  const grid = ticks(low, high).map((v) => {
    const value = log ? 10 ** v : v;
    return [svg("line", { class: "grid", x1: LEFT, x2: WIDE - 8, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 6, y: y(value) + 3, "text-anchor": "end" }, number(value))];
  });
  const steps = [first, last].map((s, i) => svg("text", { x: x(s), y: HIGH - 3, "text-anchor": i ? "end" : "start" }, s));
  const lines = shown.map((s, i) => svg("polyline", { class: `line c${i % 4}`, points: s.points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" ") }));
  const dots = shown.flatMap((s, i) => (s.points.length < 3 ? s.points.map((p) => svg("circle", { class: `dot c${i % 4}`, cx: x(p[0]), cy: y(p[1]), r: 2 })) : []));
  const rule = svg("line", { class: "rule", x1: -9, x2: -9, y1: 4, y2: HIGH - BOTTOM });
  const told = el("figcaption", {});
  const named = () => told.replaceChildren(el("b", {}, title), ...shown.map((s, i) => el("span", { class: `key c${i % 4}` }, s.name)));
  named();
  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const at = first + (((event.clientX - box.left) / box.width) * WIDE - LEFT) / (WIDE - LEFT - 8) * (last - first);
    return shown[0].points.map((p) => p[0]).reduce((a, b) => (Math.abs(b - at) < Math.abs(a - at) ? b : a));
  };
  const plot = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title}: ${shown.map((s) => `${s.name} from ${number(s.points[0][1])} to ${number(s.points.at(-1)[1])}`).join(", ")}`,
    onpointermove: (event) => {
      const step = nearest(event);
      rule.setAttribute("x1", x(step)); rule.setAttribute("x2", x(step));
      told.replaceChildren(el("b", {}, `step ${step}`), ...shown.map((s, i) => el("span", { class: `key c${i % 4}` }, `${s.name} ${number(s.raw.get(step) ?? null, 3)}`)));
    },
    onpointerleave: () => { rule.setAttribute("x1", -9); rule.setAttribute("x2", -9); named(); },
    onclick: (event) => onstep && onstep(nearest(event)),
  }, grid, steps, lines, dots, rule);
  return el("figure", {}, told, plot);
}

const state = { weight: 0, log: false, all: false };

export async function runPage(name, main) {
  const [about, metrics] = await Promise.all([get(apiOf(name)), get(`${apiOf(name)}/metrics`)]);
  const draw = () => { // metrics are logged after a step, as step 1, 2, ...; groups belong to step 0, 1, ...
    const options = { ...state, onstep: (step) => { location.hash = `${linkTo(name, "groups")}?step=${Math.max(0, step - 1)}`; } };
    const named = CHARTS.map(([title, names]) => [title, names.filter((n) => metrics[n]).map((n) => [n, metrics[n]])]);
    const others = state.all ? Object.keys(metrics).map((n) => [n, [[n, metrics[n]]]]) : [];
    const figures = [...named, ...others].map(([title, series]) => chart(title, series, options)).filter(Boolean);
    charts.replaceChildren(...(figures.length ? figures : [el("p", { class: "quiet" }, "no metrics yet")]));
  };
  const box = (label, key) => el("label", {}, el("input", { type: "checkbox", checked: state[key], onchange: (e) => { state[key] = e.target.checked; draw(); } }), label);
  const charts = el("div", { class: "charts" });
  const slider = el("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: state.weight, oninput: (e) => { state.weight = Number(e.target.value); draw(); } });
  const result = about.result ? Object.entries(about.result).filter(([, v]) => typeof v === "number" || typeof v === "string") : [];
  main.replaceChildren(
    el("div", { class: "tools" }, el("label", {}, "smooth ", slider), box(" log", "log"), box(" every metric", "all"),
      el("span", { class: "quiet" }, "click a step to see its groups")),
    charts,
    result.length ? el("section", {}, el("h2", {}, "result"), el("dl", {}, result.map(([k, v]) => [el("dt", {}, k), el("dd", {}, typeof v === "number" ? number(v, 3) : v)]))) : el("p", { class: "quiet" }, "not finished"),
    el("details", {}, el("summary", {}, "config"), el("pre", {}, JSON.stringify(about.config, null, 1))),
  );
  draw();
  return about.result === null;
}
