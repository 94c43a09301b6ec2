"""The timeline of a run: spans of time, one JSON line each in ``timeline.jsonl``. No jax.

    sample  prefill  update  evaluate  checkpoint  idle     activities of the run; checkpoint: blocked by a save,
                                                            idle: waiting for the teacher
    sync                                                    weights are sent to the rollout server; inside ``sample``
    compile                                                 a program, inside of these; ``cached`` if it was only loaded
    checkpoint_write                                        a save is written in the background
    stop                                                    from a signal to the complete checkpoint
    reference  rubric  verify  score                        calls of the teacher, including those answered by the tape
    judged                                                  a group, from the sampler to its judgement
    step                                                    the whole step

Code opens a span (`span`), which is written when it closes. Without a recording `Timeline` nothing is stored.
The watchdog reads ``Timeline.open`` (what is in flight) and ``Timeline.still_s`` (the time without progress).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from ropd_jax.types import UserError
from ropd_jax.utils.files import whole_rows, write_atomic
from ropd_jax.utils.paths import local_run
from ropd_jax.utils.writing import Dispensable

RUN = ("compile", "sample", "prefill", "sync", "update", "evaluate", "checkpoint", "checkpoint_write", "idle")
TEACHER = ("reference", "rubric", "verify", "score")
_about: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("span_about")
_recorder: Timeline | None = None


@dataclasses.dataclass(frozen=True)
class Span:
    """A closed span.

    Attributes:
        start, end: seconds since the epoch.
        step: 0, 1, 2, ...; None outside steps.
        group: its index in the step; None if the span does not belong to one group.
        cached, saved_s: for a compilation: whether the program came from the cache, and the seconds saved.
    """

    name: str
    start: float
    end: float
    step: int | None = None
    group: int | None = None
    cached: bool | None = None
    saved_s: float = 0.0


@contextlib.contextmanager
def about(**where: Any) -> Iterator[None]:
    """Every span opened in the block has the given ``step=`` and ``group=``, also in coroutines started in it."""
    token = _about.set({**_about.get({}), **where})
    try:
        yield
    finally:
        _about.reset(token)


@contextlib.contextmanager
def span(name: str, **where: Any) -> Iterator[None]:
    """A span around the block, stored by the recording timeline, if there is one."""
    if (recorder := _recorder) is None:
        yield
        return
    number = recorder.begin(name, {**_about.get({}), **where})
    try:
        yield
    finally:
        recorder.finish(number)


def past(name: str, start: float, end: float, **where: Any) -> bool:
    """A completed span, by the monotonic clock; False if no timeline is recording."""
    if (recorder := _recorder) is None:
        return False
    recorder.add(name, start, end, {**_about.get({}), **where})
    return True


def moved() -> None:
    """Reports progress without a span, so that the watchdog stays quiet."""
    if _recorder is not None:
        _recorder.moved_at = time.monotonic()


class Timeline:
    """Stores the spans of one process in ``timeline.jsonl``.

    Args:
        workdir: the run's directory.
        start_step: the first step that will be recorded; entries of an earlier process from that step on are removed.
        write: True on exactly one of several hosts; the others still know what is in flight.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, start_step: int = 0, write: bool = True):
        path = pathlib.Path(workdir) / "timeline.jsonl"
        self._guard = Dispensable(str(path))
        self._file: IO[str] | None = None
        with self._guard:
            if write and path.exists():
                kept = [row for row in _rows(path) if (row.get("step") or 0) < start_step]
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
            self._file = open(path if write else os.devnull, "a", encoding="utf-8")  # noqa: SIM115 - see close()
        self._epoch = time.time() - time.monotonic()  # the system clock can change during a run; spans must not jump
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: dict[int, tuple[str, float, Mapping[str, Any]]] = {}
        self.moved_at = time.monotonic()

    @contextlib.contextmanager
    def recording(self) -> Iterator[Timeline]:
        """Records the spans of the whole process until the block ends."""
        global _recorder
        before, _recorder = _recorder, self
        try:
            yield self
        finally:
            _recorder = before
            self.close()

    def begin(self, name: str, where: Mapping[str, Any]) -> int:
        """Opens a span; pass its number to `finish`."""
        with self._lock:
            number = next(self._numbers)
            self.moved_at = time.monotonic()
            self._open[number] = (name, self.moved_at, where)
        return number

    def finish(self, number: int) -> None:
        with self._lock:
            name, start, where = self._open.pop(number)
            self.moved_at = now = time.monotonic()
        self.add(name, start, now, where)

    def add(self, name: str, start: float, end: float, where: Mapping[str, Any]) -> None:
        """Writes a span, by the monotonic clock."""
        row = {"name": name, "start": round(start + self._epoch, 4), "end": round(end + self._epoch, 4), **where}
        with self._lock:
            if self._file and not self._guard.lost:  # the teacher's thread can end just after the run's
                with self._guard:
                    self._file.write(json.dumps(row) + "\n")

    def ends_now(self, name: str, seconds: float, **where: Any) -> None:
        """Writes a span that ends now."""
        self.moved_at = now = time.monotonic()
        self.add(name, now - seconds, now, where)

    def flush(self) -> None:
        with self._lock:
            if self._file and not self._guard.lost:
                with self._guard:
                    self._file.flush()

    def open(self) -> list[tuple[str, float, Mapping[str, Any]]]:
        """(name, seconds since it started, where) of each span in flight, oldest first."""
        now = time.monotonic()
        with self._lock:
            found = [(name, now - start, where) for name, start, where in self._open.values()]
        return sorted(found, key=lambda span: -span[1])

    def still_s(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self.moved_at

    def close(self) -> None:
        with self._lock:
            if self._file:
                with self._guard:
                    self._file.close()
            self._file = None


def read_spans(run: str | os.PathLike[str]) -> list[Span]:
    """The spans of a run, sorted by start.

    Raises:
        UserError: the run has none.
    """
    path = local_run(run) / "timeline.jsonl"
    if not path.exists():
        raise UserError(f"{path} does not exist; expected the directory of a run (ropd train --workdir)")
    fields = {f.name for f in dataclasses.fields(Span)}
    found = [Span(**{k: v for k, v in row.items() if k in fields}) for row in _rows(path)]
    return sorted(found, key=lambda s: (s.start, -1 if s.step is None else s.step, -s.end))


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``timeline.jsonl``."""
    return whole_rows(path, lambda row: {"name", "start", "end"} <= row.keys())
