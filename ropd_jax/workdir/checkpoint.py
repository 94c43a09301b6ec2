"""Save and resume: parameters, optimizer, step and teacher state in one atomic Orbax save.

The data position and the random streams are functions of (seed, step), so the step carries both. A save is a
directory that Orbax renames into place when it is complete: a kill at any moment leaves the last complete one.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from etils import epath

from ropd_jax.types import UserError
from ropd_jax.utils import paths
from ropd_jax.utils.logs import keep_root_logger

with keep_root_logger():  # it logs through absl at its import, and absl then calls logging.basicConfig
    import orbax.checkpoint as ocp

log = logging.getLogger(__name__)


def _shapes(tree: Any) -> dict[str, list[int]]:
    """Shape of each array by its path, which is the same for a tree and for what Orbax says of it on the disk."""

    def part(key) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    return {"/".join(map(part, p)): list(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


class Checkpoints:
    """The checkpoints of one run, in ``directory/<step>``; a checkpoint of step s holds s finished steps."""

    def __init__(self, directory: str | os.PathLike[str], *, keep: int):
        # Synchronous: the next step overwrites (donates) the arrays that are being saved.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False, create=True)
        self._manager = ocp.CheckpointManager(_absolute(directory), options=options)

    def latest(self) -> int | None:
        """Number of finished steps in the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, host: dict) -> None:
        """Save after ``step`` finished steps; a no-op if that checkpoint is there already.

        Args:
            state: a pytree of arrays.
            host: what JSON can hold.

        Raises:
            OSError: no space left on the device.
        """
        if step == self.latest():
            return
        self.check_room(state)
        try:
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(host))
            )
        except ValueError as error:  # tensorstore reports a full disk so
            if "No space left" in str(error):
                raise OSError(
                    errno.ENOSPC, "the disk ran full while a checkpoint was written", str(self._manager.directory)
                ) from error
            raise

    def check_room(self, state: Any) -> None:
        """Raise OSError (no space left) when the disk has no room for one more checkpoint of ``state``.

        Orbax would find out as well, in the middle of writing and with a page of tracebacks from its threads.
        """
        if paths.is_url(self._manager.directory):  # a bucket does not get full
            return
        need = sum(x.nbytes for x in jax.tree.leaves(state)) + (1 << 20)  # and a megabyte of metadata
        free = shutil.disk_usage(self._manager.directory).free
        if free < need:
            raise OSError(
                errno.ENOSPC,
                f"a checkpoint needs {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free",
                str(self._manager.directory),
            )

    def restore(self, step: int, like: Any) -> tuple[Any, dict]:
        """(state, host) of a checkpoint, placed and typed as ``like`` (arrays or ShapeDtypeStructs).

        Raises:
            UserError: it holds other arrays: of another student, another rank of adapters, another optimizer.
        """
        self._check_shapes(step, like)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        got = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), host=ocp.args.JsonRestore())
        )
        log.info("resumed after step %d from %s", step, self._manager.directory)
        return got["state"], got["host"]

    def _check_shapes(self, step: int, like: Any) -> None:
        there = _shapes(ocp.StandardCheckpointHandler().metadata(self._manager.directory / str(step) / "state").tree)
        wanted = _shapes(like)
        for name in sorted(there.keys() | wanted.keys()):
            if there.get(name) != wanted.get(name):
                seen, expected = (f"{name} of shape {d[name]}" if name in d else f"no {name}" for d in (there, wanted))
                raise UserError(
                    f"checkpoint {self._manager.directory / str(step)} holds {seen}, expected {expected}; "
                    "give the config that it was saved with"
                )

    def close(self) -> None:
        self._manager.close()


def _absolute(directory: str | os.PathLike[str]) -> epath.Path:
    path = paths.as_path(directory)
    if os.fspath(path).startswith("s3:"):  # Orbax writes and reads local disks and GCS; see `place`
        path = epath.Path(paths.local_file(path))
    return path if paths.is_url(path) else epath.Path(pathlib.Path(path).resolve())


def saved_params(directory: pathlib.Path | epath.Path, step: int | None, like: Any) -> tuple[int, Any]:
    """(step, the parameters alone) of a run's checkpoint, as host arrays; nothing else of it is read.

    Args:
        step: finished steps; None is the newest.
        like: tree of ShapeDtypeStructs of the parameters.

    Raises:
        UserError: no checkpoint after that step, or one of another tree.
    """
    steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and (p / "state").is_dir())
    if not steps or (step is not None and step not in steps):
        there = f"there are those after steps {', '.join(map(str, steps))}" if steps else "there is none at all"
        raise UserError(f"{directory} has no checkpoint after step {'any' if step is None else step}; {there}")
    step = steps[-1] if step is None else step
    tree = {"params": like}
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(item=tree, restore_args=how, partial_restore=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            params = reader.restore(_absolute(directory / str(step)) / "state", args=args)["params"]
        except (ValueError, KeyError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(f"{directory / str(step)} does not hold this student's parameters ({text})") from error
    for (path, wanted), got in zip(jax.tree.leaves_with_path(like), jax.tree.leaves(params), strict=True):
        if (
            not isinstance(got, np.ndarray) or got.shape != wanted.shape
        ):  # what is absent comes back as it was asked for
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            seen = f"of shape {got.shape}" if isinstance(got, np.ndarray) else "missing"
            raise UserError(
                f"{directory / str(step)} does not hold this student's parameters: {name} is {seen}, expected shape "
                f"{wanted.shape}; was the run's checkpoint (student.checkpoint) changed since?"
            )
    return step, params
