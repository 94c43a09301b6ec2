"""The benchmarks of the Makefile as a table, from the lines of ``make help``."""

from __future__ import annotations

import pathlib
import re

from docs.generator.markdown import table

MAKEFILE = pathlib.Path(__file__).parents[2] / "Makefile"
MARK = "<!-- here: benchmarks -->"  # what `insert` replaces
OTHERS = ("storm", "small-server", "growth", "kill-tape", "faults", "load-memory", "gpu-check", "mini", "rehearsal")


def insert(text: str) -> str:
    """``text`` with the table in place of the mark; unchanged without the mark."""
    return text.replace(MARK, _table()) if MARK in text else text


def _table() -> str:
    lines = re.findall(r"@echo 'make (\S+) +(.*)'$", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE)
    wanted = [(name, said) for name, said in lines if name.startswith("bench-") or name in OTHERS]
    return table(("Command", "What it measures"), [(f"`make {n}`", _cap(s.replace(r"'\''", "'"))) for n, s in wanted])


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
