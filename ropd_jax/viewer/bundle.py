"""A static copy of the viewer for one run, which can be opened from the file system: ``ropd view RUN --bundle DIR``.

    DIR/index.html              the page
    DIR/static/                 its files, the modules as one script
    DIR/data/NAME.js            one server reply each; the page loads it when needed
    DIR/bundle.json             its origin, and what was left out

A bundle consists of the server's replies: every route of `server.make_app` that belongs to a run is requested once, and
routes with further parts (a group, a call) once for each value that `EXPAND` finds. So a new route is included in
bundles automatically. If texts are left out, only the routes of `REDACT` are included: data that cannot be checked for
these texts is never included.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import importlib.resources
import json
import pathlib
import re
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import aiohttp
import yarl

from ropd_jax.types import UserError
from ropd_jax.utils.files import read_json
from ropd_jax.viewer import server
from ropd_jax.viewer.runs import FILTERS, GOLD_FILTERS, PAGE, SORTS, Run, runs_in
from ropd_jax.viewer.scripts import modules, one_script
from ropd_jax.viewer.summary import Summary, graded

T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int], None]  # (replies written, total)
FORMAT = 1
WORKING_S = 600.0  # time for the server to finish a reply
LONGEST = 200  # characters of a file name; file systems take 255
PARTS = ("references", "prompts", "texts", "criteria")
LEFT_OUT = "(left out)"
POLICY = (  # a page from the file system has no origin, so in some browsers 'self' does not match its files
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file: data:; "
    "base-uri 'none'; form-action 'none'"
)
GROUP = "/groups/{step}/{group}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The contents of a bundle.

    Attributes:
        without: some of `PARTS`. References: their texts and verdicts. Prompts: questions, prompt ids, gold answers.
            Texts: the students' answers. Criteria: the texts of the rubrics; they can quote all of the others.
        worst: only this many groups, those with the lowest mean reward; None for no limit.
        steps: first step, and the step after the last one; None for all.
    """

    without: frozenset[str] = frozenset()
    worst: int | None = None
    steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if strange := sorted(self.without - set(PARTS)):
            raise UserError(f"without={strange[0]!r:.40} is unknown; expected some of {', '.join(PARTS)}")

    def groups(self, run: Run) -> list[Summary]:
        """The chosen groups, by step and place in the step."""
        run.index.refresh()
        found = [p.summary for p in run.index.places()]
        if self.steps is not None:
            found = [s for s in found if self.steps[0] <= s.step < self.steps[1]]
        if self.worst is not None:
            known = sorted((s for s in found if s.reward is not None), key=lambda s: s.reward or 0.0)
            chosen = {(s.step, s.group) for s in known[: self.worst]}
            found = [s for s in found if (s.step, s.group) in chosen]
        return found


