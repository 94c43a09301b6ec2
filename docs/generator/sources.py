"""Files of the repository that a page links to, as pages of the site: code with line numbers, notebooks, folders."""

from __future__ import annotations

import base64
import pathlib

from docs.generator.markdown import code

ROOT = pathlib.Path(__file__).parents[2]
PLACES = {  # path in the repository -> page of the site that shows it; everything else is below source/
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "experiments/README.md": "results/index.md",
    "ropd_jax/configs.py": "reference/config.md",
    "ropd_jax/cli": "reference/commands.md",
}
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml", ".json": "json", ".md": "markdown"}
PICTURES = {"png": "image/png", "jpeg": "image/jpeg", "svg": "image/svg+xml"}
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"  # sources are not found by the search of the site
CUT = 200_000  # bytes of a file that a page shows


def page_of(path: str) -> str:
    """The page, below the site's root, that shows a path of the repository."""
    if path in PLACES:
        return PLACES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    place = ROOT / path
    if place.is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}.md" if place.suffix != ".md" else f"source/{path}"


def source_page(path: str) -> str:
    """The Markdown of a file or folder below source/. Links in it are those of the repository."""
    place = ROOT / path
    if place.is_dir():
        return f"{HIDDEN}# {path}/\n\n{_listing(place)}\n"
    if place.suffix == ".ipynb":
        return _notebook(place)
    text = place.read_bytes()[:CUT].decode("utf-8", errors="replace")
    if place.suffix == ".md" and place.name == "README.md":
        return text
    language = LANGUAGES.get(place.suffix, "dockerfile" if place.name == "Dockerfile" else "text")
    numbered = f'{language} linenums="1"'
    return f"{HIDDEN}# {path}\n\n{code(text, numbered)}\n"


def _listing(place: pathlib.Path) -> str:
    names = sorted(p.name for p in place.iterdir() if p.is_file() and not p.name.startswith("."))
    return "\n".join(f"- [{name}]({name})" for name in names)


def _notebook(place: pathlib.Path) -> str:
    """The notebook with the outputs that are stored in it; its pictures are part of the page."""
    from nbconvert import MarkdownExporter  # only for the site

    body, resources = MarkdownExporter().from_filename(str(place))
    for name, data in resources["outputs"].items():
        body = body.replace(f"]({name})", f"]({_inline(name, data)})")
    return body


def _inline(name: str, data: bytes) -> str:
    kind = PICTURES[name.rpartition(".")[2]]
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
