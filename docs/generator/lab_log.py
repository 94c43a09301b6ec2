"""The lab log as pages: an index (claim, command, figure, date) and the entries of each month.

experiments/README.md stays the only source. An entry is a heading ``## 2026-11-30 · what was found`` and what follows.
"""

from __future__ import annotations

import dataclasses
import datetime
import html
import pathlib
import re

from docs.generator.markdown import FENCE, table

LOG = pathlib.Path(__file__).parents[2] / "experiments" / "README.md"
HEADING = re.compile(r"(?m)^## (\d{4}-\d{2}-\d{2}) · (.+)$")
COMMANDS = re.compile(
    r"(?m)^(?: {4})?\$? ?((?:[A-Z_]+=\S+ )*(?:\S*/)?(?:make|python3?|pytest|ropd|experiments/\S+) [^\n#]+)"
)
SETTING = re.compile(
    r"(2-core|2 cores|2 shared|2 CPU|2 Intel|Machine|The AVX-512 machine|Setting|Negative)"
)  # a paragraph about it
FIGURE = 170  # characters of the figure in the index


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of the log.

    Attributes:
        date: ``2026-11-30``.
        claim: its heading.
        body: Markdown.
    """

    date: str
    claim: str
    body: str

    @property
    def command(self) -> str:
        """Its first command; "" if it has none."""
        blocks = [m.group() for m in FENCE.finditer(self.body)] + re.findall(r"(?m)(?:^ {4}\S.*\n?)+", self.body)
        found = next((m for block in blocks for m in COMMANDS.finditer(block)), None)
        return " ".join(found[1].split()) if found else ""

    @property
    def figure(self) -> str:
        """Its first sentence with a number; one about the setting only if there is no other. "" without any.

        A sentence that ends with a colon introduces a table or a list, and is left out.
        """
        text = re.sub(r"(?m)^ {4}.*$", "", FENCE.sub("", self.body))
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n|\n(?=- )", text)]
        last = [p for p in paragraphs if SETTING.match(p)]
        for paragraph in [*(p for p in paragraphs if p not in last and p[:1] not in ("|", "!", "#")), *last]:
            for sentence in re.split(r"(?<=[.;])\s+(?=[A-Z`(\[])", paragraph):
                plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(sentence.split()).lstrip("- "))
                if re.search(r"\d", plain) and len(plain) > 20 and plain[-1] != ":" and not SETTING.match(plain):
                    plain = plain.rstrip(";")
                    return plain if len(plain) <= FIGURE else plain[:FIGURE].rsplit(" ", 1)[0] + " ..."
        return ""

    @property
    def anchor(self) -> str:
        return re.sub(r"[^\w\- ]", "", f"{self.date} · {self.claim}".lower()).replace(" ", "-")


def _breakable(command: str) -> str:
    """The command as code that a narrow column breaks after ``/``, ``_`` and ``.`` rather than inside a word."""
    text = re.sub(r"([/_]|\.(?!py|md|sh))", r"\1<wbr>", html.escape(command, quote=False))
    return f'<code class="anywhere">{text}</code>'


def entries(text: str) -> list[Entry]:
    """The entries of the log, newest first, as in the file."""
    found = list(HEADING.finditer(text))
    ends = [m.start() for m in found[1:]] + [len(text)]
    return [Entry(m[1], m[2], text[m.end() : end].strip("\n")) for m, end in zip(found, ends, strict=True)]


def pages(text: str) -> dict[str, str]:
    """``index.md`` and one page per month, by name."""
    log = entries(text)
    intro = HEADING.split(text)[0].partition("\n")[2].strip()
    months: dict[str, list[Entry]] = {}
    for entry in log:
        months.setdefault(entry.date[:7], []).append(entry)
    rows = [
        (
            f"[{e.claim[:1].upper()}{e.claim[1:]}]({e.date[:7]}.md#{e.anchor})",
            _breakable(e.command) if e.command else "",
            e.figure,
            f'<span class="nowrap">{e.date}</span>',
        )
        for e in log
    ]
    index = table(("Claim", "Command", "Figure", "Date"), rows)
    titles = {month: datetime.date.fromisoformat(f"{month}-01").strftime("%B %Y") for month in months}
    by_month = ", ".join(f"[{titles[month]}]({month}.md)" for month in months)
    found = {"index.md": f"# Results\n\n{intro}\n\nThe entries in full: {by_month}.\n\n{index}\n"}
    for month, there in months.items():
        body = "\n\n".join(f"## {e.date} · {e.claim} {{ #{e.anchor} }}\n\n{e.body}" for e in there)
        found[f"{month}.md"] = f"# {titles[month]}\n\n{body}\n"
    return found
