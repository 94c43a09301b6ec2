// Answers the page's requests in a bundle (`ropd view RUN --bundle DIR`), which has no server: each reply of the
// server is a file data/NAME.js that calls ropdBundle.put. A file is loaded on request, and lists of groups
// are filtered, sorted and searched here. A classic script: browsers do not load modules from the file system.

globalThis.ropdBundle = (() => {
  const arrived = new Map(); // name -> text of a file that was just loaded
  const kept = new Map(); // path -> reply, for everything except groups
  const matches = new Map(); // text -> (address of a group -> whether it contains the text)
  const SLICE_MS = 300;

  // The file name for a path. Python's `bundle.file_name` does the same.
  const fileName = (path) => encodeURIComponent(path).replace(/[!'()*.~]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`).replace(/%/g, "~");

  function load(path) {
    return new Promise((done, failed) => {
      const name = fileName(path), script = document.createElement("script");
      script.onload = () => {
        const text = arrived.get(name);
        arrived.delete(name);
        script.remove();
        if (text === undefined) failed(new Error(`${name}.js is damaged; make the bundle again`));
        else done(JSON.parse(text));
      };
      script.onerror = () => { script.remove(); failed(new Error("this is not part of the bundle")); };
      script.src = `data/${name}.js`;
      document.head.append(script);
    });
  }

  async function reply(path) {
    if (kept.has(path)) return kept.get(path);
    const found = await load(path);
    if (!/\/groups\/\d+\/\d+/.test(path)) kept.set(path, found);
    return found;
  }

  function* textsOf(row) {
    yield row.question;
    yield row.prompt_id;
    for (const item of [...row.rubric, ...row.answers, ...row.references]) {
      yield item.text;
      for (const criterion of item.rubric ?? []) yield criterion.text;
    }
  }

  async function searched(base, groups, text) {
    const wanted = text.toLowerCase(), began = performance.now();
    if (!matches.has(text)) { matches.clear(); matches.set(text, new Map()); }
    const known = matches.get(text);
    for (const s of groups) {
      const address = `${base}/${s.step}/${s.group}`;
      if (known.has(address)) continue;
      if (performance.now() - began > SLICE_MS) break;
      const { row } = await load(address);
      known.set(address, [...textsOf(row)].some((t) => String(t ?? "").toLowerCase().includes(wanted)));
    }
    return groups.filter((s) => known.has(`${base}/${s.step}/${s.group}`)).map((s) => [s, known.get(`${base}/${s.step}/${s.group}`)]);
  }

  async function list(path, query) {
    const all = await reply(path);
    const filters = (query.get("filter") ?? "").split(",").filter(Boolean), sort = query.get("sort") || "step";
    let found = all.groups.filter((s) => filters.every((f) => s.filters.includes(f)));
    if (query.get("step")) found = found.filter((s) => s.step === Number(query.get("step")));
    const text = (query.get("q") ?? "").trim();
    let read = all.of, of = all.of;
    if (text) {
      const known = await searched(path, found, text);
      [read, of] = [known.length, found.length];
      found = known.filter(([, holds]) => holds).map(([s]) => s);
    }
    const value = (s) => s.sorts[sort] ?? null;
    const sign = query.get("desc") === "1" ? -1 : 1;
    const have = found.filter((s) => value(s) !== null).sort((a, b) => sign * (value(a) - value(b)));
    found = [...have, ...found.filter((s) => value(s) === null)];
    const counts = {};
    for (const f of all.filters) counts[f] = found.filter((s) => s.filters.includes(f)).length;
    const offset = Number(query.get("offset") || 0), limit = Number(query.get("limit") || all.page);
    return { ...all, total: found.length, groups: found.slice(offset, offset + limit), counts, read, of };
  }

  return {
    put(name, text) { arrived.set(name, text); },
    async get(address) {
      const [path, query = ""] = address.split("?");
      if (/^api\/runs\/[^/]+\/groups$/.test(path)) return list(path, new URLSearchParams(query));
      const values = [...new URLSearchParams(query)].filter(([, value]) => value !== "").sort(([a], [b]) => (a < b ? -1 : 1));
      return reply(values.length ? `${path}?${new URLSearchParams(values)}` : path);
    },
  };
})();
