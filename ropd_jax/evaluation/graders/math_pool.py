"""Compares many math answers with their gold answers, in sandboxed processes that are replaced if they take too long.

math-verify limits its time with ``signal.alarm``, which works only in a main thread and cancels other alarms; sympy
can compute for hours on ten characters (``9^{9^{9^9}}``). So math-verify runs in child processes (``utils.sandbox``)
with a CPU time limit. An answer that a child does not decide is *ungraded*, with its cause, and never wrong.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ropd_jax.types import UserError
from ropd_jax.utils import sandbox

log = logging.getLogger(__name__)

WORKER = "ropd_jax.data.math_worker"


class Verdict(NamedTuple):
    """``right`` is None if the answer is ungraded. ``cause`` is the reason why it is ungraded or wrong."""

    right: bool | None
    cause: str = ""


class MathPoolError(UserError):
    """No grading process can be started. The message contains the last line of the process's output."""


def verify_all(
    pairs: Sequence[tuple[str, str]],
    *,
    workers: int = 0,
    timeout_s: float = 5.0,
    report: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """The verdict on each (gold, answer); equal pairs are graded once.

    Args:
        workers: number of processes; 0 means one per core, and at most one per 8 pairs.
        timeout_s: CPU seconds per pair, rounded up; a pair that takes longer has the cause ``timeout``. The slowest of
            560 gold answers took 0.5 s.
        report: called repeatedly with the number of distinct pairs done.

    Causes of an ungraded pair: those of ``sandbox.ERRORS``, ``error`` (math-verify raised), and ``gold`` (it cannot
    read the gold answer).

    Raises:
        MathPoolError: the processes do not start, for example because math-verify is not installed.
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
            report(len(state.found))
    finally:
        state.stopped.set()
        for thread in threads:
            thread.join()
    if state.failures:
        raise state.failures[0]
    return [state.found[pair] for pair in pairs]


def check_starts() -> None:
    """Starts and stops one grading process, before hours of sampling depend on it.

    Raises:
        MathPoolError: as `verify_all`.
    """
    _started(1.0).close()


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
    """One thread with its child, which is replaced if it was killed or died."""
    child: sandbox.Child | None = None
    try:
        for gold, answer in state.pairs():
            child = child or _started(timeout_s)
            reply = child.ask({"gold": gold, "answer": answer}, state.stopped)
            state.found[gold, answer] = _verdict(reply, (gold, answer))
            if not child.alive:
                child.close()
                child = None
    except MathPoolError as error:
        state.failures.append(error)
        state.stopped.set()
    finally:
        if child is not None:
            child.close()


def _started(timeout_s: float) -> sandbox.Child:
    try:
        return sandbox.Child(WORKER, cpu_s=timeout_s)
    except sandbox.StartError as error:
        raise MathPoolError(
            f"the grading process does not start ({error}); is math-verify installed? pip install 'ropd_jax[eval]'"
        ) from error


def _verdict(reply: dict, pair: tuple[str, str]) -> Verdict:
    right = reply.get("right")
    if isinstance(right, bool):
        return Verdict(right, "" if right else "different")
    cause = str(reply.get("error"))
    log.debug("math-verify failed on %r against %r: %s", pair[1], pair[0], cause)
    return Verdict(None, cause if cause in (*sandbox.ERRORS, "gold") else "error")
