"""Hosts simulated as threads of one process; their `exchange` counts what they send.

An instance has the interface to a run's hosts that `data.questions` needs; `installed` uses it in place of
`parallel.hosts`.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

from ropd_jax.parallel import hosts


class SimulatedHosts:
    """``n`` hosts.

    Attributes:
        sent: pickled bytes of the largest value of each exchange so far.
    """

    def __init__(self, n: int):
        self.n, self.sent = n, list[int]()
        self._here = threading.local()
        self._values: list[Any] = [None] * n
        self._barrier = threading.Barrier(n)

    def count(self) -> int:
        return self.n

    def index(self) -> int:
        return self._here.i

    def exchange(self, value: Any) -> list[Any]:
        self._values[self._here.i] = value
        self._barrier.wait()
        found = list(self._values)
        if self._barrier.wait() == 0:
            self.sent.append(max(len(pickle.dumps(v)) for v in found))
        return found

    def check_same(self, what: str, value: Callable[[], Iterable[tuple[str, Any]]]) -> None:
        hosts.check_same(what, value)

    @contextlib.contextmanager
    def installed(self) -> Iterator[SimulatedHosts]:
        """Makes `parallel.hosts` report and exchange like these hosts."""
        with mock.patch.multiple(hosts, count=self.count, index=self.index, exchange=self.exchange):
            yield self

    def run(self, f: Callable[[int], Any]) -> list[Any]:
        """The result of ``f(i)`` on each host, or its exception."""
        found: list[Any] = [None] * self.n

        def host(i: int) -> None:
            self._here.i = i
            try:
                found[i] = f(i)
            except Exception as error:
                found[i] = error

        threads = [threading.Thread(target=host, args=(i,)) for i in range(self.n)]
        with self.installed():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return found
