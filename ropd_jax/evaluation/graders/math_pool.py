"""Many math answers against their golds, in processes that are killed and replaced when they take too long.

math-verify bounds its time by ``signal.alarm``, which works in a main thread only and takes other alarms away; sympy
can compute for hours on ten characters (``9^{9^{9^9}}``). So each of its processes is a child with a pipe and a limit
on its own computing time. What was not graded within it, or made its process fail, is *ungraded* with its cause: never
wrong.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ropd_jax.types import UserError

log = logging.getLogger(__name__)

_START_S = 120.0  # importing sympy on a machine that is busy with other things
_TRIES = 3  # of starting a process
_WALL = 12  # times the limit: a process that has not even got so much of the machine is ended by the clock


class Verdict(NamedTuple):
    """``right`` is None where the grader could not say; ``cause`` then says why, and for a wrong answer what of it."""

    right: bool | None
    cause: str = ""


class MathPoolError(UserError):
    """No grading process can be started at all; the message holds its own words."""


def verify_all(
    pairs: Sequence[tuple[str, str]],
    *,
    workers: int = 0,
    timeout_s: float = 5.0,
    say: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """The verdict of each (gold, answer); equal pairs are graded once.

    Args:
        workers: processes; 0 is one for each core, at most one for 8 pairs.
        timeout_s: seconds of computing on one pair, rounded up, then ``timeout``: of the process's own time, so that a
            busy machine grades as an idle one does. The slowest of 560 golds took 0.5 s.
        say: told now and then how many different pairs are done.

    Causes of an ungraded pair: ``timeout``, ``memory``, ``crashed``, ``error`` (math-verify raised), ``gold`` (it
    cannot read the gold answer).

    Raises:
        MathPoolError: the processes do not start (math-verify is not installed, for example).
    """
    unique = list(dict.fromkeys(pairs))
    if not unique:
        return []
    workers = workers or min(os.cpu_count() or 1, -(-len(unique) // 8))
    state = _State(queue.SimpleQueue(), {}, [], threading.Event())
    for pair in unique:
        state.waiting.put(pair)
    threads = [threading.Thread(target=_serve, args=(state, timeout_s), daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while any(t.is_alive() for t in threads):
            threads[0].join(0.2) if threads[0].is_alive() else time.sleep(0.05)
            say(len(state.found))
    finally:
        state.stopped.set()
        for thread in threads:
            thread.join()
    if state.failures:
        raise state.failures[0]
    return [state.found[pair] for pair in pairs]


def check_starts() -> None:
    """Start one grading process and end it, before hours of sampling count on it.

    Raises: MathPoolError, as `verify_all`.
    """
    _started(1.0).kill()


@dataclasses.dataclass
class _State:
    waiting: queue.SimpleQueue
    found: dict[tuple[str, str], Verdict]
    failures: list[MathPoolError]
    stopped: threading.Event

    def pairs(self) -> Iterator[tuple[str, str]]:
        while not self.stopped.is_set():
            try:
                yield self.waiting.get_nowait()
            except queue.Empty:
                return


def _serve(state: _State, timeout_s: float) -> None:
    """One thread with its process, which is replaced when it was killed or has died."""
    process: _Process | None = None
    try:
        for pair in state.pairs():
            process = process or _started(timeout_s)
            state.found[pair] = process.ask(pair, timeout_s, state.stopped)
            if not process.alive:
                process.kill()
                process = None
    except MathPoolError as error:
        state.failures.append(error)
        state.stopped.set()
    finally:
        if process is not None:
            process.kill()


def _started(timeout_s: float) -> _Process:
    for attempt in range(_TRIES):
        process = _Process(timeout_s)
        line = process.line(_START_S)
        if line == b"ready\n":
            return process
        said = process.kill()
        log.debug("a grading process did not start (try %d): %s", attempt + 1, said)
    what = said.strip().splitlines()[-1] if said.strip() else f"nothing in {_START_S:.0f} s"
    raise MathPoolError(f"the grading process does not start ({what}); is math-verify installed? "
                        "pip install 'ropd_jax[eval]'")  # fmt: skip


class _Process:
    def __init__(self, timeout_s: float):
        command = [sys.executable, "-m", "ropd_jax.evaluation.graders.math_worker", str(math.ceil(timeout_s))]
        root = str(pathlib.Path(__file__).parents[3])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._said = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up  # noqa: SIM115
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, bufsize=0,
            env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        self._buffer = b""
        self.alive = True

    def line(self, timeout_s: float, stopped: threading.Event | None = None) -> bytes | None:
        """The next line; None when there is none in time, or the process has ended."""
        end = time.monotonic() + timeout_s
        out = self._child.stdout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or (stopped is not None and stopped.is_set()):
                return None
            if select.select([out], [], [], min(left, 0.2))[0]:
                data = os.read(out.fileno(), 65536)
                if not data:
                    self.alive = False
                    return None
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def ask(self, pair: tuple[str, str], timeout_s: float, stopped: threading.Event) -> Verdict:
        gold, answer = pair
        try:
            self._child.stdin.write(json.dumps({"gold": gold, "answer": answer}).encode() + b"\n")
        except BrokenPipeError:
            self.alive = False
            return Verdict(None, "crashed")
        line = self.line(_WALL * timeout_s, stopped)
        if line is None:
            died, self.alive = not self.alive, False
            spent = not died or self._child.wait() == -signal.SIGXCPU
            return Verdict(None, "timeout" if spent else "crashed")
        reply = json.loads(line)
        if "right" in reply:
            return Verdict(reply["right"], "" if reply["right"] else "different")
        log.debug("math-verify failed on %r against %r: %s", answer, gold, reply["error"])
        return Verdict(None, reply["error"] if reply["error"] in ("memory", "gold") else "error")

    def kill(self) -> str:
        """Ends the process and returns what it said on standard error."""
        self.alive = False
        if self._said.closed:
            return ""
        self._child.kill()
        self._child.wait()
        self._child.stdin.close()
        self._child.stdout.close()
        with self._said as file:
            file.seek(0)
            return file.read().decode("utf-8", "replace")