def make(
    directory: pathlib.Path,
    out: pathlib.Path,
    choice: Choice = Choice(),
    *,
    progress: Progress = lambda done, of: None,
) -> dict[str, Any]:
    """Writes the bundle of a run atomically; returns the contents of ``bundle.json``.

    Args:
        directory: of the run.
        out: is created, or replaced if it is a bundle.
        progress: called with the number of replies written.

    Raises:
        UserError: not a single run, no groups to include, or ``out`` contains something else.
    """
    known = runs_in(directory)
    if len(known) != 1 or next(iter(known.values())) != directory:
        raise UserError(f"{directory} is a folder of runs; expected one run, e.g. {next(iter(known.values()))}")
    with _replacing(out) as place:
        (place / "data").mkdir()
        about = _apart(lambda tell: _collect(directory, place / "data", choice, tell), progress)
        _page(place)
        (place / "bundle.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _apart(work: Callable[[Progress], Coroutine[Any, Any, T]], progress: Progress) -> T:
    """The result of a coroutine, run in a thread, because the caller can already have an event loop (notebooks)."""
    stop = threading.Event()

    def tell(done: int, of: int) -> None:
        if stop.is_set():
            raise asyncio.CancelledError
        progress(done, of)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(lambda: asyncio.run(work(tell))).result()
        finally:
            stop.set()  # Ctrl-C: the next reply is the last


@contextlib.contextmanager
def _replacing(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder next to ``out`` that replaces it when the block ends without an error."""
    there = out.is_dir() and any(out.iterdir())
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (there and not _is_bundle(out)):
        raise UserError(f"{out} exists and is not a bundle, so it is not replaced; give another --bundle DIR")
    out.parent.mkdir(parents=True, exist_ok=True)
    place = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", dir=out.parent))
    old = place.with_name(f"{place.name}.old")
    try:
        yield place
        place.chmod(0o755)
        if out.exists():
            out.rename(old)
        place.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _is_bundle(out: pathlib.Path) -> bool:
    try:
        marker = read_json(out / "bundle.json", optional=True)
    except UserError:
        return False
    ours = {"index.html", "static", "data", "bundle.json"}
    return marker.get("made_by") == "ropd view" and {p.name for p in out.iterdir()} <= ours


# ------------------------------------------------------------------------------------------------------ the replies


def _groups_of(replies: Mapping[str, Any], chosen: Sequence[Summary]) -> list[dict[str, str]]:
    return [{"step": str(s.step), "group": str(s.group)} for s in chosen]


def _calls_of(replies: Mapping[str, Any], chosen: Sequence[Summary]) -> list[dict[str, str]]:
    return [{"key": key} for key in dict.fromkeys(_values(replies.get("calls"), "key"))]


def _clusters_of(replies: Mapping[str, Any], chosen: Sequence[Summary]) -> list[dict[str, str]]:
    return [
        {"id": one} for one in dict.fromkeys(_values(replies.get("criteria"), "id")) if re.fullmatch(r"\w{1,40}", one)
    ]


EXPAND: Mapping[tuple[str, ...], Callable[[Mapping[str, Any], Sequence[Summary]], list[dict[str, str]]]] = {
    (): lambda replies, chosen: [{}],
    ("step", "group"): _groups_of,
    ("id",): _clusters_of,
    ("key",): _calls_of,
}  # names of the parts of a route, without the run's -> their values


def _results_of(query: Mapping[str, str], reply: Mapping[str, Any]) -> list[dict[str, str]]:
    """The queries after the list of results: each result of this run, then its comparisons and problems."""
    if not query:
        return [{"result": r["name"]} for r in reply.get("results", ()) if r.get("own")]
    if set(query) == {"result"}:
        against = [{"against": str(other)} for other in reply.get("others", ())]
        return [{**query, **more} for more in (*against, *({"problem": str(r["id"])} for r in reply.get("rows", ())))]
    return []


FOLLOW: Mapping[str, Callable[[Mapping[str, str], Mapping[str, Any]], list[dict[str, str]]]] = {
    "/benchmarks": _results_of,
}  # a route -> the next queries, from a query and its reply; ``bundle.js`` itself lists the groups


def _values(value: Any, name: str) -> Iterator[str]:
    """All strings under a name, at any depth."""
    if isinstance(value, list):
        for one in value:
            yield from _values(one, name)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key == name and isinstance(one, str):
                yield one
            yield from _values(one, name)


async def _collect(directory: pathlib.Path, data: pathlib.Path, choice: Choice, progress: Progress) -> dict[str, Any]:
    run = Run(directory)
    chosen = choice.groups(run)
    if run.index.progress[1] and not chosen:
        raise UserError(f"{directory} has no such groups; choose other --steps or --groups")
    name = next(iter(runs_in(directory)))
    before = {(s.step, s.group): (chosen[i - 1] if i else None) for i, s in enumerate(chosen)}
    after = {(s.step, s.group): (chosen[i + 1] if i + 1 < len(chosen) else None) for i, s in enumerate(chosen)}
    replies: dict[str, Any] = {"calls": []}
    _write(data, "api/runs", {"runs": [name]})
    listed = [_listed(run, s, choice) for s in chosen]
    _write(data, f"api/runs/{urllib.parse.quote(name, safe=_SAFE)}/groups",
           {"groups": listed, "read": 1, "of": 1, "graded": [len(chosen)] * 2, "page": PAGE,
            "filters": [*FILTERS, *GOLD_FILTERS], "unreadable": run.index.unreadable})  # fmt: skip
    missing: set[str] = set()
    async with server.running(directory) as url, aiohttp.ClientSession() as session:
        # The calls come last: their keys are known from the groups.
        routes = sorted(_routes(server.make_app(directory, "t")), key=lambda r: ("{key}" in r, r.count("{")))
        routes = [r for r in routes if not choice.without or r in REDACT]
        done, of = 0, len(routes) + len(chosen) * sum("{step}" in r for r in routes)
        for route in routes:
            parts = tuple(re.findall(r"\{(\w+)\}", route))
            for values in EXPAND[parts](replies, chosen) if parts in EXPAND else []:
                path = f"api/runs/{urllib.parse.quote(name, safe=_SAFE)}{route.format(**values)}"
                reply = await _asked(session, f"{url}{path}")
                if reply is None:
                    missing.add(route)
                    continue
                queries = FOLLOW.get(route, lambda query, reply: [])({}, reply)
                while queries:
                    query = queries.pop()
                    address = f"{path}?{urllib.parse.urlencode(sorted(query.items()))}"
                    more = await _asked(session, f"{url}{address}")
                    if more is None or len(file_name(address)) > LONGEST:
                        missing.add(route)
                        continue
                    _write(data, address, more)
                    queries += FOLLOW[route](query, more)
                    progress(done, of)
                if route in ("/criteria", f"{GROUP}/calls"):
                    replies.setdefault(route.rpartition("/")[2], []).append(reply)
                if route == GROUP:
                    here = int(values["step"]), int(values["group"])
                    for way, there in (("previous", before[here]), ("next", after[here])):
                        reply[way] = there and [there.step, there.group]
                if choice.without:
                    reply = REDACT[route](reply, choice.without)
                _write(data, path, reply)
                done += 1
                progress(min(done, of), of)
    progress(of, of)
    return {"made_by": "ropd view", "format": FORMAT, "run": name, "groups": len(chosen),
            "without": sorted(choice.without), "missing": sorted(missing)}  # fmt: skip


async def _asked(session: aiohttp.ClientSession, url: str) -> Any:
    """The server's reply once it is no longer ``working`` on it; None if there is none."""
    deadline = time.monotonic() + WORKING_S
    while True:
        async with session.get(yarl.URL(url, encoded=True)) as answer:
            reply = await answer.json() if answer.status == 200 else None
        if not (isinstance(reply, dict) and reply.get("working") and time.monotonic() < deadline):
            return reply
        await asyncio.sleep(0.2)


def _routes(app: Any) -> list[str]:
    """The part after ``api/runs/{run}`` of each route of a run, except the list of groups."""
    found = []
    for resource in app.router.resources():
        for route in getattr(resource, "_app", app).router.resources():
            _, here, rest = route.canonical.partition("/api/runs/{run}")
            if here and rest != "/groups":
                found.append(rest)
    return list(dict.fromkeys(found))


def _listed(run: Run, s: Summary, choice: Choice) -> dict[str, Any]:
    """A group of the list, with its filters and sort values."""
    known = graded(run.index.row(s.step, s.group))
    in_filters = [name for name, holds in FILTERS.items() if holds(s)]
    in_filters += [name for name, holds in GOLD_FILTERS.items() if holds(known)]
    row = dataclasses.asdict(s) | {"filters": in_filters, "sorts": {name: value(s) for name, value in SORTS.items()}}
    if "prompts" in choice.without:
        row |= {"question": LEFT_OUT, "prompt_id": LEFT_OUT}
    return row


def _group(reply: dict[str, Any], without: frozenset[str]) -> dict[str, Any]:
    """The reply about a group, reduced to data that is known to be free of the parts left out."""
    row = reply["row"]
    prompts, texts, criteria = ("prompts" in without), ("texts" in without), ("criteria" in without)

    def rubric(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        kept = [{k: c[k] for k in ("id", "points", "weight", "text", "category") if k in c} for c in items]
        return [c | {"text": LEFT_OUT, "category": ""} for c in kept] if criteria else kept

    def answer(item: Mapping[str, Any]) -> dict[str, Any]:
        names = ("reward", "advantage", "unscored", "verdicts", "again", "tokens", "finish_reason")
        kept = {name: item[name] for name in names if name in item} | {"text": LEFT_OUT if texts else item["text"]}
        return kept | ({"rubric": rubric(item["rubric"])} if "rubric" in item else {})

    def reference(item: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: item[name] for name in ("text", "verdicts", "again", "model") if name in item}
        return kept | ({"rubric": rubric(item["rubric"])} if "rubric" in item else {})

    kept = {
        "step": row["step"],
        "group": row["group"],
        "prompt_id": LEFT_OUT if prompts else row["prompt_id"],
        "question": LEFT_OUT if prompts else row["question"],
        "gold_answer": None if prompts else row.get("gold_answer"),
        "rubric": rubric(row["rubric"]),
        "answers": [answer(a) for a in row["answers"]],
        "references": [] if "references" in without else [reference(r) for r in row["references"]],
    }
    scores = [] if "references" in without else reply["reference_scores"]
    unexplored = [] if "references" in without else reply["unexplored"]  # it reveals what a reference passes
    return {"row": kept, "right": reply["right"], "reference_scores": scores, "unexplored": unexplored,
            "suppressed": reply["suppressed"], "hidden_by": reply["hidden_by"], "previous": reply["previous"],
            "next": reply["next"]}  # fmt: skip


REDACT: Mapping[str, Callable[[dict[str, Any], frozenset[str]], dict[str, Any]]] = {
    "": lambda reply, without: reply,
    "/metrics": lambda reply, without: reply,
    GROUP: _group,
}

# --------------------------------------------------------------------------------------------------------- the files

_SAFE = "!'()*"  # characters that JavaScript's encodeURIComponent keeps, in addition to letters, digits and _.-~


def file_name(path: str) -> str:
    """The file name in ``data/`` for a path; ``bundle.js`` does the same."""
    return urllib.parse.quote(path, safe="").replace(".", "%2E").replace("~", "%7E").replace("%", "~")


def _write(data: pathlib.Path, path: str, reply: object) -> None:
    """A reply as a script. The data is a string that the page parses, so that no part of it runs as code."""
    name = file_name(path)
    text = json.dumps(server._json(reply))
    (data / f"{name}.js").write_text(f"ropdBundle.put({json.dumps(name)}, {text});\n", encoding="ascii")


def _page(place: pathlib.Path) -> None:
    """The page and its files."""
    static = importlib.resources.files("ropd_jax.viewer").joinpath("static")

    def read(name: str) -> str:
        return static.joinpath(*name.split("/")).read_text(encoding="utf-8")

    script = one_script("app.js", read)
    inside = set(modules("app.js", read))
    with importlib.resources.as_file(static) as source:
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            name = file.relative_to(source).as_posix()
            if name not in inside and name != "index.html":
                target = place / "static" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    (place / "static" / "app.js").write_text(script, encoding="utf-8")
    page = read("index.html")
    module = '<script type="module" src="static/app.js"></script>'
    if page.count(module) != 1:
        raise ValueError(f"index.html does not hold {module}")
    classic = '<script defer src="static/bundle.js"></script>\n  <script defer src="static/app.js"></script>'
    policy = f'<meta charset="utf-8">\n  <meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    page = page.replace(module, classic).replace('<meta charset="utf-8">', policy)
    (place / "index.html").write_text(page, encoding="utf-8")
