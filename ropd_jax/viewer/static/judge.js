// The reliability of the verifier: calibrations against known truths, and second judgements by another verifier.

import { dollars, count } from "./curves.js";
import { apiOf, el, get, linkTo, number } from "./dom.js";

const MEASURES = ["accuracy", "sensitivity", "specificity", "kappa"];
const CELLS = 60; // number of cells with differing verdicts shown before the rest is requested
const value = (e) => (e === null || e === undefined || e.value === null ? "unknown" : number(e.value, 2).replace("-", "−"));
const estimate = (e) => (e === null || e === undefined || e.value === null ? el("span", { class: "quiet" }, "unknown") : [value(e), e.low === null ? null : el("span", { class: "interval" }, ` [${number(e.low, 2)}, ${number(e.high, 2)}]`.replaceAll("-", "−"))]);
const share = (v) => (v === null || v === undefined ? "unknown" : `${(100 * v).toFixed(1)}%`);
const words = (text) => String(text).replaceAll("_", " ");

function table(heads, rows, first = "") {
  return el("div", { class: "scroll", tabindex: 0 }, el("table", { class: "list small" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, first), heads.map((h) => el("th", { scope: "col", class: "num" }, h)))),
    el("tbody", {}, rows.map(([label, ...cells]) => el("tr", {}, el("th", { scope: "row" }, label), cells.map((c) => el("td", { class: "num" }, c)))))));
}

function calibration(r) {
  const row = (label, found) => [words(label), count(found.n), ...MEASURES.map((m) => estimate(found[m]))];
  const bias = r.bias, each = r.traffic.per_1000_verdicts;
  const biases = [["AUC of the reward, answers of one question", r.auc.within], ["AUC of the reward, all answers", r.auc.all], ["position: last place against first", bias.position], ["length: padded against plain", bias.length.difference],
    ["style: confident Markdown against plain", bias.style.difference], ["halo: one opinion on all criteria", bias.halo], ["verdicts changed by another order", r.flips]];
  return el("section", {}, el("h2", {}, `calibration of ${r.verifier.model}`),
    el("p", { class: "quiet" }, el("span", { class: "path" }, r.name), ` · form ${r.verifier.form}, ${r.labels.asked} of ${r.labels.questions} questions, ${count(r.verdicts)} verdicts`),
    r.stopped ? el("p", { class: "warn" }, r.stopped) : null,
    el("ul", { class: "advice" }, r.recommendation.map((t) => el("li", {}, t))),
    el("div", { class: "columns" },
      table(["n", ...MEASURES], [row("all", r.overall), ...Object.entries(r.kinds).map(([k, v]) => row(k, v))], "kind of criterion"),
      table(["n", ...MEASURES], Object.entries(r.families).map(([k, v]) => row(k, v)), "family of questions"),
      table(["value"], biases.map(([label, e]) => [label, estimate(e)]), "reward and bias"),
      table(["per 1,000 verdicts"], [["calls", count(each.calls)], ["input tokens", count(each.input_tokens)], ["output tokens", count(each.output_tokens)], ["cost", dollars(each.usd)]], "cost")));
}

function cellRows(run, cells) {
  return cells.map((c) => el("tr", {}, el("td", { class: "num" }, c.step), el("td", { class: "num" }, c.group === undefined || c.group === null ? "?" : el("a", { href: linkTo(run, "g", c.step, c.group), "aria-label": `step ${c.step} group ${c.group}` }, c.group)),
    el("td", { class: "num" }, c.answer), el("td", { class: "num" }, c.points), ["before", "after"].map((k) => el("td", { class: c[k] ? "mark yes" : "mark no" }, el("span", { role: "img", "aria-label": c[k] ? "met" : "not met" }, c[k] ? "✓" : "✗"))), el("td", { class: "wide" }, c.text)));
}

