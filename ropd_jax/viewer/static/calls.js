// The requests to the teacher about one group: a list, each opening to the exact messages and the raw reply.

import { apiOf, el, get, number } from "./dom.js";

const ROLES = { reference: "reference", rubric: "rubric", verify: "verdicts", score: "scores", judge: "held-out judge" };

export const callsOf = (run, step, group) => get(`${apiOf(run)}/groups/${step}/${group}/calls`);

const sum = (values) => (values.some((v) => v !== null && v !== undefined) ? values.reduce((a, v) => a + (v ?? 0), 0) : null);
const dollars = (usd) => (usd === null ? null : usd === 0 ? "$0" : `$${usd < 0.01 ? usd.toPrecision(2) : usd.toFixed(2)}`);
const took = (seconds) => (seconds === null ? null : seconds < 0.1 ? `${Math.round(1000 * seconds)} ms` : `${number(seconds, 1)} s`);
const TEMPLATES = { reference: ["reference"], rubric: ["rubric"], verify: ["verifier"], score: ["score"], judge: ["score", "healthbench"] };
const templates = (call) => Object.entries(call.prompts).filter(([name]) => [...(TEMPLATES[call.role] ?? [""]), ...(call.reasked === null ? [] : ["reask"])].some((start) => name.startsWith(start))).map(([name, sha]) => `${name}@${sha}`).join(", ");
const count = (n) => (n === null || n === undefined ? "?" : n.toLocaleString("en"));
const time = (seconds) => (seconds ? new Date(1000 * seconds).toISOString().slice(0, 19).replace("T", " ") : "");

function totals(calls) {
  const tokens = sum(calls.map((c) => (c.usage ? (c.usage.input_tokens ?? 0) + (c.usage.output_tokens ?? 0) : null)));
  const failed = calls.filter((c) => c.failures.length).length;
  return [`${calls.length} request${calls.length === 1 ? "" : "s"}`, tokens ? `${count(tokens)} tokens` : null, dollars(sum(calls.map((c) => c.usd))),
    failed ? `${failed} failed` : null].filter(Boolean).join(" · ");
}

function state(call) {
  const parts = [];
  if (call.reasked !== null) parts.push(el("span", { class: "warn", title: call.reasked }, "asked again"));
  for (const f of call.failures) parts.push(el("span", { class: "warn", title: f.message }, `failed: ${f.cause}`));
  if (call.finish_reason === null && !call.failures.length) parts.push(el("span", { class: "warn" }, "no reply on the tape"));
  if (call.finish_reason && call.finish_reason !== "stop") parts.push(el("span", { class: "warn" }, call.finish_reason));
  return parts;
}

function message(title, text) {
  return el("section", { class: "message" }, el("h4", {}, title, el("span", { class: "quiet" }, ` ${count(text.length)} characters`)), el("pre", { tabindex: 0, "aria-label": title }, text));
}

async function opened(run, call, body) {
  if (body.dataset.read) return;
  body.dataset.read = "1";
  try {
    const whole = await get(`${apiOf(run)}/calls/${call.key}`);
    const usage = whole.usage ? Object.entries(whole.usage).filter(([, n]) => n !== null).map(([name, n]) => `${count(n)} ${name.replace("_", " ")}`).join(", ") : null;
    const facts = [["model", `${whole.provider} ${whole.model}`], ["replied by", whole.replied_by || null], ["address", whole.address || null], ["time", time(whole.created) && `${time(whole.created)} UTC`],
      ["took", took(whole.latency_s)], ["tokens", usage], ["cost", dollars(whole.usd)],
      ["prompts", templates(whole)], ["key on the tape", whole.key]];
    const { json_schema: schema, ...parameters } = whole.parameters;
    body.replaceChildren(
      el("dl", {}, facts.filter(([, value]) => value).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      ...(whole.reasked !== null ? [el("p", { class: "warn" }, `The reply before could not be used: ${whole.reasked}`)] : []),
      ...whole.failures.map((f) => el("p", { class: "warn" }, `Failed in step ${f.step} (${f.cause}): ${f.message}`)),
      ...whole.messages.map(([role, text], i) => message(`message ${i + 1} of ${whole.messages.length}, ${role}`, text)),
      whole.reply === null ? el("p", { class: "warn" }, "There is no reply on the tape.") : message("reply", whole.reply),
      el("details", { class: "parameters" }, el("summary", {}, "parameters and reply schema"), el("pre", { tabindex: 0 }, JSON.stringify(parameters, null, 1)), schema ? el("pre", { tabindex: 0 }, JSON.stringify(schema, null, 1)) : null),
    );
  } catch (error) {
    delete body.dataset.read;
    body.replaceChildren(el("p", { class: "warn" }, error.message));
  }
}

function row(run, call) {
  const body = el("div", { class: "whole" });
  const tokens = call.usage ? `${count(call.usage.input_tokens)} → ${count(call.usage.output_tokens)} tokens` : "";
  return el("details", { class: "call", id: `call-${call.key}`, ontoggle: (e) => { if (e.target.open && e.target.classList.contains("call")) opened(run, call, body); } },
    el("summary", {}, el("b", {}, ROLES[call.role] ?? call.role), el("span", { class: "quiet" }, call.shown.length ? `of ${call.shown.join(", ")}` : `sample ${call.sample_index}`),
      el("span", {}, call.replied_by || call.model), el("span", { class: "quiet" }, [tokens, took(call.latency_s), dollars(call.usd)].filter(Boolean).join(" · ")), ...state(call)),
    body);
}

// The section. `known` is the promise of `callsOf`.
export function callsSection(run, known) {
  const summary = el("summary", {}, "requests to the teacher"), list = el("div", { class: "quiet" }, "reading the tape …");
  known.then((found) => {
    summary.replaceChildren("requests to the teacher ", el("span", { class: "quiet" }, found.calls.length ? totals(found.calls) : ""));
    list.className = "";
    list.replaceChildren(
      ...[found.note ? el("p", { class: "quiet" }, found.note) : null,
      found.calls.length && !found.noted ? el("p", { class: "quiet" }, "Found by question and texts: this run's groups do not name their requests.") : null].filter(Boolean),
      ...found.calls.map((call) => row(run, call)),
    );
  }, (error) => { list.replaceChildren(error.message); });
  return el("details", { class: "calls", id: "calls" }, summary, list);
}

export function openCall(key) {
  document.getElementById("calls").open = true;
  const node = document.getElementById(`call-${key}`);
  if (!node) return;
  node.open = true;
  node.scrollIntoView({ block: "start" });
  node.querySelector("summary").focus({ preventScroll: true });
}
