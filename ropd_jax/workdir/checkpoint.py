"""Save and resume: parameters, optimizer, step and teacher state in one atomic save that the run hardly waits for.

The data position and the random streams are functions of (seed, step), so the step carries both. A save copies the
arrays to host memory and writes them while the next step runs (`workdir.orbax_io`). A kill at any moment leaves the
last complete checkpoint. Each carries the checksums of its files: a damaged one is set aside, never loaded and never
deleted, and the run continues from the one before. docs/checkpoints.md
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
from ropd_jax.utils.paths import is_url, local_file
from ropd_jax.utils.writing import WriteError
from ropd_jax.workdir import checksums
from ropd_jax.workdir.kept import DAMAGED, entries, saved_steps
from ropd_jax.workdir.orbax_io import PART, Writer, check_shapes, ocp

log = logging.getLogger(__name__)
EXTRAS = ("ahead",)  # further trees that a checkpoint can hold: the policy that samples the next step
METADATA = 1 << 20  # bytes of a checkpoint besides its arrays


class Restored(NamedTuple):
    """A checkpoint that was loaded; ``extras`` are the further trees that it holds."""

    step: int
    state: Any
    host: dict[str, Any]
    extras: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in ``directory/<step>``; a checkpoint of step s holds s finished steps.

    With several hosts every host must call every method, in the same order.

    Args:
        directory: created when absent.
        keep: how many of the newest stay.
        keep_best: how many stay in addition, those with the highest of ``scores``; the later of equal ones.
        scores: by step, the same on all hosts; read when a save is complete.
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
        self._lock = threading.Lock()  # of the next three, which a finished write changes
        self._one_saves = threading.RLock()  # a thread that saves after a signal, and the run
        self._blocked_s, self._write_s = 0.0, 0.0
        if hosts.index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._steps = hosts.broadcast_from_host0(saved_steps(self.directory))
        self._writer = Writer(self.directory, ("state", *EXTRAS))
        self._write: _Write | None = None

    def latest(self) -> int | None:
        """Number of finished steps in the newest checkpoint, or None; one that is being written counts."""
        with self._lock:
            return max(self._steps, default=None)

    def has(self, step: int) -> bool:
        """Whether that checkpoint is there, or is being written."""
        with self._lock:
            return step in self._steps

    @property
    def writing(self) -> bool:
        """Whether a save has not been waited for."""
        return self._write is not None

    # --- save

    def save(self, step: int, state: Any, host: dict, *, extras: Mapping[str, Any] = {}, wait: bool = False) -> None:
        """Save after ``step`` finished steps. If that checkpoint is there or being written, it is not written again.

        Args:
            state: a pytree of arrays; the caller may give them away (donate them) when this returns.
            host: what JSON can hold.
            extras: further trees, by their names in ``EXTRAS``.
            wait: return when it is complete, not when it is copied to host memory.

        Raises:
            OSError: no space left on the device.
            WriteError: it could not be written, or the save before could not.
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
        """Wait until the write in flight is complete, if there is one; raises what it failed with."""
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
        """Raise what a write in the background has failed with; does not wait."""
        if (write := self._write) is not None and not write.thread.is_alive():
            with self._one_saves:
                self._join()

    def times(self) -> dict[str, float]:
        """Metrics: seconds that saves have blocked, and seconds of the writes that are complete, since the last call;
        {} if there was none."""
        with self._lock:
            found = {"time/checkpoint_s": self._blocked_s, "time/checkpoint_write_s": self._write_s}
            self._blocked_s, self._write_s = 0.0, 0.0
        return {name: seconds for name, seconds in found.items() if seconds}

    def check_room(self, state: Any) -> None:
        """Raise OSError (no space left) when the disk has no room for one more checkpoint of ``state``.

        Orbax would find out as well, in the middle of writing. A bucket has no such limit.
        """
        if is_url(self.directory) or hosts.index() != 0:
            return
        need = sum(x.nbytes for x in jax.tree.leaves(state)) + METADATA
        free = shutil.disk_usage(self.directory).free
        if free < need:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint needs {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free",
                str(self.directory),
            )

    def _complete(self, step: int, begin: float) -> None:
        """In the write's thread: wait for Orbax, then remove what is not kept any more."""
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
        """Remove what killed writes have left; nothing can be read from it. No other process may be writing."""
        complete = set(saved_steps(self.directory))
        for path in entries(self.directory):
            unmarked = is_url(path) and path.name.isdigit() and int(path.name) not in complete
            if PART in path.name or unmarked:
                log.info("removing %s, a checkpoint that was not complete when its run ended", path)
                path.rmtree()

    # --- resume

    def restore_newest(self, like: Any, extras: Mapping[str, Any] = {}) -> Restored | None:
        """The newest checkpoint that is not damaged; None if the run has no checkpoint yet.

        Damaged ones are renamed to ``damaged-<step>`` and reported. What killed writes have left is removed.

        Args:
            like: arrays or ShapeDtypeStructs, as whose the state is placed and typed.
            extras: the same for further trees, which are loaded if the checkpoint holds them.

        Raises:
            UserError: all checkpoints are damaged; or it holds other arrays: of another student, another rank of
                adapters, another optimizer.
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
                f"{self.directory} holds only damaged checkpoints ({', '.join(damaged)}); to resume, put a sound copy "
                f"of one there under its number (e.g. {damaged[-1].split('-')[1]}); to start again from step 0, move "
                f"{DAMAGED}* elsewhere or choose another --workdir"
            )
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """(state, host) of a checkpoint, placed and typed as ``like``; see `restore_newest`.

        Raises:
            UserError: it is damaged, or holds other arrays.
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
            if trusted or hosts.count() > 1:  # its files are as they were written: it is not damaged
                raise UserError(f"checkpoint {directory} cannot be loaded ({_first_line(error)})") from error
            raise _Unreadable(f"it cannot be loaded ({_first_line(error)})") from error
        log.info("resumed after step %d from %s", step, self.directory)
        return Restored(step, trees.pop("state"), host, trees)

    def _damage(self, step: int) -> str:
        """What is wrong with a checkpoint's files; "" if nothing is. The hosts share the work."""
        directory, begin = self.directory / str(step), time.monotonic()
        if not hosts.broadcast_from_host0(checksums.sealed(directory)):
            log.info("checkpoint %s has no checksums (an earlier version wrote it): damage may go unnoticed", directory)
            return ""
        found = checksums.damage(directory, share=(hosts.index(), hosts.count()))
        problem = next((text for text in hosts.exchange(found) if text), "")
        if not problem:
            megabytes, seconds = checksums.size(directory) / 1e6, time.monotonic() - begin
            log.info("checked the %.0f MB of checkpoint %s in %.1f s", megabytes, directory, seconds)
        return problem

    def _set_aside(self, step: int, problem: str) -> None:
        """Rename a damaged checkpoint; its number is free for a new one."""
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
        then = "there is none before it" if before is None else f"the one before is after step {before}"
        log.warning("the checkpoint after step %d is damaged: %s; it is now %s; %s", step, problem,
                    self.directory / name, then)  # fmt: skip

    def close(self) -> None:
        """Wait for the write in flight and end; what it failed with is logged."""
        try:
            self.wait()
        except (OSError, UserError) as error:
            log.error("%s", error)
        self._writer.close()


