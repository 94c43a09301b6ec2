// The list of runs. Check boxes choose runs to lay on top of each other; the choice is in the address of that page.

import { el, get, linkTo, number } from "./dom.js";
import { seconds } from "./curves.js";

const chosen = new Set();
const STATES = { finished: "", running: "yes", ended: "warn", silent: "warn", unknown: "quiet" };

function rowOf(run, changed) {
  const box = el("input", { type: "checkbox", checked: chosen.has(run.name), "aria-label": `choose ${run.name}`, onchange: (e) => { if (e.target.checked) chosen.add(run.name); else chosen.delete(run.name); changed(); } });
  const state = run.state === "finished" ? "finished" : run.age_s === null ? run.state : `${run.state}, ${seconds(run.age_s)} ago`;
  return el("tr", {}, el("td", {}, box), el("th", { scope: "row", class: "name" }, el("a", { href: linkTo(run.name) }, run.name)), el("td", {}, run.method), el("td", { class: "num" }, run.seed),
    el("td", { class: "num" }, run.done === null ? "" : `${run.done} / ${run.steps ?? "?"}`), el("td", { class: "num" }, number(run.reward, 3)), el("td", { class: "num" }, number(run.accuracy, 3)),
    el("td", { class: `state ${STATES[run.state] ?? ""}` }, state, run.alarms ? el("span", { class: "warn" }, ", drift alarm") : null));
}

export async function runsPage(main) {
  const body = el("tbody"), go = el("a", { class: "chip" }, "compare");
  const changed = () => {
    go.textContent = chosen.size < 2 ? "choose two runs to compare" : `compare ${chosen.size} runs`;
    if (chosen.size < 2) go.removeAttribute("href"); else go.href = `#/compare?runs=${[...chosen].map(encodeURIComponent).join(",")}`;
    go.classList.toggle("on", chosen.size > 1);
  };
  const read = async () => {
    const { runs } = await get("api/overview");
    for (const name of [...chosen]) if (!runs.some((r) => r.name === name)) chosen.delete(name);
    const focused = document.activeElement?.getAttribute?.("aria-label");
    body.replaceChildren(...runs.map((r) => rowOf(r, changed)));
    if (focused?.startsWith("choose ")) [...body.querySelectorAll("input")].find((i) => i.getAttribute("aria-label") === focused)?.focus();
    return runs.some((r) => r.state !== "finished") ? 5 : null;
  };
  const again = await read();
  changed();
  const heads = [["", ""], ["run", ""], ["method", ""], ["seed", "num"], ["step", "num"], ["reward", "num"], ["accuracy", "num"], ["", ""]];
  main.replaceChildren(el("div", { class: "tools" }, go), el("div", { class: "scroll" }, el("table", { class: "list overview" },
    el("thead", {}, el("tr", {}, heads.map(([label, kind]) => (label ? el("th", { scope: "col", class: kind }, label) : el("td"))))), body)));
  return { again, update: read };
}
