// One group: the question, the matrix of criteria and answers, the texts, and the requests to the teacher.
//
// The address stores how the texts are shown:  #/RUN/g/12/0?show=differences&to=R0
//
//   rendered       Markdown and LaTeX (`texts`)              log-prob   tokens by the student's log-probability
//   source         exactly the original text                 change     tokens by its change in the update
//   differences    words that a chosen text lacks (`diff`)

import { callsOf, callsSection, openCall } from "./calls.js";
import { diff, shared } from "./diff.js";
import { apiOf, el, get, linkTo, number, signed } from "./dom.js";
import { renderer } from "./texts.js";
import { legend, tinted, tokensOf } from "./tokens.js";

const MARKS = { true: ["✓", "met", "yes"], false: ["✗", "not met", "no"], none: ["·", "unscored", "none"] };
const SHOWS = [["rendered", "rendered"], ["source", "source"], ["differences", "differences"], ["logp", "log-prob"], ["change", "change"]];
const CAUSES = {
  malformed: "the verifier's reply could not be read", missing: "the verifier's reply has no verdict on it", duplicate: "the reply judges it twice, differently",
  tie: "as many votes for a criterion as against it", split: "the votes agree too little", truncated: "the teacher's reply was cut at its token limit",
  blocked: "the provider blocked the request", context: "the request is longer than the teacher's context", refused: "the teacher refused", empty: "the teacher's reply was empty",
  thinking: "the teacher's thinking had no end", junk: "the teacher's reply is no answer", timeout: "the teacher did not answer in time", connection: "the teacher could not be reached",
  transient: "the teacher failed for a passing reason", outage: "the teacher could not be reached for long", budget: "the budget was spent", screened: "no criterion was left that may count",
  no_criteria: "the question has no criteria",
};
const HELP = [["← or k", "previous group"], ["→ or j", "next group"], ["s", "rendered or source"], ["d", "differences, and the next text to compare with"],
  ["l", "log-prob, change, off"], ["m", "into the matrix; arrows move, Enter keeps the note, Esc leaves"], ["r", "requests to the teacher"], ["?", "these keys"]];

// What the total reward hides: [its name, what it means]. `sure`: some reference has verdicts.
const UNEXPLORED = (sure) => ["unexplored", sure ? "A reference meets this criterion and no scored answer does, so no reward of this group teaches it." : "No scored answer meets this criterion, so no reward of this group teaches it. No reference was judged."];
const SUPPRESSED = ["suppressed", "The answer meets a criterion that another one does not meet, but its reward is not above the group's mean, so the total reward does not teach it."];
const HIDDEN = (by) => ["hidden", `This criterion did not count in the rewards of this group: its weight is 0${by?.length ? ` (${by.join(", ")})` : ""}.`];

const SIGNS = ["unexplored", "suppressed", "hidden"];

const weightOf = (c) => c.weight ?? c.points;
const isHidden = (c) => c.weight === 0 && c.points > 0;
const pointsOf = (c) => number(weightOf(c), Number.isInteger(weightOf(c)) ? 0 : 2);
const kindOf = (verdicts, id) => MARKS[verdicts ? String(verdicts[id]) : "none"];
let page = null; // state of the displayed group; keys act on it

// ------------------------------------------------------------------------------------------------------------ matrix

function push(advantage, largest) {
  const node = el("span", { class: advantage < 0 ? "push down" : "push", "aria-hidden": "true" }, el("i"));
  node.firstChild.style.height = `${largest ? (50 * Math.abs(advantage)) / largest : 0}%`;
  return node;
}

function pile(reward) {
  const node = el("span", { class: "pile", "aria-hidden": "true" }, el("i"));
  node.firstChild.style.height = `${100 * Math.min(Math.max(reward, 0), 1)}%`;
  return node;
}

