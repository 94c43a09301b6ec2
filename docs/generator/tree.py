"""The tree of Markdown that the site is built from: docs/ with its links rewritten, and the generated pages."""

from __future__ import annotations

import os
import pathlib
import posixpath
import re
import shutil
from collections.abc import Iterator

from docs.generator import api, benchmarks, commands, example, files, keys, lab_log, metrics, sources
from docs.generator.markdown import LINK, outside_code

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
OUT = ROOT / "build" / "docs"
ASSETS = (".png", ".svg", ".webp", ".css")
GENERATED = {  # page -> what makes it
    "reference/config.md": keys.page,
    "reference/commands.md": commands.page,
    "reference/metrics.md": metrics.page,
    "reference/files.md": files.page,
    "reference/python.md": api.page,
}
COPIED = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")  # of the repository's root


def written_pages() -> Iterator[pathlib.Path]:
    """The pages of docs/, without the generator's own folder."""
    return (p for p in sorted(DOCS.rglob("*.md")) if DOCS / "generator" not in p.parents)


def pages() -> dict[str, str]:
    """Every page of the site by its path, with links between pages and to sources."""
    raw: dict[str, tuple[str, str]] = {}  # page -> (its Markdown, the path in the repository that its links start from)
    for path in written_pages():
        raw[path.relative_to(DOCS).as_posix()] = (path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    for name, make in GENERATED.items():
        raw[name] = (make(), f"docs/{name}")
    for name in COPIED:
        raw[sources.PLACES[name]] = ((ROOT / name).read_text(encoding="utf-8"), name)
    for name, text in lab_log.pages(lab_log.LOG.read_text(encoding="utf-8")).items():
        raw[f"results/{name}"] = (text, "experiments/README.md")
    done: dict[str, str] = {}
    while raw:  # a page can link to sources, which become pages themselves
        linked: set[str] = set()
        for name, (text, origin) in raw.items():
            done[name] = _turned(benchmarks.insert(example.insert(text)), name, origin, linked)
        raw = {p: (sources.source_page(path), path) for path in linked if (p := sources.page_of(path)) not in done}
    return done


def _turned(text: str, page: str, origin: str, linked: set[str]) -> str:
    """``text`` with the links of ``origin``, a path of the repository, as links of ``page``.

    Args:
        linked: receives the paths of the repository that it links to and that are not part of docs/.
    """

    start = origin if (ROOT / origin).is_dir() else posixpath.dirname(origin)

    def link(found: re.Match[str]) -> str:
        target, hash_, anchor = found["target"].partition("#")
        if not target or "://" in target or target.startswith(("mailto:", "data:", "/")):
            return found.group()
        path = posixpath.normpath(posixpath.join(start, target))
        if path in sources.PLACES or path.startswith("docs/"):
            goal = sources.page_of(path)
        elif (ROOT / path).exists():
            linked.add(path)
            goal = sources.page_of(path)
        else:  # a link between generated pages, or one that mkdocs reports
            return found.group()
        relative = posixpath.relpath(goal, posixpath.dirname(page) or ".")
        return f"{found['head']}{relative}{hash_}{anchor}{found['tail']}"

    return outside_code(text, lambda part: LINK.sub(link, part))


def write(out: pathlib.Path = OUT) -> int:
    """Writes the tree, but only files that have changed, for servers that watch it; returns the number of pages."""
    found = pages()
    wanted = {out / name: text.encode("utf-8") for name, text in found.items()}
    for path in DOCS.rglob("*"):
        if path.suffix in ASSETS:
            wanted[out / path.relative_to(DOCS)] = path.read_bytes()
    for path, data in wanted.items():
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for path in sorted(out.rglob("*"), reverse=True):
        if path.is_file() and path not in wanted:
            path.unlink()
        elif path.is_dir() and not os.listdir(path):
            shutil.rmtree(path)
    return len(found)
