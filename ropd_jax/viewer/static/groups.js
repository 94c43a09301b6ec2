// The list of groups: filters, sorting, search, pages. Its state is in the address, so that a list can be shared.

import { apiOf, el, get, linkTo, number } from "./dom.js";

const FILTERS = [
  ["unscored", "unscored"], ["truncated", "cut"], ["zero_variance", "zero variance"], ["below", "reference below rollout"],
  ["punished", "right but punished"], ["rewarded", "wrong but rewarded"], ["flipped", "flipped in a second verification"],
  ["unexplored", "unexplored criterion"], ["suppressed", "suppressed criterion"],
];
const COLUMNS = [["step", "step"], [null, "group"], ["reward", "reward"], ["spread", "spread"], ["reference", "ref"],
  ["unscored", "unscored"], ["truncated", "cut"], ["unexplored", "unexplored"], ["suppressed", "suppressed"]];
const PAGE = 50;

const addressOf = (run, query) => {
  const kept = [...query].filter(([, value]) => value !== "" && value !== "0");
  return linkTo(run, "groups") + (kept.length ? `?${new URLSearchParams(kept)}` : "");
};

function changed(run, query, changes) {
  const next = new URLSearchParams(query);
  next.delete("offset");
  for (const [name, value] of Object.entries(changes)) next.set(name, value);
  return addressOf(run, next);
}

function bar(value) {
  if (value === null) return null;
  const node = el("span", { class: "meter", "aria-hidden": "true" }, el("i"));
  node.firstChild.style.width = `${100 * Math.min(Math.max(value, 0), 1)}%`;
  return node;
}

function rowOf(run, s) {
  const link = linkTo(run, "g", s.step, s.group);
  const flags = [s.zero_variance && "zero variance", s.below && "ref below", s.flipped && "flipped", ...s.causes].filter(Boolean);
  return el("tr", { onclick: (e) => { if (!e.target.closest("a")) location.hash = link; } },
    el("td", { class: "num" }, s.step), el("td", { class: "num" }, el("a", { href: link, "aria-label": `step ${s.step} group ${s.group}` }, s.group)),
    el("td", { class: "num" }, number(s.reward), bar(s.reward)), el("td", { class: "num" }, number(s.spread)),
    el("td", { class: "num" }, number(s.reference)), el("td", { class: s.unscored ? "num warn" : "num quiet" }, s.unscored || "·"),
    el("td", { class: s.truncated ? "num warn" : "num quiet" }, s.truncated || "·"),
    el("td", { class: s.unexplored ? "num" : "num quiet", title: `of ${s.criteria} criteria` }, s.unexplored || "·"),
    el("td", { class: s.suppressed ? "num" : "num quiet", title: `of ${s.answers} answers` }, s.suppressed || "·"),
    el("td", { class: "question" }, flags.length ? el("span", { class: "flags" }, flags.join(", "), " ") : null, s.question));
}

export async function groupsPage(run, query, main) {
  const asked = new URLSearchParams(query);
  const found = await get(`${apiOf(run)}/groups?${asked}`);
  const on = (query.get("filter") || "").split(",").filter(Boolean);
  const sort = query.get("sort") || "step", down = query.get("desc") === "1", offset = Number(query.get("offset") || 0);
  const filters = FILTERS.map(([name, label]) => el("a", {
    class: on.includes(name) ? "chip on" : "chip", role: "button", "aria-pressed": String(on.includes(name)),
    href: changed(run, query, { filter: (on.includes(name) ? on.filter((f) => f !== name) : [...on, name]).join(",") }),
  }, label, name in found.counts ? el("span", { class: "count" }, ` ${found.counts[name].toLocaleString("en")}`) : null));
  const head = COLUMNS.map(([key, label]) => el("th", { scope: "col", class: "num", "aria-sort": key === sort ? (down ? "descending" : "ascending") : null },
    key ? el("a", { href: changed(run, query, { sort: key, desc: key === sort && !down ? "1" : "" }) }, label, key === sort ? (down ? " ↓" : " ↑") : "") : label));
  const search = el("input", { type: "search", name: "q", value: query.get("q") || "", placeholder: "search questions, criteria, answers", "aria-label": "search", maxlength: 400 });
  const form = el("form", { role: "search", onsubmit: (e) => { e.preventDefault(); location.hash = changed(run, query, { q: search.value }); } }, search);
  const more = (label, to, there) => (there ? el("a", { href: addressOf(run, new URLSearchParams([...[...query].filter(([k]) => k !== "offset"), ["offset", String(to)]])) }, label) : null);
  const [compared, candidates] = found.graded;
  const counts = [`${found.total.toLocaleString("en")} groups`];
  if (found.read < found.of) counts.push(`${found.read} of ${found.of} step files read`);
  if (compared < candidates) counts.push(`${compared.toLocaleString("en")} of ${candidates.toLocaleString("en")} compared with gold answers`);
  if (found.unreadable) counts.push(`${found.unreadable} lines are not groups and left out`);
  const typing = document.activeElement?.name === "q";
  main.replaceChildren(
    el("div", { class: "tools" }, form, filters, query.get("step") ? el("a", { class: "chip on", href: changed(run, query, { step: "" }) }, `step ${query.get("step")} ×`) : null),
    el("p", { class: "quiet", role: "status" }, counts.join(" · ")),
    el("div", { class: "scroll" }, el("table", { class: "list groups" }, el("thead", {}, el("tr", {}, head, el("th", { scope: "col" }, "question"))),
      el("tbody", {}, found.groups.map((s) => rowOf(run, s))))),
    el("nav", { class: "pages", "aria-label": "pages" }, more("← earlier", Math.max(0, offset - PAGE), offset > 0),
      found.total > PAGE ? el("span", { class: "quiet" }, `${offset + 1}–${Math.min(offset + PAGE, found.total)}`) : null,
      more("later →", offset + PAGE, offset + PAGE < found.total)),
  );
  if (typing) { search.focus(); search.setSelectionRange(search.value.length, search.value.length); }
  return found.read < found.of || compared < candidates ? 0.3 : null;
}