// `missed`: unexplored and suppressed criteria of the group's rubric, from the server.
function matrix(here, rubric, columns, largest, missed = {}) {
  const seen = new Map(), note = (about) => { seen.set(about[0], about); return about; };
  const sure = columns.some((c) => c.reference && c.item.verdicts);
  const scored = columns.filter((c) => !c.reference && c.item.verdicts);
  const classes = (c, more = "") => `col${c.reference ? " ref" : ""}${more}`;
  const head = columns.map((c) => el("th", { role: "columnheader", scope: "col", class: classes(c), "data-col": c.label },
    el("a", { href: `#${c.id}`, "aria-label": c.name, onclick: (e) => { e.preventDefault(); goTo(c.id); } }, c.label)));
  const rewards = columns.map((c) => el("td", { role: "gridcell", class: classes(c), "data-col": c.label }, c.score === null ? "·" : [pile(c.score), number(c.score)]));
  const pushes = columns.map((c) => el("td", { role: "gridcell", class: classes(c), "data-col": c.label },
    c.reference || c.item.advantage === null ? null : [push(c.item.advantage, largest), signed(c.item.advantage)]));
  const rows = rubric.map((c, at) => {
    const tags = [missed.unexplored?.[at] && note(UNEXPLORED(sure)), isHidden(c) && note(HIDDEN(missed.hidden_by))].filter(Boolean);
    const rate = scored.length ? scored.filter((s) => s.item.verdicts[c.id]).length / scored.length : null;
    const words = el("span", { class: "text" }, c.text);
    here.texts.push({ node: words, text: c.text, inline: true });
    const marks = tags.map((about) => {
      const tag = el("span", { class: `tag ${about[0]}` }, about[0]);
      here.cells.set(tag, { criterion: c, tags: [about] });
      return [" ", tag];
    });
    return el("tr", { role: "row", class: isHidden(c) ? "uncounted" : null }, el("td", { role: "gridcell", class: "num pts", title: "points" }, isHidden(c) ? el("s", {}, number(c.points, 0)) : pointsOf(c)),
      el("th", { role: "rowheader", scope: "row", class: "criterion" }, el("span", { class: "category" }, c.category), words, marks),
      el("td", { role: "gridcell", class: "num quiet rate", title: "share of the scored answers that meet it" }, rate === null ? "" : `${Math.round(100 * rate)}%`),
      columns.map((k) => {
        const [sign, label, kind] = kindOf(k.item.verdicts, c.id);
        const flipped = k.item.again && k.item.verdicts && k.item.again[c.id] !== k.item.verdicts[c.id];
        const suppressed = !k.reference && missed.suppressed?.[k.index]?.[at] ? note(SUPPRESSED) : null;
        const cell = el("td", { role: "gridcell", tabindex: -1, class: classes(k, ` cell ${kind}${flipped ? " flipped" : ""}${suppressed ? " suppressed" : ""}`), "data-col": k.label,
          "aria-label": `${k.name}, ${c.id}: ${label}${suppressed ? ", suppressed" : ""}${flipped ? ", the second verification differs" : ""}` }, sign);
        here.cells.set(cell, { column: k, criterion: c, label, kind, flipped, tags: suppressed ? [suppressed, ...tags] : tags });
        return cell;
      }));
  });
  const foot = (name, cells, kind) => el("tr", { role: "row", class: kind }, el("td", { role: "gridcell" }), el("th", { role: "rowheader", scope: "row", class: "criterion" }, name), el("td", { role: "gridcell" }), cells);
  const table = el("table", { role: "grid", class: "matrix", "aria-label": "criteria by answers",
    onpointerover: (e) => { light(e); here.hover(e.target.closest?.(".cell, .tag")); }, onpointerleave: (e) => { light(e); here.hover(null); },
    onfocusin: (e) => here.focus(e.target.closest(".cell")), onclick: (e) => here.keep(e.target.closest(".cell, .tag")), onkeydown: (e) => moved(here, table, e) },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, el("th", { role: "columnheader", scope: "col", class: "num pts" }, "pts"), el("th", { role: "columnheader", scope: "col", class: "criterion" }, "criterion"), el("th", { role: "columnheader", scope: "col", class: "num rate" }, "pass"), head)),
    el("tbody", { role: "rowgroup" }, rows),
    el("tfoot", { role: "rowgroup" }, foot("reward", rewards, "rewards"), largest ? foot("advantage", pushes, "pushes") : null));
  table.style.setProperty("--columns", Math.max(columns.length, 8));
  table.querySelector(".cell")?.setAttribute("tabindex", "0");
  return el("div", { class: "judged" }, el("div", { class: "scroll" }, table), seen.size ? key(seen) : null);
}