class _Unreadable(Exception):
    """A checkpoint without checksums that cannot be loaded."""


class _Write:
    """A save that is being written.

    Attributes:
        error: what it failed with, once its thread has ended.
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
    """Turns what Orbax raises for a failed write into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if hosts.count() > 1 and (isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)):
            raise  # another host is gone, see `hosts.lost`
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error):  # tensorstore raises a ValueError
            text = "the disk ran full while a checkpoint was written"
            raise OSError(errno.ENOSPC, text, str(directory)) from error
        raise WriteError(
            f"checkpoint {directory} could not be written ({_first_line(error)}); check the directory, then give the "
            "same command again: the run resumes from the last complete checkpoint"
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
    """(step, the parameters alone) of a run's checkpoint, as host arrays; nothing else of it is read.

    Args:
        step: finished steps; None is the newest.
        like: tree of ShapeDtypeStructs of the parameters.

    Raises:
        UserError: no checkpoint after that step, a damaged one, or one of another tree.
    """
    path = epath.Path(directory)
    path = path if is_url(path) else path.resolve()
    steps = saved_steps(path)
    if not steps or (step is not None and step not in steps):
        there = f"there are those after steps {', '.join(map(str, steps))}" if steps else "there is none at all"
        raise UserError(f"{directory} has no checkpoint after step {'any' if step is None else step}; {there}")
    step = steps[-1] if step is None else step
    if problem := _problem(path / str(step)):
        sound = next((s for s in reversed(steps) if s < step and not _problem(path / str(s))), None)
        remedy = "there is no sound one before it" if sound is None else f"the one before is step {sound}: choose that"
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
        ):  # what is absent comes back as it was asked for
            name = jax.tree_util.keystr(at, simple=True, separator=".")
            seen = f"of shape {got.shape}" if isinstance(got, np.ndarray) else "missing"
            raise UserError(
                f"{path / str(step)} does not hold this student's parameters: {name} is {seen}, expected shape "
                f"{wanted.shape}; was the run's checkpoint (student.checkpoint) changed since?"
            )
    return step, params


def _readable(directory: epath.Path) -> epath.Path:
    """The directory, or a copy on this machine: Orbax reads disks and GCS, not S3."""
    return epath.Path(local_file(directory)) if os.fspath(directory).startswith("s3:") else directory


def _problem(directory: epath.Path) -> str:
    """What is wrong with the files of a checkpoint; "" if nothing is, or if it has no checksums."""
    if not checksums.sealed(directory):
        log.info("checkpoint %s has no checksums (an earlier version wrote it): damage may go unnoticed", directory)
        return ""
    return checksums.damage(directory)
