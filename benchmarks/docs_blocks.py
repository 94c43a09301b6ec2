"""The code blocks of README.md and docs/: which are commands, and why one is not run.

    <!-- not run: needs a TPU -->       directly above a block: checked but not run
    ```bash
    make tpu-check
    ```

``<!-- not run on this page: REASON -->``, anywhere on a page, applies to all of its blocks. A fenced block in ``bash``
or ``python`` is run. A block without a language is run if its first line begins like a command. A block in any language
with a title, such as ``python title="my.py"``, is not run but saved as this file, for the commands after it. Everything
else is output, data or a drawing.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r"(?ms)^(?P<indent> *)(?P<fence>```+)(?P<language>\w*)(?P<options>[^\n]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$"
)
TITLE = re.compile(r'title="([^"]+)"')
DIRECTIVE = re.compile(r"<!-- not run: ((?:(?!-->).)+) -->\s*\Z", re.DOTALL)
OF_PAGE = re.compile(r"<!-- not run on this page: ((?:(?!-->).)+) -->", re.DOTALL)
SHELL = ("bash", "sh", "shell", "console")
COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ +)*(?:\$ )?(?:\S*/)?"
    r"(?:ropd|make|pip|python[\d.]*|export|git|gcloud|sbatch|kubectl|docker|tensorboard|vllm|cp|launch/\S+)(?: |$)"
)
ROPD = re.compile(r"^(?:[A-Z_]+=\S+ +)*(?:\$ )?(?:\S*/)?ropd ")
OPERATORS = ("&&", "||", "|", ";", "&", ">", ">>", "<")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path below the repository.
        line: of its first line of text, from 1.
        language: ``shell``, ``python``, or the text after the opening fence if the block is not a command.
        text: without the fence's indentation.
        why_not: the reason given by its directive; "" if it should be run.
        file: the path that it is saved to, below the repository; "" if it has no title.
    """

    page: str
    line: int
    language: str
    text: str
    why_not: str
    file: str = ""

    @property
    def is_command(self) -> bool:
        return self.language in ("shell", "python") or bool(self.file)

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[pathlib.Path]:
    """README.md, then the pages of docs/ in the order in which the site shows them."""
    nav = re.findall(r"(?m): (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    found = {p for p in (ROOT / "docs").rglob("*.md") if "generator" not in p.parts}
    listed = [place for name in nav if (place := ROOT / "docs" / name) in found]
    return [ROOT / "README.md", *listed, *sorted(found - set(listed))]


def blocks(path: pathlib.Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    page, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        indent, language = len(found["indent"]), found["language"]
        lines = [line[indent:] for line in found["text"].split("\n")]
        inner = "\n".join(lines).rstrip("\n")
        if language in SHELL or (not language and COMMAND.match(inner)):
            language = "shell"
        said = DIRECTIVE.search(text[: found.start()]) or OF_PAGE.search(text)
        title = TITLE.search(found["options"])
        line = text[: found.start("text")].count("\n") + 1
        yield Block(page, line, language, inner, " ".join(said[1].split()) if said else "", title[1] if title else "")


def ropd_commands(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of each ``ropd`` command in the fenced and the indented blocks of a page, without ``ropd`` itself.

    Comments, further commands on the line and explanations after three spaces are left out.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    fence, n = "", 0
    while n < len(lines):
        line, first = lines[n], n + 1
        n += 1
        if mark := re.match(r" *(```+)", line):
            fence = "" if fence else mark[1]
            continue
        if not (fence or line.startswith("    ")) or not ROPD.match(line.strip()):
            continue
        command = re.split(r"\s{3,}(?=[^\s\-\\])", line.strip())[0]
        while (words := _words(command)) is None or command.rstrip().endswith("\\"):
            command = f"{command.rstrip().removesuffix(chr(92))} {lines[n].strip()}"
            n += 1
        yield from ((first, part) for part in _parts(words))


def _words(text: str) -> list[str] | None:
    """The words of a command line; None while a quotation is open."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        words = list(lexer)
    except ValueError:
        return None
    return words[: next((i for i, word in enumerate(words) if word.startswith("#")), None)]


def _parts(words: list[str]) -> Iterator[list[str]]:
    """The words after ``ropd`` in each command of a line."""
    part: list[str] = []
    for word in [*words, ";"]:
        if word not in OPERATORS:
            part.append(word)
            continue
        while part and (re.fullmatch(r"[A-Z_]+=.*", part[0]) or part[0] == "$"):
            part = part[1:]
        if part and part[0].rpartition("/")[2] == "ropd":
            yield part[1:]
        part = []
