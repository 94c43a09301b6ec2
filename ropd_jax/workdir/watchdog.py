"""The watchdog: if there is no progress for a while, it writes down what every thread and coroutine is doing.

It stops nothing. A long compilation also shows no progress; the file shows this, since it has the span and the stack.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pathlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from ropd_jax.utils.tracing import Timeline
from ropd_jax.utils.writing import Dispensable

log = logging.getLogger(__name__)


@contextlib.contextmanager
def watching(
    timeline: Timeline, limit_s: float, directory: pathlib.Path, coroutines: Callable[[], str] = str
) -> Iterator[None]:
    """Watch until the block ends; ``limit_s=0`` watches nothing.

    Args:
        directory: gets ``stacks_PID_N.txt``, one for each period of ``limit_s`` seconds without progress.
        coroutines: the stacks of an event loop's tasks (`TeacherLoop.stacks`).
    """
    if not limit_s:
        yield
        return
    over = threading.Event()
    name, args = "watchdog", (timeline, limit_s, directory, coroutines, over)
    thread = threading.Thread(target=_watch, args=args, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5.0)


def _watch(timeline: Timeline, limit_s: float, directory: pathlib.Path, coroutines, over: threading.Event) -> None:
    guard = Dispensable(str(directory / "stacks"))
    number, reported = 0, None  # the start of the last reported period without progress
    while not over.wait(min(limit_s / 4, 5.0)):
        if timeline.still_s() < limit_s or timeline.moved_at == reported:
            continue
        reported = timeline.moved_at
        timeline.flush()
        text = report(timeline, coroutines)
        number += 1
        path = directory / f"stacks_{os.getpid()}_{number}.txt"  # all hosts of a run share the directory
        with guard:
            path.write_text(text, encoding="utf-8")
        in_flight = ", ".join(_line(*span) for span in timeline.open()[:4]) or "nothing"
        log.warning("no progress for %.0f s; in flight: %s. All stacks: %s", timeline.still_s(), in_flight, path)


def report(timeline: Timeline, coroutines: Callable[[], str] = str) -> str:
    """What is in flight, the stack of every thread, and those of the teacher's coroutines."""
    out = io.StringIO()
    out.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  no progress for {timeline.still_s():.1f} s\n\nin flight\n")
    for span in timeline.open():
        out.write(f"  {_line(*span)}\n")
    names = {t.ident: t.name for t in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        out.write(f"\nthread {names.get(ident, ident)}\n")
        out.write("".join(traceback.format_stack(frame)))
    out.write(f"\ncoroutines of the teacher\n{coroutines()}")
    return out.getvalue()


def _line(name: str, age_s: float, where) -> str:
    about = " ".join(f"{k} {v}" for k, v in where.items())
    return f"{name} {about} for {age_s:.0f} s".replace("  ", " ")
