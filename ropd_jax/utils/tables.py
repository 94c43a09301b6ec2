"""Prints tables to a terminal: a rich console that shows all text verbatim.

Categories, criteria, model names and paths are foreign text. rich reads ``[b]`` in a text as markup and ``:cat:`` as an
emoji, and passes escape sequences on to the terminal. `console` does none of this: markup is off, and characters that a
terminal would obey are shown by their numbers.

    a category "Final [/b] result"      Final [/b] result      (plain rich: MarkupError)
    a category "a\\x1b[2Jb"              a\\x1b[2Jb             (plain rich: the screen is cleared)

Style only our own text: ``rich.text.Text("ok", style="green")``.
"""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from ropd_jax.utils.text import plain


def chart_label(text: str) -> str:
    """The text for a title or a legend of matplotlib, which sets ``$...$`` as a formula and hides a leading ``_``."""
    return f"{' ' * text.startswith('_')}{plain(text)}".replace("$", r"\$")


class _PlainConsole(Console):
    """A console in which every ``str`` of a line, a cell or a title goes through `render_str`."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(plain(text), **{**how, "markup": False, "emoji": False})


def console(file: TextIO | None = None, *, highlight: bool = False, **how: Any) -> Console:
    """A console for tables and lines that hold foreign text; the arguments are those of ``rich.console.Console``."""
    return _PlainConsole(file=file, highlight=highlight, markup=False, emoji=False, **how)
