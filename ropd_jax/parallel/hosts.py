"""Several hosts, one run.

Every host (process) runs the same program over one mesh of all devices, so all hosts must run the same compiled
programs in the same order. These rules ensure that:

1. Every decision has the same inputs on all hosts. The prompts of a step follow from (seed, step). Every host reads
   complete results from the devices (`mesh.fetch`). What only one host knows is exchanged before any host acts on it.
2. Each host feeds its own devices (`mesh.place` passes only the shards of this host's devices). It also sends its own
   groups to the teacher, every n-th of a step, with 1/n of the limits and of the remaining budget.
3. While a host waits for its teacher, all hosts call `exchange` a few times per second: new judgements, requests to
   stop, an exhausted budget. So all hosts know the same judgements when they decide what to do next, and sum the same
   groups in the same order. If one stops, all stop at the same point.
4. A step ends with one `exchange`: spending, and new entries of the tapes. Then every host has the whole
   step, so packing and all later decisions are the same as on one host.

    host 0   sample | judge groups 0, 2, 4 . . exchange . . exchange | update
    host 1   sample | judge groups 1, 3, 5 . . exchange . . exchange | update

Only host 0 writes the files of the run. If a host ends or cannot be reached, the others end within a minute: at once if
a collective breaks, else after `SILENT_S` without a heartbeat. If a host hangs but its heartbeat continues, the others
end after `ROPD_HOSTS_TIMEOUT_S` without an exchange.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import pathlib
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed  # for the runtime's key-value store, which jax.distributed does not expose

from ropd_jax.parallel import digests
from ropd_jax.types import UserError

T = TypeVar("T")
log = logging.getLogger(__name__)
LOST = 5  # exit code: another host was lost
BEAT_S = 2.0  # time between two heartbeats of a host
SILENT_S = 40.0  # a host without a heartbeat for this long is lost
RUNTIME_S = 100  # then the runtime ends the process, with a stack trace, unless our own check already did
SHUTDOWN_S = 60  # time that the first finished host waits for the last
INLINE = 1 << 10  # maximum bytes of a message in the first of the two collectives of an exchange
LISTED = 512  # maximum number of keys that two hosts compare one by one, once their sums differ
_BEATS = "ropd/alive/"  # key prefix in the runtime's store
_FIRST_LINE = 200  # characters shown of a runtime error
_last_meeting: float | None = None


def count() -> int:
    """Number of hosts of this run; 1 without other hosts."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this host, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_local(i: int) -> bool:
    """True if this host judges the i-th group of a step: host 1 of 4 judges groups 1, 5, 9 ..."""
    return i % count() == index()


# -------------------------------------------------------------------------------------------------- exchange


def exchange(value: T) -> list[T]:
    """The values of all hosts, by host. Collective: every host must call it, in the same order of calls.

    Values of up to 1,016 bytes take one collective; larger ones a second one, padded to a power of two.

    Args:
        value: anything that can be pickled; the hosts of a run trust each other.
    """
    if count() == 1:
        return [value]
    data = pickle.dumps(value)
    first = np.zeros(INLINE, np.uint8)
    first[:8] = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
    fits = len(data) <= INLINE - 8
    if fits:
        first[8 : 8 + len(data)] = np.frombuffer(data, np.uint8)
    rows = _allgather(first)
    sizes = [int.from_bytes(row[:8].tobytes(), "little") for row in rows]
    offset = 8
    if max(sizes) > INLINE - 8:
        padded = np.zeros(1 << (max(sizes) - 1).bit_length(), np.uint8)  # few shapes, so few programs
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows, offset = _allgather(padded), 0
    return [pickle.loads(row[offset : offset + n].tobytes()) for row, n in zip(rows, sizes, strict=True)]


def any_host(flag: bool) -> bool:
    """True if any host reports it. Collective: every host must call it."""
    return any(exchange(bool(flag)))


def broadcast_from_host0(value: T) -> T:
    """The value of host 0, on every host. Collective: every host must call it."""
    return exchange(value if index() == 0 else None)[0]  # type: ignore[return-value]


def on_host0(f: Callable[[], T]) -> T:
    """The result of ``f`` on host 0, on every host. Collective: every host must call it.

    Raises:
        UserError: raised by ``f`` on host 0; it is raised on all hosts.
    """
    found: Any = None
    if index() == 0:
        try:
            found = f(), ""
        except UserError as error:
            found = None, str(error)
    value, problem = broadcast_from_host0(found)
    if problem:
        raise UserError(problem)
    return value


