// The criteria of a run over training: clusters of similar wordings, which of them the student learned, and their groups.

import { sparkline } from "./charts.js";
import { apiOf, el, get, linkTo, number, svg } from "./dom.js";

const MOST = 300; // maximum number of kinds in the page
const COLUMNS = [["count", "n"], ["points", "points"], [null, "early"], [null, "late"], ["change", "change"], [null, "along the run"], ["discriminates", "separates"], ["unexplored", "unexplored"], ["suppressed", "suppressed"], ["flips", "flips"]];
const percent = (v) => (v === null || v === undefined ? "" : `${Math.round(100 * v)}%`);
const points = (v) => (v === null ? "" : (v < 0 ? "−" : "+") + Math.abs(100 * v).toFixed(0));
const VERDICTS = { learned: ["learned", "yes"], lost: ["lost", "no"] };

const addressOf = (run, query, changes) => {
  const next = new URLSearchParams(query);
  for (const [name, value] of Object.entries(changes)) if (value) next.set(name, value); else next.delete(name);
  return linkTo(run, "criteria") + ([...next].length ? `?${next}` : "");
};

export function changeOf(c) {
  if (c.change === null) return el("span", { class: "quiet", title: "too few groups early or late in the run" }, "·");
  const [label, kind] = VERDICTS[c.verdict] ?? ["", "quiet"];
  return el("span", { class: kind, title: `95 % interval ${points(c.low)} to ${points(c.high)} points` }, points(c.change), el("span", { class: "interval" }, ` [${points(c.low)}, ${points(c.high)}]`), label ? el("span", { class: "sr" }, ` ${label}`) : null);
}

function cells(c) {
  return [el("td", { class: "num" }, c.count.toLocaleString("en")), el("td", { class: "num" }, number(c.points, 1)), el("td", { class: "num" }, percent(c.early)), el("td", { class: "num" }, percent(c.late)),
    el("td", { class: "num" }, changeOf(c)), el("td", {}, sparkline(c.spark, `pass rate along the run: ${c.spark.map((v) => percent(v) || "unknown").join(", ")}`, svg)),
    el("td", { class: "num" }, percent(c.discriminates)), el("td", { class: "num" }, percent(c.unexplored)), el("td", { class: "num" }, percent(c.suppressed)), el("td", { class: c.flips ? "num warn" : "num quiet" }, c.flips === null ? "·" : percent(c.flips))];
}

function head(run, query, first) {
  const sort = query.get("sort") || "count";
  return el("thead", {}, el("tr", {}, COLUMNS.map(([key, label]) => el("th", { scope: "col", class: label === "along the run" ? "" : "num", "aria-sort": run && key && key === sort ? "descending" : null },
    key && run ? el("a", { href: addressOf(run, query, { sort: key === "count" ? "" : key }) }, label, key === sort ? " ↓" : "") : label)), el("th", { scope: "col" }, first)));
}

function overview(run, query, found) {
  const on = query.get("category") || "";
  const row = (c, label, href) => el("tr", { class: on && label === on ? "on" : null }, cells(c), el("th", { scope: "row", class: "wide" }, href ? el("a", { href, "aria-current": on === label ? "true" : null }, label) : label));
  const shown = found.categories.slice(0, 12), left = found.categories.length - shown.length;
  return el("section", {}, el("h2", {}, "by category"),
    el("div", { class: "scroll", tabindex: 0 }, el("table", { class: "list small clusters" }, head(null, query, "category"), el("tbody", {}, row(found.all, "all"), shown.map((c) => row(c, c.category || "(none)", c.category ? addressOf(run, query, { category: c.category === on ? "" : c.category }) : null))))),
    left > 0 ? el("p", { class: "quiet" }, `${left} rarer categories`) : null);
}

const span = (steps) => (steps[0] === steps[1] ? `step ${steps[0]}` : `steps ${steps[0]}–${steps[1]}`);

// Clusters of the category, sorted by the chosen column; those without a value come last.
function chosen(found, query) {
  const sort = query.get("sort") || "count", category = query.get("category")?.toLowerCase();
  const wanted = found.clusters.filter((c) => !category || c.category.toLowerCase() === category);
  const value = (c) => c[sort] ?? -Infinity;
  return wanted.sort((a, b) => (value(a) === value(b) ? b.count - a.count : value(b) - value(a)));
}

