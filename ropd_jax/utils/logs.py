"""Log lines for users: on standard error, without any set-up in a script or a notebook."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from ropd_jax.utils.text import plain

CHATTY = (  # libraries that log a line per call
    "absl", "jax", "orbax", "matplotlib", "httpx", "httpx2", "httpcore", "httpcore2", "openai", "google_genai",
    "aiohttp.access",
)  # fmt: skip


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current ``sys.stderr``, so that lines appear above a progress bar instead of breaking it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # the base class assigns a stream once; this one follows
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        text = plain(super().format(record))  # a line can hold foreign text, and a terminal obeys escape sequences
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def show_logs() -> None:
    """Show this package's lines on standard error, unless the program has set up logging itself.

    The public functions of `ropd_jax` call it, so that a notebook shows progress without any set-up. A program that
    sets up logging must do so before its first call.
    """
    log = logging.getLogger("ropd_jax")
    if not logging.getLogger().handlers and not log.handlers:
        log.addHandler(StderrHandler())
        log.setLevel(logging.INFO)
        log.propagate = False  # absl calls logging.basicConfig when Orbax saves; each line would be shown twice


@contextlib.contextmanager
def keep_root_logger() -> Iterator[None]:
    """Undo changes of an import to the handlers of the root logger."""
    before = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = before


def show_all_logs() -> None:
    """Show every library's lines on standard error, but only warnings of the chatty ones (for the command line)."""
    root = logging.getLogger()
    if not any(isinstance(h, StderrHandler) for h in root.handlers):
        root.addHandler(StderrHandler())
    root.setLevel(logging.INFO)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
