// The differences between two texts, word by word: [["same" | "own" | "missing", text], ...] in the order of the first text.
//
//   lines    lines that occur once in both texts are matched if their order agrees (patience)
//   words    between them, the longest common subsequence of words; if a part is too large for that, words that both
//            parts have once are matched, and the rest between those counts as different
//   islands  one short common word between two differences is noise, and joins them

const CELLS = 2_000_000; // of one table: 2 MB, about 10 ms
const SPLIT = /\s+|[0-9]+(?:[.,][0-9]+)*|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu;

export function diff(own, other) {
  const pieces = [];
  const put = (kind, words) => { if (words.length) pieces.push([kind, words.join("")]); };
  const budget = { cells: 10 * CELLS };
  parts(own.split(/(?<=\n)/), other.split(/(?<=\n)/), 0, budget, (kind, a, b) => {
    if (kind === "same") return put("same", a);
    parts(a.join("").match(SPLIT) ?? [], b.join("").match(SPLIT) ?? [], 1, budget, (what, x, y) => {
      if (what === "same") return put("same", x);
      put("own", x);
      put("missing", y);
    });
  });
  return joined(pieces);
}

// Cuts two sequences into alternating parts: told("same", a, a) and told("differs", a, b).
function parts(a, b, level, budget, told) {
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  while (tail < a.length - head && tail < b.length - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  if (head) told("same", a.slice(0, head));
  const x = a.slice(head, a.length - tail), y = b.slice(head, b.length - tail);
  if (x.length && y.length) middle(x, y, level, budget, told);
  else if (x.length || y.length) told("differs", x, y);
  if (tail) told("same", a.slice(a.length - tail));
}

function middle(a, b, level, budget, told) {
  if (level && a.length * b.length <= Math.min(CELLS, budget.cells)) {
    budget.cells -= a.length * b.length;
    return common(a, b, told);
  }
  const pairs = rising(unique(a, b, level));
  if (!pairs.length) return told("differs", a, b);
  let i = 0, j = 0;
  for (const [x, y] of [...pairs, [a.length, b.length]]) {
    const left = a.slice(i, x), right = b.slice(j, y);
    if (left.length && right.length) parts(left, right, level, budget, told);
    else if (left.length || right.length) told("differs", left, right);
    if (x < a.length) told("same", [a[x]]);
    i = x + 1;
    j = y + 1;
  }
}

// [place in a, place in b] of items that occur once in both, by place in a; blank lines and single signs are skipped.
function unique(a, b, level) {
  const count = (words) => {
    const places = new Map();
    words.forEach((word, i) => places.set(word, places.has(word) ? -1 : i));
    return places;
  };
  const there = count(b);
  return [...count(a)].filter(([word, i]) => i >= 0 && (there.get(word) ?? -1) >= 0 && word.trim().length > (level ? 2 : 1)).map(([word, i]) => [i, there.get(word)]);
}

// The longest increasing sequence of second places.
function rising(pairs) {
  const ends = [], before = new Array(pairs.length);
  pairs.forEach(([, y], k) => {
    let low = 0, high = ends.length;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (pairs[ends[mid]][1] < y) low = mid + 1;
      else high = mid;
    }
    before[k] = low ? ends[low - 1] : -1;
    ends[low] = k;
  });
  const found = [];
  for (let k = ends.length ? ends.at(-1) : -1; k >= 0; k = before[k]) found.push(pairs[k]);
  return found.reverse();
}

// Longest common subsequence by the table of all prefixes.
function common(a, b, told) {
  const wide = b.length + 1, steps = new Uint8Array(a.length * b.length);
  let last = new Uint32Array(wide), row = new Uint32Array(wide);
  for (let i = 0; i < a.length; i++) {
    for (let j = 0; j < b.length; j++) {
      if (a[i] === b[j]) { row[j + 1] = last[j] + 1; steps[i * b.length + j] = 0; }
      else if (last[j + 1] >= row[j]) { row[j + 1] = last[j + 1]; steps[i * b.length + j] = 1; }
      else { row[j + 1] = row[j]; steps[i * b.length + j] = 2; }
    }
    [last, row] = [row, last];
  }
  const found = [];
  let i = a.length - 1, j = b.length - 1;
  while (i >= 0 && j >= 0) {
    const step = steps[i * b.length + j];
    if (step === 0) { found.push([i, j]); i--; j--; } else if (step === 1) i--;
    else j--;
  }
  let x = 0, y = 0;
  for (const [p, q] of [...found.reverse(), [a.length, b.length]]) {
    if (p > x || q > y) told("differs", a.slice(x, p), b.slice(y, q));
    if (p < a.length) told("same", [a[p]]);
    x = p + 1;
    y = q + 1;
  }
}

const words = (text) => text.match(/[\p{L}\p{N}]+/gu)?.length ?? 0;

// Joins neighbours of one kind, and islands with the differences around them. A block of differences shows the missing
// text first, then its own.
function joined(pieces) {
  const runs = [];
  for (const [kind, text] of pieces) {
    const same = kind === "same";
    if (!runs.length || runs.at(-1).same !== same) runs.push({ same, own: "", missing: "" });
    const run = runs.at(-1);
    if (kind !== "missing") run.own += text;
    if (kind !== "own") run.missing += text;
  }
  const kept = [];
  runs.forEach((run, k) => {
    const before = kept.at(-1), after = runs[k + 1];
    const size = (r) => words(r.own) + words(r.missing);
    const island = run.same && before && after && !before.same && !run.own.includes("\n") && words(run.own) < 2 && size(before) > 2 && size(after) > 2;
    if (before && (before.same === (run.same && !island))) {
      before.own += run.own;
      before.missing += run.missing;
    } else kept.push({ ...run });
  });
  return kept.flatMap((run) => (run.same ? [["same", run.own]] : [["missing", run.missing], ["own", run.own]].filter(([, text]) => text)));
}

// The share of words that both texts have in common, in the same order: 0 to 1.
export function shared(pieces) {
  const count = (kind) => pieces.filter((piece) => piece[0] === kind).reduce((n, [, text]) => n + words(text), 0);
  const same = 2 * count("same"), all = same + count("own") + count("missing");
  return all ? same / all : 1;
}