function list(run, query, reply, main) {
  const found = reply.found, wanted = chosen(found, query), shown = wanted.slice(0, MOST);
  const facts = [`${found.criteria.toLocaleString("en")} criteria of ${found.groups.toLocaleString("en")} groups`];
  if (found.early) facts.push(`early: ${span(found.early)}, late: ${span(found.late)}`);
  const working = reply.working ? el("p", { class: "quiet", role: "status" }, progressOf(reply)) : null;
  main.replaceChildren(
    el("p", { class: "doing" }, found.judged ? [el("b", { class: "yes" }, `${found.learned} learned`), ", ", el("b", { class: found.lost ? "no" : "" }, `${found.lost} lost`), ` of ${found.judged} kinds of criteria with enough groups`] : "too few steps with groups to compare early with late",
      el("span", { class: "quiet" }, ` · ${facts.join(" · ")}`)),
    working ?? "",
    overview(run, query, found),
    el("section", {}, el("h2", {}, "by wording", query.get("category") ? [" · ", el("a", { class: "chip on", href: addressOf(run, query, { category: "" }) }, `${query.get("category")} ×`)] : null),
      el("div", { class: "scroll" }, el("table", { class: "list clusters" }, head(run, query, "criterion"),
        el("tbody", {}, shown.map((c) => el("tr", {}, cells(c), el("th", { scope: "row", class: "wide" }, el("span", { class: "category" }, c.category), el("a", { href: linkTo(run, "criteria", c.id) }, c.text), c.wordings > 1 ? el("span", { class: "quiet" }, ` and ${(c.wordings - 1).toLocaleString("en")} alike`) : null)))))),
      el("p", { class: "quiet" }, wanted.length > shown.length ? `the first ${shown.length} of ${wanted.length.toLocaleString("en")} kinds. ` : "", found.rarer ? `${found.rarer.toLocaleString("en")} rarer kinds are left out` : "")),
    el("details", {}, el("summary", {}, "how to read this"), el("p", { class: "prose" },
      "Criteria of one category with similar wordings are one kind; numbers and quoted texts are ignored. early and late are the pass rates of the scored answers in the first and the last third of the stored steps, as means over groups. The change is in percentage points with its 95 % interval over groups; learned means that the whole interval is above 0, lost that it is below. Of kinds that do not change, 5 % are called one of the two. separates is the share of criteria that some answers pass and some fail, the only ones that give a reward a direction. unexplored is the share that a reference passes and no scored answer does: no reward teaches them. suppressed is the share of the answers that pass such a criterion while another one fails it, and whose reward is not above their group's mean: what they did well is not taught. flips is the share of verdicts that a second look changed. A rubric is written for what the student does at its step, so a pass rate can stay because the criteria grow with the student.")),
  );
}

const progressOf = (reply) => (reply.read < reply.of ? `reading: ${reply.read} of ${reply.of} step files` : "comparing the wordings");

async function clusterPage(run, id, main) {
  const c = await get(`${apiOf(run)}/criteria/${encodeURIComponent(id)}`);
  main.replaceChildren(
    el("div", { class: "tools" }, el("h1", {}, c.category || "criterion"), el("nav", { "aria-label": "back" }, el("a", { href: linkTo(run, "criteria") }, "← all criteria"))),
    el("blockquote", {}, c.text),
    el("div", { class: "scroll", tabindex: 0 }, el("table", { class: "list small clusters" }, head(null, new URLSearchParams(), ""), el("tbody", {}, el("tr", {}, cells(c), el("td"))))),
    el("h2", {}, `${c.count.toLocaleString("en")} such criteria`, c.criteria.length < c.count ? `, ${c.criteria.length} of them here` : ""),
    el("div", { class: "scroll" }, el("table", { class: "list small" },
      el("thead", {}, el("tr", {}, ["step", "group", "points", "pass"].map((n) => el("th", { scope: "col", class: "num" }, n)), el("th", { scope: "col" }, "criterion"))),
      el("tbody", {}, c.criteria.map((s) => el("tr", {}, el("td", { class: "num" }, s.step), el("td", { class: "num" }, el("a", { href: linkTo(run, "g", s.step, s.group), "aria-label": `step ${s.step} group ${s.group}` }, s.group)),
        el("td", { class: "num" }, number(s.points, Number.isInteger(s.points) ? 0 : 2)), el("td", { class: "num" }, s.rate === null ? "unscored" : `${percent(s.rate)} of ${s.scored}`), el("td", { class: "wide" }, s.text, s.flips ? el("span", { class: "warn" }, ` ${s.flips} flipped`) : null)))))),
  );
  return null;
}

export async function criteriaPage(run, parts, query, main) {
  if (parts[0]) return clusterPage(run, parts[0], main);
  const reply = await get(`${apiOf(run)}/criteria`), at = progressOf(reply);
  if (reply.found === null) {
    main.replaceChildren(el("p", { role: "status" }, at), el("progress", { max: Math.max(reply.of, 1), value: reply.read, "aria-label": "step files read" }));
    return 0.5;
  }
  if (!reply.found.criteria) main.replaceChildren(el("p", { class: "quiet" }, "no stored group has a rubric"));
  else list(run, query, reply, main);
  return reply.working ? 2 : 30;
}
