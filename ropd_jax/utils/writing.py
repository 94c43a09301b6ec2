"""Handles files that cannot be written: the disk is full, fails or is read-only.

    with essential(path): ...        config, groups, metrics, tape, checkpoint, result: the run ends in one line
    guard = Dispensable("curves")    TensorBoard, curves, timeline, progress: disabled from then on, with one warning
    with guard: ...

Imports no jax.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from types import TracebackType

from ropd_jax.types import UserError

log = logging.getLogger(__name__)

WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class WriteError(UserError):
    """An essential file of the run cannot be written."""


def write_error(path: str | os.PathLike[str], error: Exception) -> WriteError:
    """The one-line error for an essential file."""
    return WriteError(
        f"cannot write {os.fspath(path)} ({reason(error)}); free some space or make it writable, and repeat the same "
        "command"
    )


def reason(error: BaseException) -> str:
    """Why a write failed, in a few words."""
    why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return " ".join(str(why).split())[:200]


@contextlib.contextmanager
def essential(path: str | os.PathLike[str]) -> Iterator[None]:
    """For a block that writes an essential file.

    Raises:
        WriteError: instead of an OSError; it names the path.
    """
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


class Dispensable:
    """For blocks that write something optional; the first failure is logged as a warning, later ones are silent.

    Attributes:
        lost: whether a block has failed; then writers stop writing.
    """

    def __init__(self, what: str):
        self._what = what
        self.lost = False
        self._lock = threading.Lock()

    def __enter__(self) -> Dispensable:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        with self._lock:
            first, self.lost = not self.lost, True
        if first:
            log.warning("%s cannot be written (%s); the run continues without", self._what, reason(error))
        return True
