"""Rate limiting: something that is done at most once every few seconds, such as a line of progress."""

from __future__ import annotations

import time


class Every:
    """``if progress(): log.info(...)`` is true at most once in ``seconds``, first after that time.

    >>> progress = Every(5.0)
    >>> progress()  # right after the start
    False
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._last = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last <= self.seconds:
            return False
        self._last = now
        return True