// The signs in a matrix, and their meanings.
function key(seen) {
  return el("dl", { class: "signs" }, SIGNS.filter((name) => seen.has(name)).map((name) => seen.get(name)).map(([name, text]) => [el("dt", {}, el("span", { class: name === "suppressed" ? "yes suppressed" : `tag ${name}` }, name === "suppressed" ? "✓" : name)), el("dd", {}, name === "suppressed" ? [el("b", {}, name), " "] : null, text)]));
}

function light(event) {
  const label = event.target.closest?.("[data-col]")?.dataset.col;
  for (const node of document.querySelectorAll("[data-col]")) node.classList.toggle("lit", node.dataset.col === label);
}

// Arrows in the matrix: one cell is in the tab order, and it moves.
function moved(here, table, event) {
  const cell = event.target.closest(".cell");
  if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
  const row = cell.parentNode, cells = [...row.querySelectorAll(".cell")], at = cells.indexOf(cell);
  const over = (r) => r?.querySelectorAll(".cell")[at];
  const to = { ArrowLeft: cells[at - 1], ArrowRight: cells[at + 1], ArrowUp: over(row.previousElementSibling), ArrowDown: over(row.nextElementSibling), Home: cells[0], End: cells.at(-1) };
  if (event.key in to) {
    if (to[event.key]) {
      cell.setAttribute("tabindex", "-1");
      to[event.key].setAttribute("tabindex", "0");
      to[event.key].focus();
    }
  } else if (event.key === "Enter" || event.key === " ") here.keep(cell);
  else if (event.key === "Escape") { here.keep(null); cell.blur(); } else return;
  event.preventDefault();
  event.stopPropagation();
}

function goTo(id) {
  const node = document.getElementById(id);
  node?.scrollIntoView({ block: "center" });
  node?.focus({ preventScroll: true });
}

// -------------------------------------------------------------------------------------------------- the note of a cell

// What is known about one verdict. `reasons` is null while the tape is being read.
function noteOf(here, { column, criterion, label, kind, flipped, tags }) {
  const about = [el("p", { class: "about" }, criterion.text), ...tags.map(([name, text]) => el("p", {}, el("b", {}, name), " ", text))];
  if (!column) return about;
  const asked = here.reasons?.filter((r) => r.answer === column.label && (r.criterion === criterion.id || r.criterion === null)) ?? [];
  const agreement = criterion.agreement === undefined || criterion.agreement === null ? null : `votes on this criterion agree by ${Math.round(100 * criterion.agreement)}%`;
  const why = asked.map((r) => el("p", { class: "reason" }, r.met !== null && r.met !== column.item.verdicts?.[criterion.id] ? el("span", { class: "warn" }, `another verification or vote: ${r.met ? "met" : "not met"}: `) : null, el("q", {}, r.text), r.criterion === null ? el("span", { class: "quiet" }, " on the whole answer") : null, " ",
    el("button", { type: "button", class: "plain", onclick: () => openCall(r.key) }, "reply")));
  const none = here.reasons === null ? "reading the verifier's replies …" : kind === "none" ? CAUSES[column.item.unscored] ?? "" : here.reasons.length ? "the reply gives no reason here" : here.unknown ? here.unknown : "the verifier was not asked for reasons (teacher.verifier.form=keyed_reasons)";
  return [
    el("p", {}, el("b", { class: kind }, kindOf(column.item.verdicts, criterion.id)[0], " ", label), el("span", { class: "quiet" }, ` ${column.name} · ${criterion.id} · ${isHidden(criterion) ? `hidden, ${number(criterion.points, 0)} points` : `${pointsOf(criterion)} points`}`, agreement ? ` · ${agreement}` : ""),
      " ", el("button", { type: "button", class: "plain", onclick: () => goTo(column.id) }, column.reference ? "read the reference" : "read the answer")),
    ...about,
    flipped ? el("p", { class: "warn" }, `The second verification: ${column.item.again[criterion.id] ? "met" : "not met"}.`) : null,
    ...why, why.length ? null : el("p", { class: "quiet" }, none),
  ].filter(Boolean);
}

