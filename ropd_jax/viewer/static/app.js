// Finds the page for the address, draws it, and draws it again while a run trains.
//
//   #/RUN                 curves           #/RUN/groups?filter=unscored&sort=reward    list
//   #/RUN/g/12/0          one group        (no hash)                                   the runs, or the only one

import { runPage } from "./curves.js";
import { el, get, linkTo } from "./dom.js";
import { groupsPage } from "./groups.js";
import { groupPage } from "./microscope.js";

const LIVE_S = 5;
const head = document.getElementById("head"), main = document.getElementById("main"), status = document.getElementById("status");
let timer = null, drawing = 0, shown = "";

function header(runs, run, where) {
  const tab = (label, href, on) => el("a", { href, "aria-current": on ? "page" : null }, label);
  head.replaceChildren(
    el("nav", { "aria-label": "pages" }, runs.length > 1 || !run ? tab("runs", "#/", !run) : null,
      run ? [el("b", {}, run), tab("curves", linkTo(run), where === "run"), tab("groups", linkTo(run, "groups"), where === "groups")] : null),
  );
  document.title = [run, "ropd view"].filter(Boolean).join(" · ");
}

async function draw() {
  const mine = ++drawing;
  clearTimeout(timer);
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  const staged = el("div");
  try {
    const { runs } = await get("api/runs");
    const run = parts[0] ?? (runs.length === 1 ? runs[0] : null);
    const where = parts[1] === "g" ? "group" : parts[1] ?? "run";
    let again = null;
    if (!run) staged.replaceChildren(el("ul", { class: "runs" }, runs.map((name) => el("li", {}, el("a", { href: linkTo(name) }, name)))));
    else if (where === "group") await groupPage(run, Number(parts[2]), Number(parts[3]), staged);
    else if (where === "groups") again = (await groupsPage(run, new URLSearchParams(query), staged)) ?? LIVE_S;
    else again = (await runPage(run, staged)) ? LIVE_S : null;
    if (mine !== drawing) return;
    header(runs, run, where);
    if (!busy() || shown !== location.hash) main.replaceChildren(...staged.childNodes);
    if (shown !== location.hash) { window.scrollTo(0, 0); shown = location.hash; }
    status.textContent = "";
    if (again !== null) timer = setTimeout(draw, 1000 * again);
  } catch (error) {
    if (mine !== drawing) return;
    status.textContent = error.message;
    timer = setTimeout(draw, 1000 * LIVE_S);
  }
}

// A page that someone types in, moves a slider of, or reads the config on is not exchanged under their hands.
const busy = () => main.contains(document.activeElement) && document.activeElement.matches("input") || main.querySelector("details[open]") || main.querySelector("svg:hover");

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = { ArrowLeft: "previous", k: "previous", ArrowRight: "next", j: "next" }[event.key];
  const link = key && main.querySelector(`[data-key=${key}]`);
  if (link) location.hash = link.getAttribute("href");
});
addEventListener("hashchange", draw);
draw();
