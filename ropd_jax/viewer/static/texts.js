// Foreign text with Markdown and LaTeX, as elements. Nothing here parses HTML, and no link is followed.
//
//   text --markdown-it--> tokens --treeOf--> [tag, attributes, children] --nodesOf--> elements of TAGS and MATH only
//   \(x\) --Temml--> a tree of MathML
//
// Everything else stays unchanged: HTML, links, images, entities and broken LaTeX are shown as source.
// A rendering that would lose a letter or a digit is not used (`lossless`): then the source is shown.

import { el } from "./dom.js";

const TAGS = new Set(["p", "strong", "em", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "br", "div", "table", "thead", "tbody", "tr", "th", "td"]);
const MATH = new Set(["math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup", "munder", "mover", "munderover",
  "mtable", "mtr", "mtd", "mphantom", "mpadded", "mstyle", "menclose", "mmultiscripts", "mprescripts", "none"]);
const MATH_ATTRIBUTES = new Set(["display", "displaystyle", "scriptlevel", "mathvariant", "stretchy", "fence", "separator", "form", "lspace", "rspace", "minsize", "maxsize",
  "symmetric", "largeop", "movablelimits", "accent", "accentunder", "linethickness", "width", "height", "depth", "voffset", "columnalign", "rowspan", "columnspan", "notation"]);
const MATH_STYLES = new Set(["color", "paddingLeft", "paddingRight", "padding", "textAlign", "fontWeight", "fontStyle", "mathDepth"]);
const MATHML = "http://www.w3.org/1998/Math/MathML";
const PUNCTUATION = /^[.,;:!?)\]]+/; // stays on the line of the preceding formula
const LONGEST_TEX = 4000, LONGEST_INLINE = 1000, LONGEST_TEXT = 400_000, MOST_LINES = 100, DEEPEST = 60;

// ------------------------------------------------------------------------------------------------------- libraries

const loading = new Map();

function script(name) {
  if (!loading.has(name)) {
    loading.set(name, new Promise((done, failed) => {
      document.head.append(el("script", { src: `static/vendor/${name}`, onload: (e) => { e.target.remove(); done(); }, onerror: () => failed(new Error(`${name} is missing`)) }));
    }));
  }
  return loading.get(name);
}

// Resolves to a function text -> nodes; null means "show the source".
export async function renderer() {
  await Promise.all([script("markdown-it.umd.min.js"), script("temml.min.js")]);
  const md = parser(globalThis.markdownit);
  return (text, inline = false) => {
    const tree = treeOf(md, text, inline);
    return tree && nodesOf(tree);
  };
}

// -------------------------------------------------------------------------------------------------------- Markdown

export function parser(markdownit) {
  const md = markdownit({ html: false, linkify: false, typographer: false, breaks: true, maxNesting: DEEPEST });
  md.disable(["link", "image", "autolink", "reference", "entity"]);
  md.inline.ruler.before("escape", "math", inlineMath);
  md.block.ruler.before("code", "math", blockMath, { alt: ["paragraph", "blockquote", "list"] });
  return md;
}

const CLOSED = { "\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$" };

function inlineMath(state, silent) {
  const at = state.pos, src = state.src, two = src.slice(at, at + 2);
  const open = CLOSED[two] ? two : src[at] === "$" ? "$" : null;
  if (!open) return false;
  const start = at + open.length, close = CLOSED[open];
  const unclosed = (state.unclosed ??= new Map()); // so that many "\\(" do not take quadratic time
  if (unclosed.get(open) <= start) return false;
  const near = src.slice(start, Math.min(state.posMax, start + (open === "$" ? LONGEST_INLINE : LONGEST_TEX)));
  if (!near.includes(close)) unclosed.set(open, near.length === state.posMax - start ? start : Infinity);
  const length = open === "$" ? dollar(near, src[start + near.length]) : near.indexOf(close);
  if (length <= 0) return false;
  const tex = near.slice(0, length);
  if (!tex.trim()) return false;
  if (!silent) {
    const token = state.push("math", "", 0);
    token.content = tex;
    token.markup = open;
    token.meta = close;
    token.block = open === "$$" || open === "\\[";
  }
  state.pos = start + length + close.length;
  return true;
}

// Length of the text before the closing dollar, or -1. Not math: "$5 and $6", "$ 5 $", "$5-$6", "from $5, that is 5$".
function dollar(near, after) {
  if (/^\s/.test(near)) return -1;
  for (let i = 0; i < near.length; i++) {
    if (near[i] === "\\") { i++; continue; }
    if (near[i] !== "$") continue;
    if (/\s/.test(near[i - 1] ?? " ") || /[0-9]/.test(near[i + 1] ?? after ?? "")) return -1;
    const tex = near.slice(0, i);
    return /[A-Za-z]{3,}/.test(tex) && !/[\\^_={}]/.test(tex) ? -1 : i;
  }
  return -1;
}

