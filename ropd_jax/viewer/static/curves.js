// The page of a run, and several runs on top of each other: charts of metrics, costs, causes, and differences of the configs.

import { chart, band, fillCharts } from "./charts.js";
import { apiOf, el, get, linkTo, number } from "./dom.js";

const CHARTS = [
  ["reward", ["reward/mean", "reward/reference_mean", "reward/all_criteria_mean", "gold/reward_mean", "gold/quality_mean"]],
  ["held-out accuracy", ["eval/accuracy", "eval/sampled_accuracy", "eval/judge"]],
  ["groups", ["teacher/unscored_frac", "group/zero_variance_frac"]],
  ["criteria", ["health/pass_rate", "health/discriminative_frac", "health/reference_pass_rate"]],
  ["what the total reward hides", ["health/unexplored_frac", "health/suppressed_frac"]],
  ["told gap, nats per token", ["update/told_gap"]],
  ["response length, tokens", ["sample/length_mean"]],
  ["entropy", ["update/entropy"]],
  ["gradient norm", ["update/grad_norm"]],
  ["seconds of a step", ["time/step_s", "time/teacher_wait_s", "time/sample_s", "time/update_s"]],
];
const CAUSE = "reward/unscored_", HUES = 8;
const state = { weight: 0, log: false, all: false, table: false };
const ranges = new Map(); // of steps, by page: a zoom stays when new steps arrive

