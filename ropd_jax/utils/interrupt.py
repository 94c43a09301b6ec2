"""A request to stop: the first Ctrl-C or SIGTERM is recorded and polled; a second Ctrl-C ends the process at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)
UNHEARD_S = 3.0  # time from a signal to the call of `Interrupt.unheard`


class Interrupted(Exception):
    """The user or the machine requested the run to stop."""


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request that the run polls.

    A second Ctrl-C exits at once. A second SIGTERM has no effect: schedulers send several, and send SIGKILL when the
    grace period ends.

    Attributes:
        unheard: called on a separate thread if a request has not been polled for `UNHEARD_S` seconds. Python runs no
            signal handler while the main thread compiles or waits for the device, which can take minutes.

    Args:
        any_host: (flag) -> whether it is set on any host of the run; collective.
    """

    def __init__(self, any_host: Callable[[bool], bool] = bool) -> None:
        self.unheard: Callable[[], None] = lambda: None
        self._since: float | None = None
        self._announced = False
        self._heard = threading.Event()
        self._any_host = any_host

    @property
    def requested(self) -> bool:
        """Whether this host was requested to stop."""
        return self._since is not None

    def waited_s(self) -> float | None:
        """Seconds since this host was requested to stop; None if it was not."""
        return None if self._since is None else time.monotonic() - self._since

    def check(self) -> None:
        """Raise Interrupted if a stop was requested on any host. Collective: every host must call it."""
        if self._any_host(self.requested):
            self._heard.set()
            raise Interrupted

    @contextlib.contextmanager
    def listening(self) -> Iterator[Interrupt]:
        """Handle the signals until the block ends. Does nothing outside the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():  # a notebook's or a test's worker thread
            yield self
            return

        def handle(signum, frame):
            if not self._announced:
                self._announced = True
                self._note()
                log.warning("stopping: saving a checkpoint (press Ctrl-C again to exit at once)")
            elif signum == signal.SIGINT:
                os._exit(130)

        old = {s: signal.signal(s, handle) for s in SIGNALS}
        here, there = socket.socketpair()  # the interpreter writes the number of a signal into it at once
        there.setblocking(False)
        old_fd = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(here,), name="signals", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)
            signal.set_wakeup_fd(old_fd)
            self._heard.set()
            there.close()
            watcher.join()
            here.close()

    def _note(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def _watch(self, here: socket.socket) -> None:
        """The signals' own thread; it ends when the other end of the socket is closed."""
        while number := here.recv(1):
            if number[0] in SIGNALS and not self._heard.is_set():
                self._note()
                if not self._heard.wait(UNHEARD_S):
                    self._heard.set()
                    self.unheard()
