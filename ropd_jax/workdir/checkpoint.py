"""Save and resume: parameters, optimizer, step and teacher state in one atomic save that hardly blocks the run.

The data position and the random streams are functions of (seed, step), so the step number determines both. A save
copies the arrays to host memory and writes them while the next step runs (`workdir.orbax_io`). If the run is killed at
any moment, the last complete checkpoint stays. Each checkpoint has checksums of its files: a damaged one is set aside,
never loaded and never deleted, and the run continues from the previous one. docs/checkpoints.md
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from ropd_jax.parallel import hosts
from ropd_jax.types import UserError
from ropd_jax.utils import tracing
from ropd_jax.utils.buckets import reported
from ropd_jax.utils.paths import is_url, local_file
from ropd_jax.utils.writing import WriteError
from ropd_jax.workdir import checksums
from ropd_jax.workdir.kept import DAMAGED, entries, saved_steps
from ropd_jax.workdir.orbax_io import PART, Writer, check_shapes, ocp

log = logging.getLogger(__name__)
EXTRAS = ("ahead",)  # additional trees in a checkpoint: the policy that samples the next step
METADATA = 1 << 20  # bytes of a checkpoint in addition to its arrays


class Restored(NamedTuple):
    """A loaded checkpoint; ``extras`` are its additional trees."""

    step: int
    state: Any
    host: dict[str, Any]
    extras: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in ``directory/<step>``; a checkpoint of step s holds s finished steps.

    With several hosts, every host must call every method, in the same order.

    Args:
        directory: created if missing.
        keep: number of newest checkpoints to keep.
        keep_best: number to keep in addition, those with the highest ``scores``; of equal ones the later.
        scores: by step, equal on all hosts; read when a save is complete.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int,
        keep_best: int = 0,
        scores: Callable[[], Mapping[int, float | None]] = dict,
    ):
        path = epath.Path(directory)
        self.directory = path if is_url(path) else path.resolve()
        self._keep, self._keep_best, self._scores = keep, keep_best, scores
        self._lock = threading.Lock()  # guards the next three, which a finished write changes
        self._one_saves = threading.RLock()  # the run, or a thread that saves after a signal
        self._blocked_s, self._write_s = 0.0, 0.0
        if hosts.index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._steps = hosts.broadcast_from_host0(saved_steps(self.directory))
        self._writer = Writer(self.directory, ("state", *EXTRAS))
        self._write: _Write | None = None

    def latest(self) -> int | None:
        """Number of finished steps in the newest checkpoint, or None; including one that is being written."""
        with self._lock:
            return max(self._steps, default=None)

    def has(self, step: int) -> bool:
        """Whether this checkpoint exists or is being written."""
        with self._lock:
            return step in self._steps

    @property
    def writing(self) -> bool:
        """Whether a save is still pending."""
        return self._write is not None

    # --- save

    def save(self, step: int, state: Any, host: dict, *, extras: Mapping[str, Any] = {}, wait: bool = False) -> None:
        """Save after ``step`` finished steps. Has no effect if that checkpoint exists or is being written.

        Args:
            state: a pytree of arrays; the caller can donate them when this returns.
            host: JSON values.
            extras: additional trees, by their names in ``EXTRAS``.
            wait: return when the checkpoint is complete, not when it is copied to host memory.

        Raises:
            OSError: no space left on the device.
            WriteError: this save or the previous one could not be written.
        """
        with self._blocking():
            if not self.has(step):
                self._join()  # one write at a time
                self._start(step, {"state": state, **extras}, host)
            if wait:
                self._join()

    def _start(self, step: int, trees: dict[str, Any], host: dict) -> None:
        self.check_room(trees)
        with _explained(self.directory / str(step)):
            self._writer.start(step, trees, host)
        with self._lock:
            self._steps.append(step)
        self._write = _Write(step, self._complete)

    def wait(self) -> None:
        """Wait until the write in flight is complete, if there is one; raises its error."""
        with self._blocking():
            self._join()

    @contextlib.contextmanager
    def _blocking(self) -> Iterator[None]:
        begin = time.monotonic()
        try:
            with self._one_saves:
                yield
        finally:
            with self._lock:
                self._blocked_s += time.monotonic() - begin

    def _join(self) -> None:
        if (write := self._write) is not None:
            write.thread.join()
            self._write = None
            if write.error is not None:
                with self._lock:
                    self._steps.remove(write.step)
                with _explained(self.directory / str(write.step)):
                    raise write.error

    def check(self) -> None:
        """Raise the error of a failed write in the background; does not wait."""
        if (write := self._write) is not None and not write.thread.is_alive():
            with self._one_saves:
                self._join()

    def times(self) -> dict[str, float]:
        """Metrics since the last call: seconds that saves blocked, and seconds of completed writes; {} if there were
        none."""
        with self._lock:
            found = {"time/checkpoint_s": self._blocked_s, "time/checkpoint_write_s": self._write_s}
            self._blocked_s, self._write_s = 0.0, 0.0
        return {name: seconds for name, seconds in found.items() if seconds}

    def check_room(self, state: Any) -> None:
        """Raise OSError (no space left) if the disk has no space for another checkpoint of ``state``.

        Otherwise Orbax would fail in the middle of writing. A bucket has no such limit.
        """
        if is_url(self.directory) or hosts.index() != 0:
            return
        need = sum(x.nbytes for x in jax.tree.leaves(state)) + METADATA
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint needs {need / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free",
                str(self.directory),
            )

    def _complete(self, step: int, begin: float) -> None:
        """In the write's thread: wait for Orbax, then remove checkpoints that are no longer kept."""
        with tracing.span("checkpoint_write", step=step - 1):
            self._writer.join()
        with self._lock:
            self._write_s += time.monotonic() - begin
            surplus = surplus_steps(self._steps, self._keep, self._keep_best, self._scores())
            self._steps = [s for s in self._steps if s not in surplus]
        if hosts.index() == 0:
            for one in surplus:
                (self.directory / str(one)).rmtree()

    def _remove_parts(self) -> None:
        """Remove the unreadable remains of killed writes. No other process must be writing."""
        complete = set(saved_steps(self.directory))
        for path in entries(self.directory):
            unmarked = is_url(path) and path.name.isdigit() and int(path.name) not in complete
            if PART in path.name or unmarked:
                log.info("removing %s, an incomplete checkpoint of an earlier process", path)
                path.rmtree()

    # --- resume

    def restore_newest(self, like: Any, extras: Mapping[str, Any] = {}) -> Restored | None:
        """The newest undamaged checkpoint; None if the run has no checkpoint yet.

        Damaged ones are renamed to ``damaged-<step>`` and reported. Remains of killed writes are removed.

        Args:
            like: arrays or ShapeDtypeStructs, that give the placement and dtypes of the state.
            extras: the same for additional trees, which are loaded if the checkpoint has them.

        Raises:
            UserError: all checkpoints are damaged; or the checkpoint holds other arrays: another student, another rank
                of adapters, another optimizer.
        """
        if hosts.index() == 0:
            self._remove_parts()
        while (step := self.latest()) is not None:
            problem = self._damage(step)
            if not problem:
                try:
                    return self._restore(step, like, extras)
                except _Unreadable as error:
                    problem = str(error)
            self._set_aside(step, problem)
        names = sorted(p.name for p in entries(self.directory) if p.name.startswith(DAMAGED))
        damaged = hosts.broadcast_from_host0(names)
        if damaged:
            raise UserError(
                f"{self.directory} holds only damaged checkpoints ({', '.join(damaged)}); to resume, put an undamaged "
                f"copy there under its number (e.g. {damaged[-1].split('-')[1]}); to restart from step 0, move "
                f"{DAMAGED}* elsewhere or choose another --workdir"
            )
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """(state, host) of a checkpoint, placed and typed as ``like``; see `restore_newest`.

        Raises:
            UserError: the checkpoint is damaged, or holds other arrays.
        """
        if problem := self._damage(step):
            raise UserError(f"the checkpoint {self.directory / str(step)} is damaged: {problem}; choose another step")
        found = self._restore(step, like, {})
        return found.state, found.host

    def _restore(self, step: int, like: Any, extras: Mapping[str, Any]) -> Restored:
        directory = self.directory / str(step)
        trusted = checksums.sealed(directory)
        likes = {"state": like} | {name: tree for name, tree in extras.items() if (directory / name).exists()}
        try:
            check_shapes(directory, like)
            trees, host = self._writer.read(step, likes)
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            if trusted or hosts.count() > 1:  # its files are unchanged, so it is not damaged
                raise UserError(f"checkpoint {directory} cannot be loaded ({_first_line(error)})") from error
            raise _Unreadable(f"it cannot be loaded ({_first_line(error)})") from error
        log.info("resumed after step %d from %s", step, self.directory)
        return Restored(step, trees.pop("state"), host, trees)

    def _damage(self, step: int) -> str:
        """What is wrong with a checkpoint's files; "" if nothing. The hosts share the work.

        Raises:
            UserError: a bucket cannot be read. Then nothing is known of the files, and they stay as they are.
        """
        directory, begin = self.directory / str(step), time.monotonic()
        if not hosts.broadcast_from_host0(checksums.sealed(directory)):
            log.info("checkpoint %s has no checksums (an earlier version wrote it): damage can go unnoticed", directory)
            return ""
        found = _changed(directory, share=(hosts.index(), hosts.count()))
        problem = next((text for text in hosts.exchange(found) if text), "")
        if not problem:
            megabytes, seconds = checksums.size(directory) / 1e6, time.monotonic() - begin
            log.info("checked the %.0f MB of checkpoint %s in %.1f s", megabytes, directory, seconds)
        return problem

    def _set_aside(self, step: int, problem: str) -> None:
        """Rename a damaged checkpoint, which frees its number."""
        name = f"{DAMAGED}{step}"
        try:
            if hosts.index() == 0:
                taken = {p.name for p in entries(self.directory)}
                names = (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3)))
                name = next(n for n in names if n not in taken)
                (self.directory / str(step)).rename(self.directory / name)
        except OSError as error:
            raise UserError(
                f"checkpoint {self.directory / str(step)} is damaged ({problem}) and cannot be renamed "
                f"({error.strerror}); move it elsewhere"
            ) from error
        name = hosts.broadcast_from_host0(name)
        with self._lock:
            self._steps.remove(step)
        before = self.latest()
        then = "there is no earlier one" if before is None else f"the one before is after step {before}"
        log.warning("the checkpoint after step %d is damaged: %s; it is now %s; %s", step, problem,
                    self.directory / name, then)  # fmt: skip

    def close(self) -> None:
        """Wait for the write in flight and end; an error of either is logged."""
        for end in (self.wait, self._end):
            try:
                end()
            except (OSError, UserError) as error:
                log.error("%s", error)

    def _end(self) -> None:
        """End Orbax's threads; the one that writes its metadata raises the error of a failed write only now."""
        with _explained(self.directory):
            self._writer.close()


