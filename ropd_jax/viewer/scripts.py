"""The page's modules as one classic script, because browsers do not load modules from the file system.

    import { el, get } from "./dom.js";     ->  const { el, get } = M["dom.js"];
    import uPlot from "./vendor/u.js";      ->  const { default: uPlot } = M["vendor/u.js"];
    export function chart() {}              ->  function chart() {}  ...  return { chart };

Each module becomes a function that returns its exports, called in the order of the imports. Only the forms that the
page's modules use are supported; anything else raises an error, which the tests of the bundle would find.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

_IMPORT = re.compile(
    r"^import\s+(?:(?P<what>[^;\"']+?)\s+from\s+)?[\"'](?P<path>[^\"']+)[\"'];?[^\S\n]*$", re.MULTILINE
)
_EXPORT = re.compile(
    r"^export\s+(?:(?P<default>default)\s+)?(?P<kind>const|let|class|async\s+function\*?|function\*?)\s+(?P<name>[\w$]+)",
    re.MULTILINE,
)
_LIST = re.compile(r"^export\s*\{(?P<names>[^}]*)\};?[^\S\n]*$", re.MULTILINE)
_COMMENT = re.compile(r"^[ \t]*/\*(?!!).*?\*/", re.MULTILINE | re.DOTALL)  # a licence comment starts with /*! and stays
_LEFT = re.compile(r"^\s*(?:import|export)\b(?!\s*[:=(,.])|\bimport\s*\(|\bimport\.meta\b", re.MULTILINE)


def one_script(first: str, read: Callable[[str], str]) -> str:
    """The script of a module and everything that it imports.

    Args:
        first: its name, e.g. ``app.js``.
        read: returns the text of a module by its path, relative to the folder of the first.

    Raises:
        ValueError: modules that import each other, or an unsupported form of import or export.
    """
    done: dict[str, str] = {}
    _add(first, read, done, ())
    return '"use strict";\nconst M = {};\n' + "".join(done.values())


def modules(first: str, read: Callable[[str], str]) -> list[str]:
    """Names of the modules in the order in which they run."""
    done: dict[str, str] = {}
    _add(first, read, done, ())
    return list(done)


def _add(name: str, read: Callable[[str], str], done: dict[str, str], above: tuple[str, ...]) -> None:
    if name in above:
        raise ValueError(f"modules that import each other: {' -> '.join((*above, name))}")
    if name in done:
        return
    text, exported = _COMMENT.sub("", read(name)), {}  # a comment can contain a line that starts with export

    def imported(found: re.Match[str]) -> str:
        if not found["path"].startswith("."):
            raise ValueError(f"{name} imports {found['path']!r}; expected a path that starts with ./")
        other = posixpath.normpath(posixpath.join(posixpath.dirname(name), found["path"]))
        _add(other, read, done, (*above, name))
        return f'const {_names(name, found["what"])} = M["{other}"];' if found["what"] else ""

    def declared(found: re.Match[str]) -> str:
        before = found.string[: found.start()]
        if before.rfind("/*") <= before.rfind("*/"):  # else it is in a comment
            exported["default" if found["default"] else found["name"]] = found["name"]
        return f"{found['kind']} {found['name']}"

    def listed(found: re.Match[str]) -> str:
        for one in filter(None, (part.strip() for part in found["names"].split(","))):
            inner, _, outer = one.partition(" as ")
            exported[outer.strip() or inner.strip()] = inner.strip()
        return ""

    for form, change in ((_IMPORT, imported), (_EXPORT, declared), (_LIST, listed)):
        text = form.sub(change, text)
    if left := _LEFT.search(text):
        line = text[left.start() :].lstrip().splitlines()[0]
        raise ValueError(f"{name} has {line!r:.80}; expected a form of import or export that scripts.py supports")
    names = ", ".join(f"{outer}: {inner}" for outer, inner in exported.items())
    done[name] = f'M["{name}"] = (() => {{\n{text}\nreturn {{ {names} }};\n}})();\n'


def _names(module: str, what: str) -> str:
    """``{ a, b as c }``, ``* as a`` or ``a`` of an import, as the left side of an assignment."""
    what = what.strip()
    if re.fullmatch(r"\*\s+as\s+[\w$]+", what):
        return what.split()[-1]
    if re.fullmatch(r"[\w$]+", what):
        return f"{{ default: {what} }}"
    if re.fullmatch(r"\{[\w$,\s]*\}", what):
        return re.sub(r"\s+as\s+", ": ", what)
    raise ValueError(f"{module} imports {what!r:.60}; expected one form of names per import")
