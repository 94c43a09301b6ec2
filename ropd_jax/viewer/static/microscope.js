// One group: the question, the matrix of criteria and answers, and the answers themselves.

import { apiOf, el, get, linkTo, number, signed } from "./dom.js";

const MARKS = { true: ["✓", "met", "yes"], false: ["✗", "not met", "no"], none: ["·", "unscored", "none"] };

function mark(verdicts, id) {
  const [sign, label, kind] = MARKS[verdicts ? String(verdicts[id]) : "none"];
  return [el("span", { class: kind, "aria-label": label, role: "img" }, sign), label];
}

const weightOf = (c) => c.weight ?? c.points;

function push(advantage, largest) {
  const node = el("span", { class: advantage < 0 ? "push down" : "push", "aria-hidden": "true" }, el("i"));
  node.firstChild.style.height = `${largest ? (50 * Math.abs(advantage)) / largest : 0}%`;
  return node;
}

function matrix(rubric, columns, largest) {
  const scored = columns.filter((c) => !c.reference && c.item.verdicts);
  const head = columns.map((c) => el("th", { scope: "col", class: c.reference ? "col ref" : "col", "data-col": c.label }, el("a", { href: `#${c.id}`, onclick: (e) => { e.preventDefault(); goTo(c.id); } }, c.label)));
  const rewards = columns.map((c) => el("td", { class: c.reference ? "col ref" : "col", "data-col": c.label }, c.score === null ? "·" : number(c.score)));
  const pushes = columns.map((c) => el("td", { class: c.reference ? "col ref" : "col", "data-col": c.label, title: c.reference ? "" : signed(c.item.advantage) },
    c.reference || c.item.advantage === null ? null : [push(c.item.advantage, largest), el("span", { class: "sr" }, signed(c.item.advantage))]));
  const rows = rubric.map((c) => {
    const rate = scored.length ? scored.filter((s) => s.item.verdicts[c.id]).length / scored.length : null;
    return el("tr", {}, el("td", { class: "num" }, number(weightOf(c), Number.isInteger(weightOf(c)) ? 0 : 2)),
      el("th", { scope: "row", class: "criterion" }, el("span", { class: "category" }, c.category), c.text),
      el("td", { class: "num quiet" }, rate === null ? "" : `${Math.round(100 * rate)}%`),
      columns.map((k) => {
        const [sign, label] = mark(k.item.verdicts, c.id);
        const flipped = k.item.again && k.item.verdicts && k.item.again[c.id] !== k.item.verdicts[c.id];
        return el("td", { class: `col${k.reference ? " ref" : ""}${flipped ? " flipped" : ""}`, "data-col": k.label, title: `${k.label}, ${c.id}: ${label}${flipped ? "; the second look says otherwise" : ""}` }, sign);
      }));
  });
  return el("div", { class: "scroll" }, el("table", { class: "matrix", onpointerover: light, onpointerleave: light },
    el("caption", { class: "sr" }, "criteria by answers"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "num" }, "pts"), el("th", { scope: "col" }, "criterion"), el("th", { scope: "col", class: "num" }, "pass"), head)),
    el("tbody", {}, rows),
    el("tfoot", {}, el("tr", {}, el("td"), el("th", { scope: "row", class: "criterion" }, "reward"), el("td"), rewards),
      el("tr", { class: "pushes" }, el("td"), el("th", { scope: "row", class: "criterion" }, "advantage"), el("td"), pushes))));
}

function light(event) {
  const label = event.target.closest?.("[data-col]")?.dataset.col;
  for (const node of document.querySelectorAll("[data-col]")) node.classList.toggle("lit", node.dataset.col === label);
}

function goTo(id) {
  const node = document.getElementById(id);
  node?.scrollIntoView({ block: "center" });
  node?.focus({ preventScroll: true });
}

function card(column, right) {
  const a = column.item;
  const notes = [];
  if (column.reference) notes.push(el("span", { class: "quiet" }, a.model ? `reference by ${a.model}` : "reference"));
  else {
    if (a.advantage !== null) notes.push(el("span", { class: a.advantage < 0 ? "no" : "yes" }, signed(a.advantage)));
    if (right !== null) notes.push(el("span", { class: right ? "yes" : "no" }, right ? "right" : "wrong"));
    if (a.unscored !== null) notes.push(el("span", { class: "warn" }, `unscored: ${a.unscored}`));
    if (a.finish_reason === "length") notes.push(el("span", { class: "warn" }, "cut"));
    notes.push(el("span", { class: "quiet" }, `${a.tokens} tokens`));
  }
  return el("article", { id: column.id, class: column.reference ? "ref" : "", tabindex: -1, "data-col": column.label },
    el("header", {}, el("b", {}, column.label), el("span", {}, column.score === null ? "" : number(column.score)), notes),
    el("pre", {}, a.text),
    a.rubric?.length ? matrix(a.rubric, [column], 0) : null);
}

export async function groupPage(run, step, group, main) {
  const found = await get(`${apiOf(run)}/groups/${step}/${group}`);
  const row = found.row;
  const columns = [
    ...row.answers.map((item, i) => ({ label: String(i), id: `answer-${i}`, item, score: item.reward, reference: false })),
    ...row.references.map((item, i) => ({ label: `R${i}`, id: `reference-${i}`, item, score: found.reference_scores[i], reference: true })),
  ];
  const largest = Math.max(0, ...row.answers.map((a) => Math.abs(a.advantage ?? 0)));
  const to = (place, label, key) => (place ? el("a", { href: linkTo(run, "g", ...place), "data-key": key, rel: key === "next" ? "next" : "prev" }, label) : el("span", { class: "quiet" }, label));
  main.replaceChildren(
    el("div", { class: "tools" }, el("h1", {}, `step ${row.step}, group ${row.group}`), el("span", { class: "quiet" }, row.prompt_id),
      el("nav", { "aria-label": "groups" }, to(found.previous, "← previous", "previous"), " ", to(found.next, "next →", "next"), " ", el("a", { href: linkTo(run, "g", step, group) }, "permalink"))),
    el("blockquote", {}, row.question),
    row.gold_answer === null || row.gold_answer === undefined ? null : el("p", { class: "quiet" }, "gold answer ", el("b", {}, row.gold_answer)),
    row.rubric.length ? matrix(row.rubric, columns, largest) : el("p", { class: "quiet" }, "this group has no rubric of its own"),
    el("div", { class: "answers" }, columns.map((c, i) => card(c, c.reference ? null : found.right[i]))),
    row.lineage ? el("p", { class: "quiet" }, `rubric induced at step ${row.lineage.step} by ${row.lineage.model}, ${row.lineage.template}`) : null,
  );
}