class _Unreadable(Exception):
    """A checkpoint without checksums that cannot be loaded."""


class _Write:
    """A save that is being written.

    Attributes:
        error: the reason of a failure, once its thread has ended.
    """

    def __init__(self, step: int, complete: Callable[[int, float], None]):
        self.step, self.error = step, None
        self._complete, self._begin = complete, time.monotonic()
        self.thread = threading.Thread(target=self._run, name=f"checkpoint-{step}")
        self.thread.start()

    error: BaseException | None

    def _run(self) -> None:
        try:
            self._complete(self.step, self._begin)
        except BaseException as error:  # raised by `Checkpoints.wait`
            self.error = error


@contextlib.contextmanager
def _explained(directory: epath.Path) -> Iterator[None]:
    """Converts Orbax's errors of a failed write to one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if hosts.count() > 1 and (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
            raise  # another host was lost, see `hosts.lost`
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):  # tensorstore raises a ValueError
            text = "the disk ran full while a checkpoint was written"
            raise OSError(errno.ENOSPC, text, str(directory)) from error
        raise WriteError(
            f"checkpoint {directory} could not be written ({_first_line(error)}); check the directory, then repeat the "
            f"same command: the run resumes from the last complete checkpoint"
        ) from error


def surplus_steps(steps: list[int], keep: int, keep_best: int, scores: Mapping[int, float | None]) -> set[int]:
    """The checkpoints that are neither among the newest nor among the best.

    Args:
        scores: higher is better; a step without one is not among the best.
    """
    scored = sorted((score, step) for step in steps if (score := scores.get(step)) is not None)
    best = {step for _, step in scored[max(len(scored) - keep_best, 0) :]}
    return set(sorted(steps)[:-keep]) - best


def _first_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# ------------------------------------------------------------------------------------------- parameters of a run


def saved_params(directory: str | os.PathLike[str], step: int | None, like: Any) -> tuple[int, Any]:
    """(step, parameters) of a run's checkpoint, as host arrays; the rest is not read.

    Args:
        step: finished steps; None is the newest.
        like: tree of ShapeDtypeStructs of the parameters.

    Raises:
        UserError: no checkpoint after that step, or it is damaged or has another tree.
    """
    path = epath.Path(directory)
    path = path if is_url(path) else path.resolve()
    steps = saved_steps(path)
    if not steps or (step is not None and step not in steps):
        there = f"there are those after steps {', '.join(map(str, steps))}" if steps else "there are none"
        raise UserError(f"{directory} has no checkpoint after step {'any' if step is None else step}; {there}")
    step = steps[-1] if step is None else step
    if problem := _problem(path / str(step)):
        sound = next((s for s in reversed(steps) if s < step and not _problem(path / str(s))), None)
        remedy = "there is no earlier good one" if sound is None else f"the one before is step {sound}: choose that"
        raise UserError(f"the checkpoint {path / str(step)} is damaged: {problem}; {remedy}")
    tree = {"params": like}
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=how, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            params = reader.restore(_readable(path / str(step)) / "state", args=args)["params"]
        except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
            text = " ".join(str(error).split())[:200]
            before = [s for s in steps if s < step]
            remedy = f"; if it is damaged, choose the one before, step {before[-1]}" if before else ""
            raise UserError(f"{path / str(step)} does not hold this student's parameters ({text}){remedy}") from error
    for (at, wanted), got in zip(jax.tree.leaves_with_path(like), jax.tree.leaves(params), strict=True):
        if (
            not isinstance(got, np.ndarray) or got.shape != wanted.shape
        ):  # Orbax returns missing arrays as they were requested
            name = jax.tree_util.keystr(at, simple=True, separator=".")
            seen = f"of shape {got.shape}" if isinstance(got, np.ndarray) else "missing"
            raise UserError(
                f"{path / str(step)} does not hold this student's parameters: {name} is {seen}, expected shape "
                f"{wanted.shape}; was student.checkpoint changed since the run started?"
            )
    return step, params


def _readable(directory: epath.Path) -> epath.Path:
    """The directory, or a copy on this machine: Orbax can read disks and GCS, but not S3."""
    return epath.Path(local_file(directory)) if os.fspath(directory).startswith("s3:") else directory


def _problem(directory: epath.Path) -> str:
    """What is wrong with the files of a checkpoint; "" if nothing, or if it has no checksums."""
    if not checksums.sealed(directory):
        log.info("checkpoint %s has no checksums (an earlier version wrote it): damage can go unnoticed", directory)
        return ""
    return _changed(directory)


def _changed(directory: epath.Path, share: tuple[int, int] = (0, 1)) -> str:
    """`checksums.damage`; a bucket that does not answer is a UserError."""
    with reported("read", str(directory)) if is_url(directory) else contextlib.nullcontext():
        return checksums.damage(directory, share=share)
