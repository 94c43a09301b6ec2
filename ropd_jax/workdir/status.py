"""``status.json``: what a run is doing now, for other processes (``ropd view``). Imports no jax.

    {"at": 1700000000.0, "state": "running", "done": 12, "steps": 48, "doing": "judged 5/8 groups", "still_s": 0.4,
     "calls": [{"role": "verify", "count": 3, "oldest_s": 42.1}], "spans": [{"name": "idle", "for_s": 12.0}]}

A thread replaces the file every few seconds; the run never waits for it and does not depend on it. When the process
ends, ``state`` is ``ended``. A process that was killed leaves ``running`` behind, with an outdated ``at``.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ropd_jax.types import UserError
from ropd_jax.utils.files import read_json
from ropd_jax.utils.tracing import RUN, TEACHER, Timeline
from ropd_jax.utils.writing import Dispensable

STATUS = "status.json"
EVERY_S = 3.0


@contextlib.contextmanager
def reporting(
    timeline: Timeline, directory: pathlib.Path, progress: Callable[[], dict[str, Any]], *, write: bool = True
) -> Iterator[None]:
    """Keeps the file up to date until the block ends.

    Args:
        progress: returns further values to write: ``done``, ``steps``, ``doing``.
        write: True on exactly one of several hosts.
    """
    if not write:
        yield
        return
    path, guard, over = directory / STATUS, Dispensable(str(directory / STATUS)), threading.Event()

    def write_now(state: str) -> None:
        if not guard.lost:
            with guard:
                _replace(path, {"at": time.time(), "state": state, **progress(), **in_flight(timeline)})

    def work() -> None:
        write_now("running")
        while not over.wait(EVERY_S):
            write_now("running")

    thread = threading.Thread(target=work, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5.0)
        write_now("ended")


def in_flight(timeline: Timeline) -> dict[str, Any]:
    """The teacher's calls in flight by role, what the run itself is doing (outermost first), and the seconds since
    anything began or ended."""
    spans = timeline.open()
    calls: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
    for name, seconds, _ in spans:
        if name in TEACHER:
            calls[name].append(seconds)
    return {
        "still_s": round(timeline.still_s(), 1),
        "calls": [{"role": r, "count": len(s), "oldest_s": round(max(s), 1)} for r, s in sorted(calls.items())],
        "spans": [{"name": name, "for_s": round(seconds, 1)} for name, seconds, _ in spans if name in RUN],
    }


def read_status(run: pathlib.Path) -> dict[str, Any]:
    """The last status that the run wrote, with ``age_s``, the seconds since then; {} if nothing is readable."""
    with contextlib.suppress(UserError):
        status = read_json(run / STATUS, optional=True)
        if isinstance(status.get("at"), int | float):
            return {**status, "age_s": max(0.0, time.time() - status["at"])}
    return {}


def _replace(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Not synced to disk, because it is useless after a power failure."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value) + "\n", encoding="utf-8")
    os.replace(part, path)
