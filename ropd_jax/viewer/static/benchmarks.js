// Results of ropd eval and ropd grade: the list, and one result problem by problem, next to another one.

import { apiOf, el, get, linkTo } from "./dom.js";

const MOST = 600; // maximum number of problems in the page
const FILTERS = [["", "all"], ["right", "right"], ["partly", "right in part"], ["wrong", "wrong"], ["ungraded", "ungraded"], ["better", "better than before"], ["worse", "worse than before"]];
const percent = (v, digits = 1) => (v === null || v === undefined ? "unknown" : `${(100 * v).toFixed(digits)}%`);
const estimate = (e, sign = false) => (e === null || e.value === null ? "unknown" : `${sign && e.value > 0 ? "+" : ""}${percent(e.value)} [${percent(e.low)}, ${percent(e.high)}]`);

const addressOf = (run, query, changes) => {
  const next = new URLSearchParams(query);
  for (const [name, value] of Object.entries(changes)) if (value) next.set(name, value); else next.delete(name);
  return linkTo(run, "benchmarks") + ([...next].length ? `?${next}` : "");
};

// A value with its interval as a bar from 0 to 1.
function interval(e) {
  const node = el("span", { class: "ci", "aria-hidden": "true" }, el("i"), el("b"));
  if (e.value === null) return null;
  const clip = (v) => Math.min(Math.max(v, 0), 1);
  node.firstChild.style.left = `${100 * clip(e.low)}%`;
  node.firstChild.style.width = `${100 * (clip(e.high) - clip(e.low))}%`;
  node.lastChild.style.left = `${100 * clip(e.value)}%`;
  return node;
}

function listPage(run, query, results, main) {
  const row = (r) => el("tr", {}, el("th", { scope: "row", class: "wide" }, el("a", { href: addressOf(run, query, { result: r.name }) }, r.title), el("span", { class: "quiet path" }, ` ${r.name}`)),
    el("td", { class: "num" }, r.metric), el("td", { class: "num" }, estimate(r.value)), el("td", {}, interval(r.value)), el("td", { class: "num" }, r.value.n), el("td", { class: r.ungraded ? "num warn" : "num quiet" }, r.ungraded ? percent(r.ungraded) : "·"),
    el("td", { class: r.truncated ? "num warn" : "num quiet" }, r.truncated ? percent(r.truncated) : "·"));
  const table = (title, own) => (own.length ? el("section", {}, el("h2", {}, title), el("div", { class: "scroll" }, el("table", { class: "list" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "benchmark"), el("th", { scope: "col", class: "num" }, "metric"), el("th", { scope: "col", class: "num" }, "value, 95 % interval"), el("td"), ["problems", "ungraded", "truncated"].map((n) => el("th", { scope: "col", class: "num" }, n)))),
    el("tbody", {}, own.map(row))))) : null);
  const own = results.filter((r) => r.own), others = results.filter((r) => !r.own);
  main.replaceChildren(...[table("results of this run", own), table("other results in this folder", others),
    results.length ? null : el("p", { class: "quiet" }, "no results here; ", el("code", {}, `ropd eval ${run} --benchmark ...`), " writes them into the run, and ropd grade --out to a file of this folder")].filter(Boolean));
}

const kindOf = (r) => (r.value === null ? "ungraded" : r.value >= 1 ? "right" : r.value <= 0 ? "wrong" : "partly");
const moved = (r) => (r.value === null || r.before === null || r.before === undefined ? "" : r.value > r.before ? "better" : r.value < r.before ? "worse" : "");

function answersOf(run, name, id) {
  const place = el("td", { colspan: 4 });
  get(`${apiOf(run)}/benchmarks?${new URLSearchParams({ result: name, problem: id })}`).then(
    ({ answers }) => place.replaceChildren(...(answers.length ? answers.map((a) => el("pre", { tabindex: 0 }, a.text, a.truncated ? el("span", { class: "warn" }, " (cut)") : null)) : [el("span", { class: "quiet" }, "the answers are not stored next to the result")])),
    (error) => place.replaceChildren(el("span", { class: "no" }, error.message)));
  return el("tr", { class: "opened" }, place);
}

