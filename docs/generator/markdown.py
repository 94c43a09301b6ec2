"""Markdown from rows and docstrings, and the parts of a page that are code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

FENCE = re.compile(r"(?ms)^(?P<indent> *)(?P<fence>```+|~~~+).*?^(?P=indent)(?P=fence)`*[ ]*$")
LINK = re.compile(r"(?P<head>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()(?P<target>[^)\s]+)(?P<tail>(?: \"[^\"]*\")?\))")
ROLE = re.compile(r"`([A-Za-z_][\w.]*)`")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. Line breaks of a cell are spaces; ``|`` is escaped, except in code, where Python-Markdown keeps it."""

    def cell(text: str) -> str:
        parts = re.split(r"(`+[^`]+`+)", " ".join(text.split()))
        return "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(cell, cells))} |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def code(text: str, language: str = "text") -> str:
    """A fenced block; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def quoted(text: str) -> str:
    """Text as inline code, which may hold backticks."""
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def linked(text: str) -> str:
    """``text`` with each ``docs/NAME.md`` as a link from a page of reference/."""
    return re.sub(r"\bdocs/(\w+)\.md", r"[docs/\1.md](../\1.md)", text)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """``text`` with every part that is not in a fenced block changed."""
    done, end = [], 0
    for block in FENCE.finditer(text):
        done += [change(text[end : block.start()]), block.group()]
        end = block.end()
    return "".join([*done, change(text[end:])])


def from_docstring(text: str | None) -> str:
    """A docstring as Markdown: indented blocks become code, ``double`` backticks and `names` become inline code."""
    parts = []
    for block in _blocks(inspect.cleandoc(text or "")):
        indented = all(line.startswith("    ") or not line for line in block)
        if indented and any(block):
            parts.append(code(inspect.cleandoc("\n" + "\n".join(block))))
        else:
            prose = "\n".join(block).replace("``", "`")
            parts.append(re.sub(r"::$", ":", prose))
    return "\n\n".join(parts)


def _blocks(text: str) -> Iterator[list[str]]:
    """Paragraphs. Consecutive indented ones form one block; an indented part after prose is a separate block."""
    block: list[str] = []
    for line in text.split("\n"):
        inside = line.startswith("    ")
        if block and line.strip() and inside != block[0].startswith("    "):
            yield _stripped(block)
            block = []
        if not line.strip() and block and not block[0].startswith("    "):
            yield _stripped(block)
            block = []
        elif line.strip() or block:
            block.append(line)
    if block:
        yield _stripped(block)


def _stripped(block: list[str]) -> list[str]:
    while block and not block[-1].strip():
        block = block[:-1]
    return block


def two_columns(text: str | None) -> dict[str, str]:
    """The rows of the indented tables of a docstring: ``    name    what it is``, continued under the second column."""
    rows: dict[str, str] = {}
    name, column = "", 0
    for line in inspect.cleandoc(text or "").split("\n"):
        if found := re.fullmatch(r" {4}([a-z_]+)( {2,})(\S.*)", line):
            name, column = found[1], 4 + len(found[1]) + len(found[2])
            rows[name] = found[3]
        elif name and line.startswith(" " * column) and line.strip():
            rows[name] += f" {line.strip()}"
        else:
            name = ""
    return rows


def attributes(text: str | None) -> dict[str, str]:
    """The entries of a docstring's "Attributes:", also of several names in one: ``a, b: what they are.``"""
    part = inspect.cleandoc(text or "").partition("Attributes:\n")[2]
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in part.split("\n"):
        if found := re.fullmatch(r"    ([a-z_]+(?:, [a-z_]+)*): (.*)", line):
            names = found[1].split(", ")
            entries |= dict.fromkeys(names, found[2])
        elif line.startswith("        ") and names:
            for name in names:
                entries[name] += f" {line.strip()}"
    return {name: meaning.replace("``", "`") for name, meaning in entries.items()}
