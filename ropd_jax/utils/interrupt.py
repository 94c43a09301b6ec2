"""A request to stop: the first Ctrl-C (or SIGTERM) is noted and looked at, the second ends the process at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """The user asked to stop."""


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a request that the run looks at; the second leaves at once.

    Args:
        any_host: (flag) -> whether it is set on any host of the run; collective.
    """

    def __init__(self, any_host: Callable[[bool], bool] = bool) -> None:
        self._asked = threading.Event()
        self._any_host = any_host

    def check(self) -> None:
        """Raise Interrupted if the user has asked to stop, on any host. Collective: every host must call it."""
        if self._any_host(self._asked.is_set()):
            raise Interrupted

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Handle the signals until the block ends. Does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is not threading.main_thread():  # a notebook's or a test's worker thread
            yield self
            return

        def handle(signum, frame):
            if self._asked.is_set():
                os._exit(130)
            self._asked.set()
            log.warning("stopping: saving a checkpoint (once more to leave at once)")

        old = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)