function notes(here) {
  const box = el("aside", { class: "note", role: "status", "aria-live": "polite", "aria-label": "note", hidden: true });
  let kept = null, shown = null;
  const show = (cell) => {
    shown = cell;
    box.hidden = !cell;
    box.classList.toggle("kept", Boolean(cell) && cell === kept);
    box.replaceChildren(...(cell ? noteOf(here, here.cells.get(cell)) : []),
      ...(cell && cell === kept ? [el("button", { type: "button", class: "close", "aria-label": "close the note", onclick: () => here.keep(null) }, "×")] : []));
  };
  here.hover = (cell) => { if (cell !== shown) show(cell ?? kept); };
  here.focus = (cell) => { if (cell) show(cell); };
  here.keep = (cell) => {
    kept?.classList.remove("chosen");
    kept = cell && cell !== kept ? cell : null;
    kept?.classList.add("chosen");
    show(kept);
  };
  here.refresh = () => { if (shown) show(shown); };
  return box;
}

// ------------------------------------------------------------------------------------------------------------- texts

const source = (text) => el("pre", { tabindex: 0 }, text);

function differences(here, column) {
  const other = here.columns.find((c) => c.label === here.view.to);
  if (!other || other === column) return [el("p", { class: "quiet" }, other ? "the others are compared with this one" : ""), source(column.item.text)];
  const pieces = diff(column.item.text, other.item.text);
  const short = (text) => (text.length > 80 || text.includes("\n\n") ? `… ${text.length} characters …` : text);
  return [
    el("p", { class: "quiet" }, `${Math.round(100 * shared(pieces))}% of the words in common with ${other.name}`),
    el("pre", { tabindex: 0 }, pieces.map(([kind, text]) => (kind === "same" ? text : kind === "own" ? el("ins", {}, text)
      : el("del", { title: `only in ${other.name}: ${text.slice(0, 1000)}` }, short(text))))),
  ];
}

// Fills in the texts as set in the address, one after the other, so that the page stays responsive.
async function draw(here) {
  const mine = ++here.drawn, { show } = here.view;
  const current = () => mine === here.drawn && page === here;
  const put = (target, nodes) => { target.node.replaceChildren(...[nodes].flat()); };
  let render = null, tokens = null;
  try {
    if (show !== "source") render = await (here.renderer ??= renderer());
    if (show === "logp" || show === "change") tokens = await (here.tokens ??= tokensOf(here.run, here.step, here.group));
  } catch (error) {
    here.said.textContent = error.message;
  }
  if (!current()) return;
  here.said.replaceChildren(...(tokens ? legend(tokens, show) : []));
  for (const target of here.texts) {
    if (!current()) return;
    const plain = () => (target.inline || target.unboxed ? document.createTextNode(target.text) : source(target.text));
    const { column } = target;
    if (show === "differences" && column) put(target, differences(here, column));
    else if (tokens && column && !column.reference) put(target, tinted(tokens, column.index, target.text, show) ?? [tokens.note ? "" : el("p", { class: "quiet" }, "not known for this answer"), plain()]);
    else if (render && (show === "rendered" || !column)) {
      const nodes = target.text && render(target.text, target.inline);
      if (nodes && target.inline) put(target, nodes);
      else if (nodes) put(target, el("div", { class: "rendered", tabindex: 0 }, ...nodes));
      else put(target, plain());
    } else put(target, plain());
    await new Promise((next) => { setTimeout(next); });
  }
}