const rangeOf = (page) => { if (!ranges.has(page)) ranges.set(page, {}); return ranges.get(page); };
const NAMES = { "reward/all_criteria_mean": "all criteria", "gold/reward_mean": "gold reward", "gold/quality_mean": "gold quality" };
const shortName = (name) => NAMES[name] ?? name.replace(/^[a-z_]+\//, "");
// Metrics are logged after a step, as step 1, 2, ...; groups belong to step 0, 1, ...
const groupsAt = (run, step) => `${linkTo(run, "groups")}?step=${Math.max(0, step - 1)}`;

function tools(redraw, note) {
  const box = (label, key) => el("label", {}, el("input", { type: "checkbox", checked: state[key], onchange: (e) => { state[key] = e.target.checked; redraw(); } }), label);
  const slider = el("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: state.weight, oninput: (e) => { state.weight = Number(e.target.value); redraw(); } });
  return el("div", { class: "tools" }, el("label", {}, "smooth ", slider), box(" log", "log"), box(" every metric", "all"), box(" as tables", "table"), el("span", { class: "quiet" }, note));
}

const alarmsOf = (metrics) => { const [steps, values] = metrics["eval/drift"] ?? [[], []]; return steps.filter((s, i) => values[i]); };

// ------------------------------------------------------------------------------------------------------------ one run

function figuresOf(name, metrics) {
  const options = { ...state, range: rangeOf(name), marks: alarmsOf(metrics), onstep: (step) => { location.hash = groupsAt(name, step); }, hrefOf: (step) => groupsAt(name, step) };
  const lines = (names, label = shortName) => names.filter((n) => metrics[n]).map((n, hue) => ({ name: label(n), steps: metrics[n][0], values: metrics[n][1], hue: hue % HUES }));
  const causes = Object.keys(metrics).filter((n) => n.startsWith(CAUSE));
  const others = state.all ? Object.keys(metrics).map((n) => [n, [n]]) : [];
  return [
    ...CHARTS.map(([title, names]) => chart(title, lines(names), options)),
    causes.length ? chart("unscored answers by cause", filled(causes, metrics), options) : null,
    ...others.map(([title, names]) => chart(title, lines(names, () => "value"), options)),
  ];
}

// A step without a cause does not log it: it is 0 there, not unknown.
function filled(causes, metrics) {
  const steps = (metrics["reward/mean"] ?? metrics[causes[0]])[0];
  return causes.map((n, hue) => {
    const known = new Map(metrics[n][0].map((s, i) => [s, metrics[n][1][i]]));
    return { name: n.slice(CAUSE.length), steps, values: steps.map((s) => known.get(s) ?? 0), hue: hue % HUES };
  });
}

// Numbers of answers without a reward, by cause, with links to their groups.
function unscored(name, metrics) {
  const sums = Object.keys(metrics).filter((n) => n.startsWith(CAUSE)).map((n) => [n.slice(CAUSE.length), metrics[n][1].reduce((a, b) => a + (b ?? 0), 0)]).filter(([, n]) => n);
  return sums.length ? [el("a", { href: `${linkTo(name, "groups")}?filter=unscored` }, "answers without a reward"), `: ${sums.sort((a, b) => b[1] - a[1]).map(([cause, n]) => `${cause} ${count(n)}`).join(", ")}`] : [];
}

// What the run is doing, in one line; `status` is its last status (see workdir/status.py).
export function doing(status, result) {
  if (result) return [["finished", ""]];
  if (!status || !status.at) return [["not finished; it has written no status", "quiet"]];
  const age = status.age_s, said = [];
  if (status.state === "ended") return [[`stopped after step ${status.done} of ${status.steps}`, "warn"], [`${seconds(age)} ago`, "quiet"]];
  if (age > 60) said.push([`no status for ${seconds(age)}`, "warn"]);
  said.push([`step ${status.done + 1} of ${status.steps}`, ""]);
  if (status.doing) said.push([status.doing, ""]);
  const calls = status.calls ?? [];
  if (calls.length) said.push([calls.map((c) => `${c.count} ${c.role} ${c.count === 1 ? "call" : "calls"} in flight, the oldest ${seconds(c.oldest_s)}`).join("; "), ""]);
  else if (status.spans?.length) said.push([`${status.spans.at(-1).name} for ${seconds(status.spans.at(-1).for_s)}`, ""]);
  if (status.still_s > 60) said.push([`no progress for ${seconds(status.still_s)}`, "warn"]);
  return said;
}

export function seconds(s) {
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

const COLUMNS = [["calls", "calls"], ["input_tokens", "tokens in"], ["cached_tokens", "of them cached"], ["output_tokens", "tokens out"], ["thought_tokens", "of them thought"]];

function costs(metrics) {
  const last = (n) => { const found = metrics[n]; return found ? found[1].at(-1) : undefined; };
  const roles = Object.keys(metrics).filter((n) => n.startsWith("teacher/calls_")).map((n) => n.slice("teacher/calls_".length));
  if (!roles.length) return null;
  const row = (label, suffix) => el("tr", {}, el("th", { scope: "row" }, label), COLUMNS.map(([key]) => el("td", { class: "num" }, count(last(`teacher/${key}${suffix}`)))), el("td", { class: "num" }, dollars(last(`teacher/cost_usd${suffix}`))));
  const more = [["retries", "retries"], ["reasks", "asked again"], ["failures", "failures"], ["taped", "replies from the tape"], ["unpriced_calls", "calls without a price"]]
    .map(([key, label]) => [last(`teacher/${key}`), label]).filter(([v]) => v).map(([v, label]) => `${count(v)} ${label}`);
  return el("section", {}, el("h2", {}, "the teacher's calls and their cost"),
    el("div", { class: "scroll", tabindex: 0 }, el("table", { class: "list small" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "role"), COLUMNS.map(([, label]) => el("th", { scope: "col", class: "num" }, label)), el("th", { scope: "col", class: "num" }, "cost"))),
      el("tbody", {}, roles.map((r) => row(r, `_${r}`))), el("tfoot", {}, row("all", "")))),
    more.length ? el("p", { class: "quiet" }, more.join(" · ")) : null);
}

export const count = (v) => (v === null || v === undefined ? "unknown" : Math.round(v).toLocaleString("en"));
export const dollars = (v) => (v === null || v === undefined ? "unknown" : v === 0 ? "$0" : v < 0.01 ? `$${v.toPrecision(1)}` : `$${v.toFixed(2)}`);
export const shown = (value) => (value === null || value === undefined ? "none" : typeof value === "string" ? (value || "“”") : JSON.stringify(value));

function changesTable(changes) {
  if (!changes.length) return el("p", { class: "quiet" }, "no key differs from the defaults");
  return el("div", { class: "scroll", tabindex: 0 }, el("table", { class: "list small config" }, el("thead", {}, el("tr", {}, ["key", "this run", "default"].map((n) => el("th", { scope: "col" }, n)))),
    el("tbody", {}, changes.map((c) => el("tr", {}, el("th", { scope: "row" }, c.key), el("td", {}, shown(c.value)), el("td", { class: "quiet" }, c.known ? shown(c.default) : "–"))))));
}

function resultList(result) {
  const cell = (key, v) => { const interval = result[`${key}_interval`]; return number(v, 3) + (interval ? ` [${number(interval[0], 3)}, ${number(interval[1], 3)}]` : ""); };
  const rows = Object.entries(result).filter(([, v]) => typeof v === "number" || typeof v === "string");
  return el("dl", {}, rows.map(([k, v]) => [el("dt", {}, k.replaceAll("_", " ")), el("dd", {}, typeof v === "number" ? cell(k, v) : v)]));
}

export async function runPage(name, main) {
  let about, metrics, known = "";
  const read = async () => { [about, metrics] = await Promise.all([get(apiOf(name)), get(`${apiOf(name)}/metrics`)]); };
  const charts = el("div", { class: "charts" }), now = el("p", { class: "doing", role: "status" }), alarm = el("p", { class: "warn" }), causes = el("p", {});
  const calls = el("div"), result = el("section");
  const redraw = () => fillCharts(charts, figuresOf(name, metrics));
  const show = () => {
    now.replaceChildren(...doing(about.status, about.result).flatMap(([text, kind], i) => [i ? el("span", { class: "quiet" }, " · ") : null, el("span", { class: kind }, text)]).filter(Boolean));
    const alarms = alarmsOf(metrics);
    alarm.replaceChildren(...(alarms.length ? [`drift alarm at step ${alarms.join(", ")}: the reward rose and the held-out measure fell; look at `, el("a", { href: `${linkTo(name, "groups")}?filter=rewarded` }, "wrong but rewarded")] : []));
    causes.replaceChildren(...unscored(name, metrics));
    calls.replaceChildren(...[costs(metrics)].filter(Boolean));
    result.replaceChildren(...(about.result ? [el("h2", {}, "result"), resultList(about.result)] : []));
    const version = JSON.stringify(Object.entries(metrics).map(([n, [s]]) => [n, s.length, s.at(-1)]));
    if (version !== known) { known = version; redraw(); }
  };
  await read();
  main.replaceChildren(
    now, alarm, causes, tools(redraw, "drag to zoom, double click to see everything; click a step to see its groups"), charts,
    el("div", { class: "columns" }, calls, result,
      el("section", {}, el("h2", {}, "config, where it differs from the defaults"), changesTable(about.changes ?? []), el("details", {}, el("summary", {}, "the whole config"), el("pre", { tabindex: 0 }, JSON.stringify(about.config, null, 1))))),
  );
  show();
  const again = () => (about.result === null ? 5 : null);
  return { again: again(), update: async () => { await read(); show(); return again(); } };
}

// ------------------------------------------------------------------------------------------------------- several runs

function comparedLines(metric, found, metrics) {
  return found.lines.map((line, hue) => {
    const series = line.runs.map((r) => metrics[r][metric]).filter(Boolean);
    if (series.length < line.runs.length || !series.length) return null;
    const one = series.length === 1 ? { steps: series[0][0], values: series[0][1] } : band(series);
    return one.steps.length ? { name: line.label, hue: hue % HUES, ...one } : null;
  }).filter(Boolean);
}

function differences(found) {
  if (!found.differences.length) return el("p", { class: "quiet" }, "their configs differ only in the seed");
  return el("div", { class: "scroll", tabindex: 0 }, el("table", { class: "list small config" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "key"), found.lines.map((l, i) => el("th", { scope: "col", class: `key c${i % HUES}` }, l.label)), el("th", { scope: "col" }, "default"))),
    el("tbody", {}, found.differences.map((d) => el("tr", {}, el("th", { scope: "row" }, d.key), d.values.map((v) => el("td", {}, shown(v))), el("td", { class: "quiet" }, d.known ? shown(d.default) : "–"))))));
}

