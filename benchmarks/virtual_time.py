"""Virtual time: an event loop in which waiting takes no real time, so hours of teacher traffic pass in seconds.

``run(coroutine)`` is ``asyncio.run`` with such a loop. Whenever every task waits, the clock jumps to the next timer.
All waiting through asyncio (sleep, timeout, call_later) follows this clock, and the same program gives the same times
on every machine, even a busy one. Real sockets do not follow the clock, so only in-process clients work.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    jumped = 0.0

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("virtual time stands still: every task waits, and no timer is set")
        if not ready and timeout is not None:
            self.jumped += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector loop whose clock starts at 0.0 and runs only while nothing is ready."""

    def __init__(self):
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.jumped


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine to its end in virtual time.

    Raises:
        RuntimeError: every task waits, and no timer is set.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
