"""One run at a time in a directory: host 0 holds the lock (`workdir.lock`), and all hosts of the run share it."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

from ropd_jax.parallel import hosts
from ropd_jax.types import UserError
from ropd_jax.utils.paths import is_url
from ropd_jax.workdir.lock import Lock, LockLost


class Ownership:
    """The run's right to write into its directory."""

    def __init__(self, lock: Lock | None):
        self._lock = lock  # of host 0

    def check(self) -> None:
        """Check that the run still owns its directory. Collective: every host must call it.

        Raises:
            LockLost: another process has taken over the directory; raised on all hosts.
        """
        problem = None
        try:
            if self._lock is not None:
                self._lock.check()
        except LockLost as error:
            problem = str(error)
        if problem := hosts.broadcast_from_host0(problem):
            raise LockLost(problem)


@contextlib.contextmanager
def one_run(workdir: str | os.PathLike[str], flag: str = "--workdir") -> Iterator[Ownership]:
    """Keep other runs out of a directory until the block ends. Collective: every host must call it.

    Args:
        flag: the command-line flag that names the directory, for messages.

    Raises:
        UserError: another run uses it, or the directory is not writable; raised on all hosts.
    """
    name = os.fspath(workdir)
    place = name if is_url(name) else pathlib.Path(name).expanduser()
    if isinstance(place, pathlib.Path) and (place / "result.json").exists() and not os.access(place, os.W_OK):
        yield Ownership(None)  # an archived run: its result can be shown, but not changed
        return
    with hosts.lost_together(), contextlib.ExitStack() as stack:
        lock, problem = None, None
        if hosts.index() == 0:
            lock = Lock(place, flag=flag)
            try:
                lock.acquire()
                stack.callback(lock.release)
            except UserError as error:
                problem = str(error)
        if problem := hosts.broadcast_from_host0(problem):
            raise UserError(problem)
        yield Ownership(lock)
