"""One run per directory: ``DIR/lock/NUMBER.json`` names the process that writes into DIR. Imports no jax.

The record with the highest number holds the lock. A process takes it by creating the next number, which only one of
several processes can do (`workdir.lock_files`), on disks and on buckets alike. The holder rewrites its record every
`BEAT_S` seconds. A lock is stale, and the next process takes it over, in two cases:

- Its process has ended: on the same machine (boot and process namespace) the pid does not exist, or belongs to another.
- Its heartbeat has stopped for `STALE_S`. On the same machine the age follows from the machine's monotonic clock. For
  another machine, the waiting process watches by its own monotonic clock whether the record changes.

No decision depends on the system clock, so it can be set, and the clocks of two hosts can differ. It is assumed that a
running holder rewrites its record within `STALE_S`. If it does not (a suspended machine, a partition), it finds a
higher number or its own record missing when it wakes up, and stops before it writes the next step (`Lock.check`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from ropd_jax.types import UserError
from ropd_jax.utils.paths import is_url
from ropd_jax.workdir.lock_files import records_of

log = logging.getLogger(__name__)
FOLDER = "lock"
BEAT_S = 5.0  # time between heartbeats
STALE_S = 60.0  # a lock without a heartbeat for this long is stale
_LENGTH = 1_024  # bytes of a record: rewriting it in place needs no new disk block


class LockLost(UserError):
    """Another process has taken over the directory; this process must not write there any more."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        machine: boot and process namespace; pids and monotonic clocks are comparable only within one.
        born: the start time of the process, in the machine's own units; None if unknown.
        since: when it took the lock, UTC, for messages.
        at_s: its monotonic clock at the last heartbeat.
    """

    pid: int
    host: str
    machine: str
    born: int | None
    since: str
    token: str
    beat: int
    at_s: float

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host}"

    def record(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode().ljust(_LENGTH - 1) + b"\n"


def holder_of(record: bytes) -> Holder | None:
    """The holder that a record names; None if the record is incomplete."""
    try:
        return Holder(**json.loads(record))
    except (ValueError, TypeError):
        return None


class Lock:
    """The lock of a directory, for one process: `acquire`, `check` before writing, `release`.

    Args:
        directory: a path or a URL; created by `acquire` if it does not exist.
        flag: the command-line flag that names the directory, for messages.
        beat_s, stale_s: see the module; equal for all processes that use the directory.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        flag: str = "--workdir",
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
    ):
        self._directory, self._beat_s, self._stale_s = os.fspath(directory).rstrip("/"), beat_s, stale_s
        self._flag, self._name = flag, f"{flag} {self._directory}"
        self._number = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        machine = _machine()
        self._me = Holder(
            os.getpid(), socket.gethostname(), machine, _born(os.getpid()), "", secrets.token_hex(8), 0, 0.0
        )

    # --- taking it

    def acquire(self) -> None:
        """Take the lock, or take over a stale one; a lock of another host is watched for up to ``stale_s``.

        Raises:
            UserError: another process is running here, or the directory is not writable.
        """
        try:
            self._records = records_of(f"{self._directory}/{FOLDER}")
            self._take()
        except UserError:
            raise
        except Exception as error:
            if is_url(self._directory):  # each storage has its own errors
                raise self._unreachable(error) from error
            if isinstance(error, NotADirectoryError | FileExistsError):
                place = pathlib.Path(self._directory)
                file = next(p for p in (place, *place.parents) if p.exists())
                raise UserError(f"{self._name}: {file} is a file; expected a directory") from error
            if not isinstance(error, OSError):
                raise
            reason = error.strerror or " ".join(str(error).split())
            raise UserError(f"{self._name}: {reason}; choose a directory that can be written") from error
        self._thread = threading.Thread(target=self._keep_beating, name="lock", daemon=True)
        self._thread.start()

    def _unreachable(self, error: Exception) -> UserError:
        if isinstance(error, FileNotFoundError):  # only a bucket must exist before something is written
            scheme, _, path = self._directory.partition("://")
            bucket = f"{scheme}://{path.partition('/')[0]}"
            return UserError(f"{self._name}: the bucket {bucket} does not exist; create it, or correct its name")
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return UserError(
            f"{self._name} cannot be reached ({reason}); check the bucket's name, the credentials, and "
            "whether the package is installed (gcsfs for gs://, s3fs for s3://)"
        )

    def _take(self) -> None:
        seen: dict[int, tuple[bytes, float]] = {}  # number -> (its record, the time when this was first seen)
        while True:
            top = max(self._records.numbers(), default=0)
            record = self._records.read(top) if top else None
            if top and record is None:  # released between the two calls
                time.sleep(0.05)
                continue
            if record is not None:
                reason = self._stale(holder_of(record), record, top, seen)
                if not reason:
                    time.sleep(min(1.0, self._beat_s / 5))
                    continue
                log.warning("%s: taking over the lock of %s: %s", self._directory, _who(record), reason)
            self._me = dataclasses.replace(self._me, since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
            self._number = top + 1
            created = self._records.create(self._number, self._beaten())
            if created and self._mine():
                for number in self._records.numbers():
                    if number < self._number:
                        self._records.delete(number)
                return
            if created:  # unless another process has a higher number
                self._records.delete(self._number)
            time.sleep(0.05)  # on NFS a listing can be outdated

    def _stale(self, holder: Holder | None, record: bytes, number: int, seen: dict[int, tuple[bytes, float]]) -> str:
        """Why the lock is stale; "" if that cannot be decided yet. Raises UserError if its holder is running."""
        now_s = time.monotonic()
        if holder is not None and holder.machine == self._me.machine:
            if not _alive(holder):
                return "its process has ended"
            silent_s = now_s - holder.at_s
            if silent_s < self._stale_s:
                raise UserError(self._busy(holder))
            return f"it has had no heartbeat for {silent_s:.0f} s"
        before, since_s = seen.setdefault(number, (record, now_s))
        if before != record and holder is not None:
            raise UserError(self._busy(holder))
        if before != record:
            seen[number] = (record, now_s)
        elif now_s - since_s >= self._stale_s:
            return f"it has had no heartbeat for {now_s - since_s:.0f} s"
        elif since_s == now_s:
            log.info(
                "%s is locked by %s; waiting up to %.0f s for a sign that it is running", self._directory, _who(record),
                self._stale_s,
            )  # fmt: skip
        return ""

    def _busy(self, holder: Holder) -> str:
        return (
            f"{self._name}: {holder} has been running here since {holder.since}; wait until it ends, or choose another "
            f"{self._flag}"
        )

    # --- holding it

    def check(self) -> None:
        """Check that this process still holds the lock.

        Raises:
            LockLost: another process has taken it over, or the record is missing.
        """
        try:
            if self._mine():
                return
            top = max(self._records.numbers(), default=0)
            record = self._records.read(top) if top else None
        except Exception as error:  # unreadable storage: the next write will report it
            log.debug("%s: the lock cannot be read (%s)", self._directory, error)
            return
        taker = "somebody" if record is None else _who(record)
        raise LockLost(
            f"{self._name}: {taker} has taken over this directory while {self._me} had no heartbeat; "
            "this run stops writing there"
        )

    def _mine(self) -> bool:
        if max(self._records.numbers(), default=0) != self._number:
            return False
        record = self._records.read(self._number)
        holder = None if record is None else holder_of(record)
        return holder is not None and holder.token == self._me.token

    def _beaten(self) -> bytes:
        self._me = dataclasses.replace(self._me, beat=self._me.beat + 1, at_s=time.monotonic())
        return self._me.record()

    def _keep_beating(self) -> None:
        failing = False
        while not self._over.wait(self._beat_s):
            try:
                if not self._mine():
                    return  # `check` reports this
                self._records.overwrite(self._number, self._beaten())
                failing = False
            except Exception as error:  # storage fails for a while; others see no heartbeat meanwhile
                if not failing:
                    log.warning("%s: no heartbeat of the lock (%s: %s)", self._directory, type(error).__name__, error)
                failing = True

    def release(self) -> None:
        """Release the lock; has no effect if it is lost."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(10.0)
        with contextlib.suppress(Exception):  # a record that cannot be removed is stale when the process ends
            if self._mine():
                self._records.delete(self._number)
                self._records.close()


@contextlib.contextmanager
def locked(directory: str | os.PathLike[str], flag: str = "--workdir") -> Iterator[Lock]:
    """Hold the lock of a directory until the block ends; ``flag`` is the flag that names it.

    Raises:
        UserError: see `Lock.acquire`.
    """
    lock = Lock(directory, flag=flag)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


# ------------------------------------------------------------------------------------------ processes, machines


def _who(record: bytes) -> str:
    holder = holder_of(record)
    return "an unreadable record" if holder is None else f"{holder} (since {holder.since})"


def _machine() -> str:
    """The scope in which pids and monotonic clocks are comparable: this boot and process namespace."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _born(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None if it has ended or the system does not provide it."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # its name, in parentheses, can contain spaces
    return None if state in "ZX" else int(fields[18])


def _alive(holder: Holder) -> bool:
    """Whether the process of a record of this machine is still running; its pid can belong to a new process."""
    if holder.born is not None:
        return _born(holder.pid) == holder.born
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