function card(here, column, right) {
  const a = column.item, facts = [];
  if (column.reference) facts.push(el("span", { class: "quiet" }, a.model ? `reference by ${a.model}` : "reference"));
  else {
    if (a.advantage !== null) facts.push(el("span", { class: a.advantage < 0 ? "no" : "yes", title: "advantage" }, signed(a.advantage)));
    if (right !== null) facts.push(el("span", { class: right ? "yes" : "no", title: "by the gold answer" }, right ? "right" : "wrong"));
    if (a.exact !== undefined && a.exact !== null) facts.push(el("span", { class: "quiet", title: "parts of the reward: the method's reward and the exact grade" }, `exact ${a.exact ? "right" : "wrong"}`, a.method_reward === null || a.method_reward === undefined ? "" : ` · ${a.verdicts ? "rubric" : "method"} ${number(a.method_reward)}`));
    if (a.score !== undefined && a.score !== null) facts.push(el("span", { class: "quiet" }, `score ${a.score}`));
    if (a.unscored !== null) facts.push(el("span", { class: "warn" }, `unscored: ${a.unscored}`));
    if (a.finish_reason === "length") facts.push(el("span", { class: "warn", title: "it ends at the token limit, not where the student would have stopped" }, "cut"));
    facts.push(el("span", { class: "quiet" }, `${a.tokens.toLocaleString("en")} tokens`));
  }
  const body = el("div", { class: "body" }, source(a.text));
  here.texts.push({ node: body, text: a.text, column });
  const wide = el("button", { type: "button", class: "plain widen", "aria-expanded": "false", "aria-label": `widen ${column.name}`,
    onclick: () => { wide.setAttribute("aria-expanded", String(node.classList.toggle("wide"))); } }, "⤢");
  const node = el("article", { id: column.id, class: column.reference ? "ref" : "", tabindex: -1, "data-col": column.label, "aria-label": column.name },
    el("header", {}, el("b", {}, column.label), el("span", {}, column.score === null ? "" : number(column.score)), facts, wide),
    !column.reference && CAUSES[a.unscored] ? el("p", { class: "quiet cause" }, CAUSES[a.unscored]) : null,
    body, a.rubric?.length ? matrix(here, a.rubric, [column], 0, { hidden_by: here.hiddenBy }) : null);
  return node;
}

// --------------------------------------------------------------------------------------------------- switches and keys

const kept = (view) => {
  const query = new URLSearchParams();
  if (view.show !== "rendered") query.set("show", view.show);
  if (view.show === "differences" && view.to) query.set("to", view.to);
  return query.size ? `?${query}` : "";
};

function change(here, changes) {
  Object.assign(here.view, changes);
  history.replaceState(null, "", linkTo(here.run, "g", here.step, here.group) + kept(here.view));
  return apply(here);
}

function apply(here) {
  const tail = kept(here.view);
  for (const [link, address] of here.links) link.setAttribute("href", address + tail);
  for (const [name, button] of here.buttons) button.setAttribute("aria-pressed", String(name === here.view.show));
  here.other.value = here.view.to;
  here.other.parentNode.hidden = here.view.show !== "differences";
  return draw(here);
}

function switches(here) {
  here.other = el("select", { onchange: (e) => change(here, { to: e.target.value }) }, here.columns.map((c) => el("option", { value: c.label }, c.name)));
  for (const [name, label] of SHOWS) here.buttons.set(name, el("button", { type: "button", class: "chip", "aria-pressed": "false", onclick: () => change(here, { show: name }) }, label));
  return el("div", { class: "tools texts", role: "toolbar", "aria-label": "how the texts are shown" }, ...here.buttons.values(), el("label", {}, "from ", here.other), here.said);
}

function help() {
  const box = el("dialog", { "aria-label": "keys", onclick: (e) => { if (e.target === box) box.close(); }, onclose: () => box.remove() },
    el("dl", {}, HELP.map(([key, what]) => [el("dt", {}, key), el("dd", {}, what)])), el("form", { method: "dialog" }, el("button", { class: "plain" }, "close")));
  document.body.append(box);
  box.showModal();
}

const after = (list, value) => list[(list.indexOf(value) + 1) % list.length];
const KEYS = {
  s: (here) => change(here, { show: here.view.show === "rendered" ? "source" : "rendered" }),
  d: (here) => change(here, here.view.show === "differences" ? { to: after(here.columns.map((c) => c.label), here.view.to) } : { show: "differences" }),
  l: (here) => change(here, { show: after(["logp", "change", "rendered"], here.view.show) }),
  m: (here) => here.root.querySelector(".cell[tabindex='0']")?.focus(),
  r: (here) => { here.calls.open = !here.calls.open; here.calls.scrollIntoView({ block: "nearest" }); },
  "?": () => help(),
};

document.addEventListener("keydown", (event) => {
  if (!page?.root.isConnected || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea, select") || document.querySelector("dialog[open]")) return;
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(page); }
});

