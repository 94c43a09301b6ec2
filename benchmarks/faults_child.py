"""The process of a fault trial: ``ropd`` stops at a mark in a phase, and `benchmarks.faults` triggers a fault there.

Processes are forked from a server that has imported this module, so that 120 of them do not import jax 120 times. In
each, `Timeline.begin` is wrapped: when the span of the phase opens, the process reports it over a pipe and waits for a
reply. The reply can contain a fault (a clock that steps, writers that fail). Other faults come from outside in the
meantime (a signal, a full disk, a dead teacher).
"""

from __future__ import annotations

import builtins
import dataclasses
import errno
import io
import os
import sys
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")  # no backend is initialized before the fork

import openai  # noqa: E402, F401 - imported once, in the fork server

import ropd_jax.train  # noqa: E402
from ropd_jax.cli import main as cli  # noqa: E402
from ropd_jax.utils import tracing  # noqa: E402
from ropd_jax.workdir.lock import Lock  # noqa: E402

SPANS = {"sampling": "sample", "judging": "idle", "update": "update", "save": "checkpoint", "evaluation": "evaluate"}


@dataclasses.dataclass(frozen=True)
class Mark:
    """The moment of a fault.

    Attributes:
        phase: a key of SPANS.
        late: in the last of four steps, when there are at least two complete checkpoints; or before the first one.
        after_s: delay after the process continues; 0.0: the fault comes while it waits.
    """

    phase: str
    late: bool
    after_s: float = 0.0

    def is_here(self, name: str, where: Any, seen: int) -> bool:
        """Whether this span is the moment; ``seen`` is how many of its name came before it in this process."""
        if name != SPANS[self.phase]:
            return False
        if self.phase in ("save", "evaluation"):  # one per step; before, in the middle and at the end
            return seen == (0 if not self.late else 3 if self.phase == "save" else 2)
        wanted = 3 if self.late else 0
        return where.get("step") == wanted and (self.phase != "sampling" or seen % 3 == 1)


def run(argv: list[str], log: str, mark: Mark | None, pipe: Connection, quick_lock: bool) -> None:
    """``ropd ARGV`` with its output in a file; ends the process with its exit code."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
    if quick_lock:
        Lock.__init__.__kwdefaults__.update(beat_s=0.2, stale_s=2.0)
    failing = _failing_files(argv[argv.index("--workdir") + 1])
    if mark is not None:
        _announce(mark, pipe, failing)
    try:
        code = cli.main(argv)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.exit(code)


def _announce(mark: Mark, pipe: Connection, failing: list[bool]) -> None:
    begin, seen = tracing.Timeline.begin, 0
    said = False

    def marked(timeline: tracing.Timeline, name: str, where: Any) -> int:
        nonlocal seen, said
        if name == SPANS[mark.phase]:
            if not said and mark.is_here(name, where, seen):
                said = True
                pipe.send(mark.phase)
                _own_fault(pipe.recv(), failing)
            seen += 1
        return begin(timeline, name, where)

    tracing.Timeline.begin = marked  # type: ignore[method-assign]


def _own_fault(answer: tuple[str, Any], failing: list[bool]) -> None:
    kind, value = answer
    if kind == "clock":
        now, now_ns = time.time, time.time_ns
        time.time = lambda: now() + value
        time.time_ns = lambda: now_ns() + int(value * 1e9)
    elif kind == "eio":
        failing.append(True)


# --------------------------------------------------------------------------------------------- writers that fail


def _fail(path: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


class _File:
    """A file whose writes fail once ``failing`` is set; everything else is passed through."""

    def __init__(self, file: Any, path: Any, failing: list[bool]):
        self._file, self._path, self._failing = file, path, failing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def write(self, data: Any) -> int:
        if self._failing:
            _fail(self._path)
        return self._file.write(data)


def _failing_files(workdir: str) -> list[bool]:
    """Wraps all writers under the workdir; they fail with EIO once the list is not empty."""
    failing: list[bool] = []
    opened, changes = builtins.open, ("replace", "rename", "mkdir", "link")

    def inside(path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(workdir)

    def wrapped(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        writes = inside(path) and set(mode) & set("wax+")
        if writes and failing:
            _fail(path)
        file = opened(path, mode, *args, **options)
        return _File(file, path, failing) if writes else file

    builtins.open = io.open = wrapped  # type: ignore[assignment]
    for name in changes:
        _wrap(name, inside, failing)
    return failing


def _wrap(name: str, inside: Any, failing: list[bool]) -> None:
    change = getattr(os, name)

    def wrapped(path: Any, *args: Any, **options: Any) -> Any:
        if failing and inside(path):
            _fail(path)
        return change(path, *args, **options)

    setattr(os, name, wrapped)


def ready() -> None:
    """Does nothing, but makes the fork server import this module."""


assert ropd_jax.train is not None
