"""The tracker interface. A run calls its trackers in order, and never fails or waits because of one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ropd_jax.types import UserError
from ropd_jax.utils.files import read_json, write_atomic
from ropd_jax.utils.writing import reason

log = logging.getLogger(__name__)

ROOM = 1_000  # calls queued for a tracker in the background; further ones are dropped
FINISH_S = 60.0  # time for a tracker to send the rest when the run ends
IDS = "trackers.json"  # in the run's directory: the id of the run at each tracker


@dataclasses.dataclass(frozen=True)
class Start:
    """A run as a tracker sees it.

    Attributes:
        config: as in ``config.json``; it contains no secrets.
        files: the local directory of the run; for a run in a bucket, its staging directory.
        name: of the run, for people.
        first_step: steps of an earlier process from this one on are logged again.
        resumed: whether an earlier process has logged steps.
        forked_from: the run and step that this one started from; empty if it is not a fork.
    """

    config: Mapping[str, Any]
    files: pathlib.Path
    name: str
    first_step: int = 0
    resumed: bool = False
    forked_from: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def known_id(self, tracker: str) -> str:
        """The run's id at a tracker, from an earlier process; "" if there is none."""
        with contextlib.suppress(UserError):
            return str(read_json(self.files / IDS, optional=True).get(tracker, ""))
        return ""

    def keep_id(self, tracker: str, value: str) -> None:
        """Stores the run's id for a process that resumes it. A fork has its own directory and so its own id."""
        found: dict[str, Any] = {}
        with contextlib.suppress(UserError):
            found = read_json(self.files / IDS, optional=True)
        write_atomic(self.files / IDS, json.dumps(found | {tracker: value}) + "\n")


class Tracker(Protocol):
    """A place for metrics. Any method can raise; `Trackers` catches it."""

    def start(self, run: Start) -> None:
        """Called once, before all other methods."""

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """The metrics of a step; a step can be logged in several parts. None is an unknown value."""

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The groups of a step, one row per answer; all rows have the same keys."""

    def finish(self, code: int) -> None:
        """The run ends: code 0 for a finished run, else 1."""


class Trackers:
    """The trackers of a run. An exception of one is logged once and counted; the run continues.

    Attributes:
        failures: number of failed calls of each.
    """

    def __init__(self, trackers: Mapping[str, Tracker], start: Start):
        self._trackers = dict(trackers)
        self.failures = dict.fromkeys(self._trackers, 0)
        self._each(lambda tracker: tracker.start(start))

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        self._each(lambda tracker: tracker.log(step, values))

    def table(self, step: int, rows: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """``rows`` is called only if there is a tracker."""
        if self._trackers:
            made = rows()
            self._each(lambda tracker: tracker.table(step, made))

    def finish(self, code: int) -> None:
        self._each(lambda tracker: tracker.finish(code))
        for name, count in self.failures.items():
            count += getattr(self._trackers[name], "lost", 0)
            if count:
                log.warning("%s: %d calls failed or were dropped; metrics.jsonl has everything", name, count)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in self._trackers.items():
            try:
                call(tracker)
            except Exception as error:
                self.failures[name] += 1
                if self.failures[name] == 1:
                    log.warning("%s failed (%s); the run continues", name, reason(error))


class Background:
    """A tracker whose calls run in a separate thread, so that a slow or dead network never delays the run.

    Attributes:
        lost: number of calls that failed after they were queued, or were dropped because `ROOM` calls were queued.
    """

    def __init__(self, tracker: Tracker, *, room: int = ROOM, finish_s: float = FINISH_S):
        self._tracker, self._finish_s = tracker, finish_s
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(room)
        self._ended = threading.Event()
        self.lost = 0

    def start(self, run: Start) -> None:
        threading.Thread(target=self._work, daemon=True, name="tracker").start()
        self._put(lambda: self._tracker.start(run))

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        kept = dict(values)
        self._put(lambda: self._tracker.log(step, kept))

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._put(lambda: self._tracker.table(step, rows))

    def finish(self, code: int) -> None:
        def last() -> None:
            try:
                self._tracker.finish(code)
            finally:
                self._ended.set()

        deadline = time.monotonic() + self._finish_s
        with contextlib.suppress(queue.Full):
            self._queue.put(last, timeout=self._finish_s)
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"did not send everything within {self._finish_s:.0f} s")

    def _put(self, call: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self.lost += 1

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self._queue.get()()
            except Exception as error:
                self.lost += 1
                if self.lost == 1:
                    name = type(self._tracker).__name__
                    log.warning("%s failed (%s); the run continues", name, reason(error))
