"""A request to stop: the first Ctrl-C or SIGTERM is noted and looked at; a second Ctrl-C ends the process at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user, or the machine, asked the run to stop."""


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request that the run looks at.

    A second Ctrl-C leaves at once. A second SIGTERM changes nothing: schedulers send several, and the one that means
    it sends SIGKILL when the time of grace is over.

    Args:
        any_host: (flag) -> whether it is set on any host of the run; collective.
    """

    def __init__(self, any_host: Callable[[bool], bool] = bool) -> None:
        self._since: float | None = None
        self._any_host = any_host

    @property
    def requested(self) -> bool:
        """Whether this host was asked to stop."""
        return self._since is not None

    def waited_s(self) -> float | None:
        """Seconds since this host was asked to stop; None if it was not."""
        return None if self._since is None else time.monotonic() - self._since

    def check(self) -> None:
        """Raise Interrupted if the user has asked to stop, on any host. Collective: every host must call it."""
        if self._any_host(self.requested):
            raise Interrupted

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Handle the signals until the block ends. Does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is not threading.main_thread():  # a notebook's or a test's worker thread
            yield self
            return

        def handle(signum, frame):
            if self._since is None:
                self._since = time.monotonic()
                log.warning("stopping: saving a checkpoint (Ctrl-C once more leaves at once)")
            elif signum == signal.SIGINT:
                os._exit(130)

        old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)