function blockMath(state, first, last, silent) {
  if (state.sCount[first] - state.blkIndent >= 4) return false;
  const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]);
  const head = line(first);
  const begin = /^\\begin\{([a-zA-Z]{1,20}\*?)\}/.exec(head);
  const open = begin ? begin[0] : head.startsWith("$$") ? "$$" : head.startsWith("\\[") ? "\\[" : null;
  if (!open || (begin && /^(document|verbatim|lstlisting|itemize|enumerate|center)$/.test(begin[1]))) return false;
  const close = begin ? `\\end{${begin[1]}}` : CLOSED[open];
  let size = 0;
  for (let n = first; n < Math.min(last, first + MOST_LINES) && size < LONGEST_TEX; n++) {
    if (n > first && state.sCount[n] < state.blkIndent) return false;
    const text = n === first ? head.slice(open.length) : line(n);
    const end = text.indexOf(close);
    size += text.length;
    if (end < 0) continue;
    const rest = text.slice(end + close.length);
    if (!/^[\s.,;:]*$/.test(rest)) return false;
    if (silent) return true;
    const token = state.push("math", "", 0);
    const lines = [];
    for (let k = first; k <= n; k++) lines.push(line(k));
    const all = lines.join("\n");
    const whole = all.slice(0, all.length - rest.length);
    token.content = begin ? whole : whole.slice(open.length, whole.length - close.length);
    token.markup = begin ? "" : open;
    token.meta = begin ? "" : close;
    token.info = rest.trim();
    token.block = true;
    state.line = n + 1;
    return true;
  }
  return false;
}

// [tag, attributes, children] of a text, or null if it cannot be shown without loss. `inline`: no paragraphs.
export function treeOf(md, text, inline = false) {
  if (text.length > LONGEST_TEXT) return null;
  const root = [null, {}, []], open = [root];
  let deepest = 0, kept = "";
  const add = (child) => open.at(-1)[2].push(child);
  const keep = (words) => { kept += words; return words; };
  const walk = (tokens) => {
    for (const t of tokens) {
      deepest = Math.max(deepest, t.level);
      if (t.type === "inline") walk(t.children);
      else if (t.type === "text") add(keep(t.content));
      else if (t.type === "softbreak" || t.type === "hardbreak") add(["br", {}, []]);
      else if (t.type === "code_inline") add(["code", {}, [keep(t.content)]]);
      else if (t.type === "fence" || t.type === "code_block") {
        if (t.info) add(["div", { class: "quiet lang" }, [keep(t.info)]]);
        add(["pre", {}, [["code", {}, [keep(t.content)]]]]);
      } else if (t.type === "math") {
        keep(t.content);
        add({ tex: t.content, display: t.block, source: t.markup + t.content + t.meta });
        if (t.info) add(keep(t.info));
      } else if (t.type === "hr") add(["hr", {}, []]);
      else if (t.nesting === 1) {
        const child = t.type === "heading_open" ? ["div", { class: `heading ${t.tag}` }, []] : [TAGS.has(t.tag) ? t.tag : "div", {}, []];
        if (t.type === "list_item_open" && t.info) child[1].value = keep(t.info);
        if (/right|center/.test(t.attrGet("style") ?? "")) child[1].class = "num";
        if (!t.hidden) add(child);
        open.push(t.hidden ? open.at(-1) : child);
      } else if (t.nesting === -1) open.pop();
      else add(keep(t.content));
    }
  };
  walk(inline ? md.parseInline(text, {}) : md.parse(text, {}));
  return deepest < DEEPEST - 2 && lossless(text, kept) ? root[2] : null;
}

const letters = (text) => text.replace(/[^\p{L}\p{N}]/gu, "");
export const lossless = (text, kept) => letters(text) === letters(kept);

// ------------------------------------------------------------------------------------------------------------ LaTeX

export function mathTree(tex, display, temml = globalThis.temml) {
  if (tex.length > LONGEST_TEX) return null;
  try {
    return temml.__renderToMathMLTree(tex, { displayMode: display, throwOnError: true, trust: false, maxExpand: 300, maxSize: [20, 20], macros: {} });
  } catch {
    return null;
  }
}

function mathNode(part, budget) {
  if (budget.left-- <= 0) throw new Error("too many parts");
  if (part.text !== undefined) return document.createTextNode(part.text);
  const children = (part.children ?? []).map((child) => mathNode(child, budget));
  if (part.type === undefined || !MATH.has(part.type)) {
    const group = document.createElementNS(MATHML, "mrow");
    group.append(...children);
    return group;
  }
  const node = document.createElementNS(MATHML, part.type);
  for (const [name, value] of Object.entries(part.attributes ?? {})) if (MATH_ATTRIBUTES.has(name)) node.setAttribute(name, String(value));
  for (const [name, value] of Object.entries(part.style ?? {})) if (MATH_STYLES.has(name) && /^[#\w. %-]{1,40}$/.test(value)) node.style[name] = value;
  const classes = (part.classes ?? []).filter((name) => /^tml-[a-z-]{1,20}$/.test(name));
  if (classes.length) node.setAttribute("class", classes.join(" "));
  node.append(...children);
  return node;
}

function math({ tex, display, source }) {
  const tree = mathTree(tex, display);
  try {
    if (tree) {
      const node = mathNode(tree, { left: 20_000 });
      node.setAttribute("title", source.slice(0, 300));
      return display ? el("div", { class: "display" }, node) : node;
    }
  } catch { /* its source, then */ }
  return el("code", { class: "tex", title: "this LaTeX cannot be drawn" }, source);
}

function nodesOf(tree) {
  return tree.map((part, i) => {
    const formula = tree[i - 1]?.tex !== undefined && !tree[i - 1].display;
    if (typeof part === "string") return document.createTextNode(formula ? part.replace(PUNCTUATION, "") : part);
    if (part.tex !== undefined) {
      const point = !part.display && typeof tree[i + 1] === "string" && PUNCTUATION.exec(tree[i + 1]);
      return point ? el("span", { class: "tight" }, math(part), point[0]) : math(part);
    }
    const [tag, attributes, children] = part;
    return el(tag, attributes, ...nodesOf(children));
  });
}
