// Elements, numbers and requests. All text is inserted as text nodes: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false)
    .map((c) => (c instanceof Node ? c : document.createTextNode(String(c)))));
  return node;
}

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export function number(value, digits = 2) {
  if (value === null || value === undefined) return "";
  if (value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 10 ** -(digits + 1))) return value.toExponential(1);
  return Number.isInteger(value) && digits > 2 ? String(value) : value.toFixed(digits);
}

export const signed = (value) => (value === null ? "" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2));

// The server's reply for a path; in a bundle, its reply when the bundle was made.
export async function get(path) {
  if (globalThis.ropdBundle) return globalThis.ropdBundle.get(path);
  const reply = await fetch(path, { credentials: "omit" });
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error || `the server answered ${reply.status}`);
  return found;
}

export const apiOf = (run) => `api/runs/${encodeURIComponent(run)}`;
export const linkTo = (run, ...rest) => "#/" + [run, ...rest].map((part) => encodeURIComponent(part)).join("/");