function cellsOf(run, r) {
  if (!r.cells.length) return null;
  const body = el("tbody", {}, cellRows(run, r.cells.slice(0, CELLS)));
  const more = r.cells.length > CELLS ? el("button", { type: "button", class: "plain", onclick: () => { body.append(...cellRows(run, r.cells.slice(CELLS))); more.remove(); } }, `show ${r.cells.length - CELLS} more`) : null;
  return el("section", {}, el("h2", {}, `verdicts on which they differ: ${count(r.cells_total)}`, r.cells_total > r.cells.length ? `, ${r.cells.length} of them here` : ""),
    el("div", { class: "scroll" }, el("table", { class: "list small" }, el("thead", {}, el("tr", {}, ["step", "group", "answer", "points"].map((n) => el("th", { scope: "col", class: "num" }, n)), ["before", "after"].map((n) => el("th", { scope: "col", class: "mark" }, n)), el("th", { scope: "col" }, "criterion"))), body)), more);
}

function differing(run, r) {
  if (!r.criteria.length) return null;
  return el("details", { class: "section" }, el("summary", {}, `criteria that they read differently: ${r.criteria.length}`),
    el("div", { class: "scroll" }, el("table", { class: "list small" }, el("thead", {}, el("tr", {}, ["step", "group", "agree", "true before", "true after", "points"].map((n) => el("th", { scope: "col", class: "num" }, n)), el("th", { scope: "col" }, "criterion"))),
      el("tbody", {}, r.criteria.map((c) => el("tr", {}, el("td", { class: "num" }, c.step), el("td", { class: "num" }, c.group === null || c.group === undefined ? "?" : el("a", { href: linkTo(run, "g", c.step, c.group), "aria-label": `step ${c.step} group ${c.group}` }, c.group)),
        el("td", { class: "num" }, share(c.agreement)), el("td", { class: "num" }, c.true_before), el("td", { class: "num" }, c.true_after), el("td", { class: "num" }, c.points), el("td", { class: "wide" }, c.text)))))));
}

function rejudged(run, r) {
  const signs = r.advantage_signs;
  const facts = [["agreement of verdicts, Cohen's kappa", r.kappa === null ? "unknown" : number(r.kappa, 3)], ["verdicts changed", share(r.verdicts_changed_frac)], ["rewards changed", share(r.reward_changed_frac)],
    ["advantages with the opposite sign", `${count(signs.flipped)} of ${count(signs.rollouts)}`], ["groups with another best answer", share(r.best_changed_frac)], ["rank correlation within groups", r.spearman_within_groups === null ? "unknown" : number(r.spearman_within_groups, 3)],
    ["mean reward", `${number(r.reward_mean.before, 3)} → ${number(r.reward_mean.after, 3)}`], ["rollouts unscored", `${count(r.unscored.before.rollouts)} → ${count(r.unscored.after.rollouts)}`]];
  const points = Object.entries(r.kappa_by_points ?? {}).map(([p, k]) => [`kappa, criteria of ${p} ${p === "1" ? "point" : "points"}`, k === null ? "unknown" : number(k, 3)]);
  return el("section", {}, el("h2", {}, `${r.verifier.before.model} and ${r.verifier.after.model}`),
    el("p", { class: "quiet" }, el("span", { class: "path" }, r.name), ` · ${count(r.groups)} groups of steps ${r.steps[0]} to ${r.steps.at(-1)}, ${r.rubric} rubric`),
    el("dl", { class: "facts" }, [...facts, ...points].map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)])), cellsOf(run, r), differing(run, r));
}

export async function judgePage(run, query, main) {
  const found = await get(`${apiOf(run)}/judge`);
  const none = el("p", { class: "quiet" }, "nothing here yet; ", el("code", {}, "ropd calibrate-judge"), " measures a verifier against known truths, and ", el("code", {}, `ropd rejudge ${run} --out FILE`), " compares two verifiers on this run's answers. Put their --out into the folder that is viewed.");
  main.replaceChildren(...found.rejudged.map((r) => rejudged(run, r)), ...found.calibrations.map(calibration), ...(found.rejudged.length + found.calibrations.length ? [] : [none]));
  return null;
}
