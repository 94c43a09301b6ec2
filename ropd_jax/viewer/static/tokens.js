// An answer split into its tokens, each tinted by its log-probability, or by its change in the update.

import { apiOf, el, get } from "./dom.js";

const LEVELS = [0.05, 0.2, 0.7, 1.6, 3, 5]; // nats: from p = 0.95 to p = 0.007
const STEPS = [0.003, 0.01, 0.03, 0.1, 0.3]; // nats of change

export const tokensOf = (run, step, group) => get(`${apiOf(run)}/groups/${step}/${group}/tokens`);

const level = (value, levels) => levels.filter((limit) => value > limit).length;

export function legend(tokens, show) {
  if (tokens.note) return [tokens.note];
  if (show === "change" && !tokens.answers.some((a) => a?.change)) return ["the change was not stored; set log.token_logprobs=\"before_after\" for the next run"];
  const key = (name, label) => el("i", { class: `t ${name}` }, label);
  if (show === "logp") return ["probability of each token: ", key("l0", "sure"), " ", key("l2", "½"), " ", key("l4", "0.1"), " ", key("l6", "< 0.01")];
  return ["log-prob after the update minus before: ", key("m4", "less likely"), " ", key("m0", "same"), " ", key("p4", "more likely")];
}

// null if this answer has none.
export function tinted(tokens, index, text, show) {
  const stored = tokens.answers[index];
  if (!stored || !stored.bytes || (show === "change" && !stored.change)) return null;
  const bytes = new TextEncoder().encode(text), decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const nodes = [];
  let at = 0, from = 0, worst = null, seen = [], sure = "";
  stored.bytes.forEach((size, i) => {
    at += size;
    const value = (show === "change" ? stored.change : stored.logp)[i];
    seen.push(value);
    worst = worst === null || Math.abs(value) > Math.abs(worst) ? value : worst;
    if (at >= bytes.length ? from >= bytes.length : (bytes[at] & 0xc0) === 0x80) return; // inside a character: with the next token
    if (at === from) return;
    const name = show === "logp" ? `l${level(-worst, LEVELS)}` : `${worst < 0 ? "m" : "p"}${level(Math.abs(worst), STEPS)}`;
    const label = seen.map((v) => (show === "logp" ? `p = ${Math.exp(v).toPrecision(2)}, log-prob ${v.toFixed(2)}` : `${v < 0 ? "−" : "+"}${Math.abs(v).toPrecision(2)} nats`)).join("; ");
    const piece = decoder.decode(bytes.subarray(from, at));
    if (/0$/.test(name)) sure += piece; // most tokens have no tint and no element
    else {
      if (sure) nodes.push(sure);
      nodes.push(el("i", { class: `t ${name}`, title: label }, piece));
      sure = "";
    }
    [from, worst, seen] = [at, null, []];
  });
  nodes.push(sure, decoder.decode(bytes.subarray(from)));
  return el("pre", { class: "tokens", tabindex: 0 }, nodes);
}