def check_same(what: str, value: Mapping[str, Any] | Callable[[], digests.Items]) -> None:
    """Compare a value across hosts. Collective: every host must call it.

    The hosts exchange a digest of 20 bytes. Only if these differ do they search for the difference, part by part; no
    host ever sends its whole value.

    Args:
        value: a mapping, or a function that iterates over its items (key, value), each time from the start. Items are
            equal if their ``repr`` is.

    Raises:
        UserError: the hosts differ; it is raised on all of them, with the first host that differs from host 0 and one
            differing key.
    """
    if count() == 1:
        return
    items = value.items if isinstance(value, Mapping) else value
    totals = exchange(digests.total(items()))
    other = next((i for i, found in enumerate(totals) if found != totals[0]), None)
    if other is None:
        return
    prefix, both = b"", (0, other)
    while True:
        parts = exchange(digests.parts(items(), prefix))
        if max(parts[i].keys for i in both) <= LISTED:
            break
        prefix += bytes([parts[0].differing(parts[other])])
    mine = digests.listed(items(), prefix) if index() in both else {}
    listed = exchange(mine)
    ours, theirs = listed[0], listed[other]
    key = min(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    texts = exchange(next((repr(v)[:_FIRST_LINE] for k, v in items() if k == key), "absent"))
    raise UserError(
        f"{what} of host {other} is not that of host 0: {key} is {texts[other]} there and {texts[0]} on host 0; start "
        "all hosts with the same command and the same files"
    )


def _allgather(row_X: np.ndarray) -> np.ndarray:
    """[n, X] from the [X] of each host."""
    global _last_meeting
    mesh, split, whole = _by_host()
    rows = jax.make_array_from_process_local_data(split, row_X[None], (count(), len(row_X)))
    with jax.set_mesh(mesh):  # the caller's mesh has different devices
        got = np.asarray(_relay(whole)(rows).addressable_data(0))
    _last_meeting = time.monotonic()
    return got


@functools.cache
def _by_host() -> tuple[jax.sharding.Mesh, jax.NamedSharding, jax.NamedSharding]:
    """A mesh of one device per host, and its shardings: one row on each, and all rows on all."""
    devices = [next(d for d in jax.devices() if d.process_index == i) for i in range(count())]
    mesh = jax.sharding.Mesh(np.asarray(devices), ("host",))
    return mesh, jax.NamedSharding(mesh, jax.P("host")), jax.NamedSharding(mesh, jax.P())


@functools.cache
def _relay(sharding: jax.NamedSharding):
    return jax.jit(lambda x: x, out_shardings=sharding)


# ------------------------------------------------------------------------------------------ joining, leaving


@contextlib.contextmanager
def joined(coordinator: str = "", processes: int | None = None, process: int | None = None) -> Iterator[None]:
    """Join the other hosts, before any use of a device, and shut down in an orderly way.

    Args:
        coordinator: HOST:PORT of host 0; "" is JAX_COORDINATOR_ADDRESS, or on a TPU VM what the VM reports about its
            slice; ``auto`` leaves all three to JAX (Slurm, Open MPI, Kubernetes); ``off`` joins no host.
        processes, process: number of hosts, and the number of this one; None is JAX_NUM_PROCESSES and
            JAX_PROCESS_ID.

    An error on one host ends its process at once, so that the others do not wait for it.

    Raises:
        UserError: inconsistent arguments, or hosts that did not find each other.
    """
    start(coordinator, processes, process)
    if count() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        _abandon(error)
    jax.distributed.shutdown()


def start(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """See `joined`."""
    if coordinator == "off" or jax.distributed.is_initialized():
        return
    how = _how(coordinator, processes, process)
    if how is None:
        return
    # Our own handler turns SIGTERM into a checkpoint on all hosts; the service's handler would intercept the signal.
    jax.config.update("jax_enable_preemption_service", False)
    log.info("joining the other hosts%s", f" at {how['coordinator_address']}" if how else "")
    try:
        jax.distributed.initialize(
            **how,
            heartbeat_timeout_seconds=RUNTIME_S,
            shutdown_timeout_seconds=SHUTDOWN_S,
            initialization_timeout=300,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:_FIRST_LINE]
        raise UserError(
            f"the hosts did not find each other ({reason}); start the same command on every host, with the address of "
            "host 0 as --coordinator HOST:PORT and one --process-id each, or --coordinator off for this host only"
        ) from error
    if jax.process_count() > 1:
        log.info("host %d of %d, %d of %d devices", jax.process_index(), jax.process_count(),
                 jax.local_device_count(), jax.device_count())  # fmt: skip
        for watch, limit_s in ((_watch, _limit_s()), (_listen, SILENT_S)):
            threading.Thread(target=watch, args=(limit_s,), name=f"hosts-{watch.__name__}", daemon=True).start()


def _how(coordinator: str, processes: int | None, process: int | None) -> dict[str, Any] | None:
    """Arguments of ``jax.distributed.initialize``: {} if JAX finds them itself, None if there is no host to join."""
    if coordinator == "auto":
        return {}
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    processes = _number("JAX_NUM_PROCESSES") if processes is None else processes
    process = _number("JAX_PROCESS_ID") if process is None else process
    if not coordinator:
        if processes is not None and processes > 1:
            raise UserError(f"{processes} processes without --coordinator; expected HOST:PORT of host 0")
        return {} if _on_tpu_vm() else None
    if processes is None or process is None:
        raise UserError(
            f"--coordinator {coordinator} without --num-processes and --process-id; expected all three, or "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment"
        )
    if not 0 <= process < processes:
        raise UserError(f"--process-id {process} of {processes}; expected 0 to {processes - 1}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator {coordinator}; expected HOST:PORT of host 0, e.g. 10.0.0.2:8476")
    if processes == 1:
        return None
    return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    if text and not text.isdigit():
        raise UserError(f"{variable}={text!r}; expected a whole number")
    return int(text) if text else None


def _on_tpu_vm() -> bool:
    """True if this machine has TPU chips that a run would use; their slice can have further hosts."""
    if os.environ.get("JAX_PLATFORMS", "tpu").partition(",")[0] not in ("", "tpu"):
        return False
    chips = any(pathlib.Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0"))
    return chips and importlib.util.find_spec("libtpu") is not None


# ---------------------------------------------------------------------------------------------------- trouble


@contextlib.contextmanager
def lost_together() -> Iterator[None]:
    """An error in the block that is caused by a lost host ends this process with our message; see `lost`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        lost(error)
        raise


def lost(error: BaseException) -> None:
    """End the process if ``error`` means that another host was lost; else do nothing."""
    broken = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)  # Gloo can also raise ValueError
    if count() == 1 or not broken:
        return
    reason = " ".join(str(error).split())[:_FIRST_LINE]
    _end(
        f"host {index()} of {count()} has lost another host, or the runtime failed ({reason}). Check the output of "
        "the others; the last complete checkpoint is kept. To continue, run the same command on all hosts",
        LOST,
    )


def _abandon(error: BaseException) -> NoReturn:
    if isinstance(error, jax.errors.JaxRuntimeError | ValueError):
        lost(error)
    if isinstance(error, UserError):
        _end(f"host {index()}: {error}", 2)
    elif isinstance(error, KeyboardInterrupt):
        _end(f"host {index()}: stopped", 130)
    log.error("host %d failed", index(), exc_info=error)
    _end(f"host {index()} failed ({type(error).__name__}); the others end as well", 1)


def _end(text: str, code: int) -> NoReturn:
    """Log the text and end without the runtime's shutdown, which would wait for the others."""
    log.error("%s", text)
    sys.stdout.flush()
    sys.stderr.flush()
    if index() == 0:
        time.sleep(1.0)  # hosts that fail for the same reason can log it before the coordinator ends
    os._exit(code)


def _limit_s() -> float:
    text = os.environ.get("ROPD_HOSTS_TIMEOUT_S", "1800")
    try:
        return float(text)
    except ValueError:
        raise UserError(f"ROPD_HOSTS_TIMEOUT_S={text!r}; expected seconds, e.g. 1800") from None


class Silence:
    """Hosts whose heartbeat has not changed for too long. A host without a heartbeat is still joining.

    Args:
        limit_s: a host without a new heartbeat for this long is lost.
        now_s: seconds of a monotonic clock.
    """

    def __init__(self, limit_s: float, now_s: float) -> None:
        self._limit_s = limit_s
        self._heard: dict[str, tuple[str | None, float]] = {}
        self._asked_s = now_s

    def of(self, beats: Mapping[str, str], now_s: float) -> list[str]:
        """The lost hosts, given the last heartbeat of each by name; none after a pause of this process itself."""
        paused = now_s - self._asked_s > self._limit_s / 2  # this process was paused, so its data is stale
        self._asked_s = now_s
        for name in self._heard.keys() | beats.keys():
            last, since_s = self._heard.get(name, (None, now_s))
            beat = beats.get(name, last)
            self._heard[name] = (beat, now_s if paused or beat != last else since_s)
        return sorted(
            f"host {name.removeprefix(_BEATS)}"
            for name, (_, since_s) in self._heard.items()
            if now_s - since_s > self._limit_s
        )


def _watch(limit_s: float) -> None:
    """End the process after ``limit_s`` without an exchange: another host hangs, or a collective does."""
    while jax.distributed.is_initialized():
        time.sleep(min(1.0, limit_s / 4))
        since = None if _last_meeting is None else time.monotonic() - _last_meeting
        if since is not None and since > limit_s:
            _end(
                f"host {index()} has heard nothing from the other hosts for {since:.0f} s (ROPD_HOSTS_TIMEOUT_S="
                f"{limit_s:g}); one of them hangs. To continue, stop them all, then run the same command on all hosts",
                LOST,
            )


def _listen(limit_s: float) -> None:
    """Send this host's heartbeat, and end the process if another host has sent none for ``limit_s``."""
    silence = Silence(limit_s, time.monotonic())
    beat = 0
    while (store := distributed.global_state.client) is not None:  # None after the shutdown
        beat += 1
        try:
            store.key_value_set(f"{_BEATS}{index()}", str(beat), allow_overwrite=True)
            beats = dict(store.key_value_dir_get(_BEATS))
        except jax.errors.JaxRuntimeError:  # host 0 has the store: without it there are no new heartbeats
            beats = {}
        if gone := silence.of(beats, time.monotonic()):
            _end(
                f"host {index()} of {count()} has lost another host: {', '.join(gone)} has sent no heartbeat for "
                f"{limit_s:g} s. Check its output; the last complete checkpoint is kept. To continue, run the same "
                "command on all hosts",
                LOST,
            )
        time.sleep(BEAT_S)
