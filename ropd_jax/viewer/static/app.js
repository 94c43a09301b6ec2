// Finds the page for the address, draws it, and keeps it up to date while a run trains.
//
//   #/RUN                 the run          #/RUN/groups?filter=unscored&sort=reward    list of groups
//   #/RUN/g/12/0          one group        #/RUN/criteria, #/RUN/judge, #/RUN/benchmarks
//   #/compare?runs=a,b    several runs     (no hash)                                   the runs, or the only one
//
// A page function fills an element and returns how to continue: seconds until it is drawn again, null for never, or
// { again, update }: then `update` changes the page in place and returns the next `again`.

import { benchmarksPage } from "./benchmarks.js";
import { criteriaPage } from "./criteria.js";
import { comparePage, runPage } from "./curves.js";
import { el, get, linkTo } from "./dom.js";
import { groupsPage } from "./groups.js";
import { judgePage } from "./judge.js";
import { groupPage } from "./microscope.js";
import { runsPage } from "./runs.js";

const LIVE_S = 5;
const TABS = [["run", "run"], ["groups", "groups"], ["criteria", "criteria"], ["judge", "judge"], ["benchmarks", "benchmarks"]];
const head = document.getElementById("head"), main = document.getElementById("main"), status = document.getElementById("status");
let timer = null, drawing = 0, shown = null, update = null;

function header(runs, run, where) {
  const tab = (label, href, on) => el("a", { href, "aria-current": on ? "page" : null }, label);
  const at = where === "group" ? "groups" : where;
  head.replaceChildren(
    el("nav", { "aria-label": "pages" }, runs.length > 1 || !run ? tab("runs", "#/", where === "runs") : null,
      where === "compare" ? tab("compare", location.hash, true) : null,
      run ? [el("b", {}, run), TABS.map(([name, label]) => tab(label, name === "run" ? linkTo(run) : linkTo(run, name), at === name))] : null),
  );
  document.title = [where === "run" || where === "runs" ? null : at, run, "ropd view"].filter(Boolean).join(" · ");
}

// How the page continues: null, seconds, or { again, update }.
async function page(run, where, parts, query, staged) {
  if (where === "compare") return comparePage((query.get("runs") ?? "").split(",").filter(Boolean), staged);
  if (where === "runs") return runsPage(staged);
  if (where === "group") { await groupPage(run, Number(parts[2]), Number(parts[3]), staged); return null; }
  if (where === "groups") return (await groupsPage(run, query, staged)) ?? LIVE_S;
  if (where === "criteria") return criteriaPage(run, parts.slice(2), query, staged);
  if (where === "judge") return judgePage(run, query, staged);
  if (where === "benchmarks") return benchmarksPage(run, query, staged);
  return runPage(run, staged);
}

async function draw() {
  const mine = ++drawing;
  clearTimeout(timer);
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  try {
    let again;
    if (update && shown === location.hash) again = await update();
    else {
      const staged = el("div");
      const listed = get("api/runs"), several = parts[0] === "compare" && !parts[1] && query;
      listed.catch(() => {}); // it is awaited below
      const run = several ? null : parts[0] ?? (await listed).runs.find((name, i, all) => all.length === 1) ?? null;
      const where = several ? "compare" : !run ? "runs" : parts[1] === "g" ? "group" : parts[1] ?? "run";
      const next = await page(run, where, parts, new URLSearchParams(query), staged);
      const { runs } = await listed;
      if (mine !== drawing) return;
      again = next?.update ? next.again : next;
      header(runs, run, where);
      if (!busy() || shown !== location.hash) {
        for (const chart of main.querySelectorAll("figure")) chart.leave?.();
        main.replaceChildren(...staged.childNodes);
        update = next?.update ?? null;
      }
      if (shown !== location.hash) { window.scrollTo(0, 0); shown = location.hash; }
    }
    if (mine !== drawing) return;
    status.textContent = "";
    if (again !== null && again !== undefined) timer = setTimeout(draw, 1000 * again);
  } catch (error) {
    if (mine !== drawing) return;
    status.textContent = error.message;
    timer = setTimeout(draw, 1000 * LIVE_S);
  }
}

// A page on which the user types or reads details is not replaced.
const busy = () => main.contains(document.activeElement) && document.activeElement.matches("input, select") || main.querySelector("details[open]");

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = { ArrowLeft: "previous", k: "previous", ArrowRight: "next", j: "next" }[event.key];
  const link = key && main.querySelector(`[data-key=${key}]`);
  if (link) location.hash = link.getAttribute("href");
});
addEventListener("hashchange", draw);
draw();