function problemRow(run, name, r, paired) {
  const kind = kindOf(r), change = moved(r);
  const open = el("button", { type: "button", class: "plain", "aria-expanded": "false", onclick: () => {
    const row = open.closest("tr"), there = row.nextSibling?.classList?.contains("opened");
    if (there) row.nextSibling.remove(); else row.after(answersOf(run, name, r.id));
    open.setAttribute("aria-expanded", String(!there));
  } }, r.id);
  return el("tr", {}, el("th", { scope: "row", class: "wide" }, open), el("td", { class: { right: "num yes", wrong: "num no", ungraded: "num warn" }[kind] ?? "num" }, r.value === null ? "ungraded" : percent(r.value, 0)),
    paired ? [el("td", { class: "num quiet" }, r.before === null || r.before === undefined ? "–" : percent(r.before, 0)), el("td", { class: change === "better" ? "yes" : change === "worse" ? "no" : "" }, change)] : null);
}

async function resultPage(run, query, main) {
  const name = query.get("result"), against = query.get("against") || "", filter = query.get("filter") || "";
  const found = await get(`${apiOf(run)}/benchmarks?${new URLSearchParams({ result: name, against })}`);
  const r = found.result, paired = found.paired;
  const tests = { "": () => true, better: (x) => moved(x) === "better", worse: (x) => moved(x) === "worse" };
  const wanted = (f) => found.rows.filter(tests[f] ?? ((x) => kindOf(x) === f));
  const rows = wanted(filter);
  const chips = FILTERS.filter(([f]) => paired || !["better", "worse"].includes(f)).map(([f, label]) => el("a", { class: f === filter ? "chip on" : "chip", role: "button", "aria-pressed": String(f === filter), href: addressOf(run, query, { filter: f }) }, `${label} ${wanted(f).length}`));
  const more = [["pass", "pass@"], ["parts", ""], ["tags", ""]].flatMap(([key, prefix]) => Object.entries(r[key] ?? {}).map(([k, e]) => [`${prefix}${k}`, e])).concat(r.maj && r.k?.[1] > 1 ? [[`maj@${r.k[1]}`, r.maj]] : []);
  const select = el("select", { "aria-label": "compare with", onchange: (e) => { location.hash = addressOf(run, query, { against: e.target.value, filter: "" }); } }, el("option", { value: "" }, "compare with ..."), found.others.map((n) => el("option", { value: n, selected: n === against }, n)));
  const causes = (counts) => Object.entries(counts ?? {}).map(([c, n]) => `${c} ${n}`).join(", ");
  const notes = [r.ungraded?.answers ? `${r.ungraded.answers} of ${r.answers} answers ungraded (${causes(r.ungraded.causes)})` : null, r.truncated?.answers ? `${r.truncated.answers} truncated` : null, Object.keys(r.wrong ?? {}).length ? `wrong: ${causes(r.wrong)}` : null].filter(Boolean);
  main.replaceChildren(
    el("div", { class: "tools" }, el("h1", {}, r.title ?? r.benchmark), el("span", { class: "quiet path" }, name), el("nav", { "aria-label": "back" }, el("a", { href: linkTo(run, "benchmarks") }, "← all results"))),
    el("p", { class: "doing" }, `${r.metric} `, el("b", {}, estimate(r.value)), el("span", { class: "quiet" }, ` · ${r.value.n} problems, ${r.answers} answers`)),
    more.length ? el("dl", { class: "inline" }, more.map(([k, e]) => [el("dt", {}, k), el("dd", {}, estimate(e))])) : "",
    notes.length ? el("p", { class: "quiet" }, notes.join(" · ")) : "",
    found.others.length ? el("div", { class: "tools" }, select) : "",
    paired ? el("p", { class: "doing" }, "difference ", el("b", {}, estimate(paired, true)), `, paired over ${paired.n} problems: `, el("span", { class: "yes" }, `${paired.better} better`), ", ", el("span", { class: "no" }, `${paired.worse} worse`), el("span", { class: "quiet" }, paired.p === null ? "" : ` · sign test p = ${paired.p < 0.001 ? paired.p.toExponential(0) : paired.p.toFixed(3)}`)) : "",
    el("div", { class: "tools" }, chips),
    el("div", { class: "scroll" }, el("table", { class: "list problems" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "problem"), el("th", { scope: "col", class: "num" }, paired ? "now" : "right"), paired ? [el("th", { scope: "col", class: "num" }, "before"), el("th", { scope: "col" }, "change")] : null)),
      el("tbody", {}, rows.slice(0, MOST).map((x) => problemRow(run, name, x, paired))))),
    rows.length > MOST ? el("p", { class: "quiet" }, `the first ${MOST} of ${rows.length.toLocaleString("en")} problems; filters show the others`) : "",
  );
}

export async function benchmarksPage(run, query, main) {
  if (query.get("result")) await resultPage(run, query, main);
  else listPage(run, query, (await get(`${apiOf(run)}/benchmarks`)).results, main);
  return null;
}