// --------------------------------------------------------------------------------------------------------------- page

function lineage(here, row, sources) {
  if (!row.lineage) return null;
  const { step, model, template } = row.lineage;
  const named = (labels, one, total) => (total ? [` ${total} ${one}${total === 1 ? "" : "s"}`, labels.length ? el("span", { class: "quiet" }, ` (here ${labels.join(", ")})`) : el("span", { class: "quiet" }, " (none of this group)")] : null);
  return el("section", { class: "lineage" }, el("h2", {}, "where the rubric comes from"),
    el("p", {}, step === row.step ? "Induced in this step" : ["Reused; induced in ", el("a", { href: `${linkTo(here.run, "groups")}?step=${step}` }, `step ${step}`)], ` by ${model} with `, el("code", {}, template),
      sources ? [" from", named(sources.references, "reference", row.lineage.references.length), row.lineage.answers.length ? [" and", named(sources.answers, "answer", row.lineage.answers.length)] : " only", "."] : "."));
}

export async function groupPage(run, step, group, main) {
  const query = new URLSearchParams(location.hash.split("?")[1] ?? "");
  const found = await get(`${apiOf(run)}/groups/${step}/${group}`);
  const row = found.row;
  const columns = [
    ...row.answers.map((item, index) => ({ label: String(index), name: `answer ${index}`, id: `answer-${index}`, index, item, score: item.reward, reference: false })),
    ...row.references.map((item, index) => ({ label: `R${index}`, name: `reference ${index}`, id: `reference-${index}`, index, item, score: found.reference_scores[index], reference: true })),
  ];
  const asked = query.get("show"), show = SHOWS.some(([name]) => name === asked) ? asked : "rendered";
  const to = columns.some((c) => c.label === query.get("to")) ? query.get("to") : row.references.length ? "R0" : "0";
  const here = { run, step, group, columns, hiddenBy: found.hidden_by, view: { show, to }, texts: [], cells: new Map(), links: new Map(), buttons: new Map(), reasons: null, drawn: 0, said: el("span", { class: "quiet", role: "status" }), root: el("div", { class: "microscope" }) };
  page = here;
  const link = (label, place, attributes) => {
    if (!place) return el("span", { class: "quiet" }, label);
    const node = el("a", { href: linkTo(run, "g", ...place), ...attributes }, label);
    here.links.set(node, linkTo(run, "g", ...place));
    return node;
  };
  const largest = Math.max(0, ...row.answers.map((a) => Math.abs(a.advantage ?? 0)));
  const question = el("blockquote", {}, row.question), gold = el("b", {}, row.gold_answer ?? "");
  here.texts.push({ node: question, text: row.question, unboxed: true }, { node: gold, text: row.gold_answer ?? "", inline: true });
  const known = callsOf(run, step, group);
  known.then((calls) => { here.reasons = calls.reasons; here.unknown = calls.calls.length ? "" : calls.note; }, (error) => { here.reasons = []; here.unknown = error.message; }).finally(() => here.refresh());
  here.calls = callsSection(run, known);
  const note = notes(here);
  here.root.append(...[
    el("div", { class: "tools" }, el("h1", {}, `step ${row.step}, group ${row.group}`), el("span", { class: "quiet" }, row.prompt_id),
      el("nav", { "aria-label": "groups" }, link("← previous", found.previous, { "data-key": "previous", rel: "prev" }), " ", link("next →", found.next, { "data-key": "next", rel: "next" }), " ",
        link("permalink", [step, group], {}), " ", el("button", { type: "button", class: "plain", "aria-label": "keys", onclick: help }, "?"))),
    question,
    row.gold_answer === null || row.gold_answer === undefined ? null : el("p", { class: "quiet" }, "gold answer ", gold),
    row.rubric.length ? matrix(here, row.rubric, columns, largest, found) : el("p", { class: "quiet" }, "this group has no rubric of its own"),
    note,
    switches(here),
    el("div", { class: "answers" }, columns.map((c) => card(here, c, c.reference ? null : found.right[c.index]))),
    lineage(here, row, found.sources),
    here.calls,
  ].filter(Boolean));
  main.replaceChildren(here.root);
  apply(here);
}