export async function comparePage(names, main) {
  let found, metrics, known = "";
  const read = async () => {
    found = await get(`api/compare?runs=${names.map(encodeURIComponent).join(",")}`);
    metrics = Object.fromEntries(await Promise.all(names.map(async (n) => [n, await get(`${apiOf(n)}/metrics`)])));
  };
  const charts = el("div", { class: "charts" }), page = names.join(",");
  const redraw = () => {
    const options = { ...state, range: rangeOf(page) };
    const every = [...new Set(names.flatMap((n) => Object.keys(metrics[n])))].sort();
    const wanted = state.all ? every : CHARTS.flatMap(([, own]) => own).filter((m) => every.includes(m));
    fillCharts(charts, wanted.map((m) => chart(m, comparedLines(m, found, metrics), options)));
  };
  const show = () => {
    const version = JSON.stringify(names.map((n) => Object.entries(metrics[n]).map(([m, [s]]) => [m, s.length])));
    if (version !== known) { known = version; redraw(); }
  };
  await read();
  const several = found.lines.some((l) => l.runs.length > 1);
  const runLinks = (l) => l.runs.flatMap((r, i) => [i ? ", " : "", el("a", { href: linkTo(r) }, r)]);
  main.replaceChildren(
    el("ul", { class: "lines" }, found.lines.map((l, i) => el("li", {}, el("b", { class: `key c${i % HUES}` }, l.label), l.runs.length > 1 ? [" ", runLinks(l)] : null))),
    several ? el("p", { class: "quiet" }, "Runs that differ only in the seed are one line: the mean of the seeds, and a band from the lowest to the highest. It covers the steps that all of them have.") : null,
    tools(redraw, "drag to zoom, double click to see everything"), charts,
    el("section", {}, el("h2", {}, "what their configs differ in"), differences(found)),
  );
  show();
  const again = () => (found.running ? 5 : null);
  return { again: again(), update: async () => { await read(); show(); return again(); } };
}
