"""Writes checkpoints of a run with Orbax: asynchronously, atomically, and with checksums.

    1. copy      the device arrays to host memory; only this blocks the run
    2. write     each host its own arrays, in threads, into DIR/STEP.orbax-checkpoint-tmp
    3. sum       each host the files that it has written (`checksums.write_part`)
    4. commit    host 0 joins the hosts' indices and sums (`checksums.seal`), and renames the directory to DIR/STEP

A bucket cannot rename: there the files are written to DIR/STEP, and ``commit_success.txt`` is written last.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from ropd_jax.types import UserError
from ropd_jax.utils.logs import keep_root_logger
from ropd_jax.utils.paths import is_url
from ropd_jax.workdir import checksums
from ropd_jax.workdir.kept import COMMIT

with keep_root_logger():  # Orbax logs through absl on import, and absl then calls logging.basicConfig
    import orbax.checkpoint as ocp

PART = ocp.path.atomicity.TMP_DIR_SUFFIX  # part of the name of an incomplete directory
DONE = b"complete\n"  # content of the commit file
TIMEOUT_S = 3600  # for one write on all hosts; 48 GB at 15 MB/s


class _Summing:
    """A future of Orbax: computes the checksums of this host's files once they are on disk."""

    def __init__(self, writes: Sequence[Any], directory: epath.Path):
        self._writes, self._directory = writes, directory

    def result(self, timeout: float | None = None) -> None:
        for write in self._writes:
            write.result(timeout)
        checksums.write_part(self._directory, f"ocdbt.process_{ocp.multihost.process_index()}")

    def cancel(self) -> None:
        pass


class _SummedHandler(ocp.PyTreeCheckpointHandler):
    """Orbax's handler of arrays; each host sums its own files in the background.

    Without zstd, which makes random float32 weights 8 % smaller and takes three times the CPU time of the whole write.
    """

    def __init__(self) -> None:
        super().__init__(use_compression=False)

    async def async_save(self, directory: Any, item: Any = None, save_args: Any = None, args: Any = None) -> Any:
        writes = await super().async_save(directory, item, save_args, args)
        return [*writes, _Summing(writes, directory)]


def _complete(directory: epath.Path) -> None:
    checksums.seal(directory, later={COMMIT: DONE})
    (directory / COMMIT).write_bytes(DONE)


class _Renamed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A directory that gets its name when it is complete."""

    async def finalize(self) -> None:
        self._checkpoint_metadata_store.wait_until_finished()  # Orbax's metadata, one more file in the directory
        _complete(self.get())
        self.get().rename(self.get_final())


class _Marked(ocp.path.atomicity.CommitFileTemporaryPath):
    """A directory in a bucket, completed by a marker file that is written last."""

    async def finalize(self) -> None:
        self._checkpoint_metadata_store.wait_until_finished()  # Orbax's metadata, one more file in the directory
        _complete(self.get())


class _OneLine(logging.Filter):
    """Suppresses Orbax's tracebacks for a write that failed in the background; the run raises the error."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in str(record.msg) for text in ("in background save thread", "_SignalingThread.run()"))


@functools.cache
def _end_with_the_process() -> None:
    """Makes Orbax's threads daemons: they wait up to `TIMEOUT_S` for a directory that could not be made, which must not
    delay a failed process. Others wait for their writes before they end (`Checkpoints.close`)."""
    try:
        from orbax.checkpoint._src.futures.future import _SignalingThread
    except ImportError:  # another version of Orbax
        return
    made = _SignalingThread.__init__

    def init(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.daemon = True

    _SignalingThread.__init__ = init


class _SteadyTime:
    """The module ``time`` with a monotonic ``time()``."""

    time = staticmethod(time.monotonic)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@functools.cache
def _steady_timeouts() -> None:
    """Orbax measures its waits by the system clock: setting the clock a day ahead during a write made the write "time
    out"."""
    try:
        from orbax.checkpoint._src.futures import future
    except ImportError:  # another version of Orbax
        return
    future.time = _SteadyTime()


@functools.cache
def _quiet_after_a_failure() -> None:
    """Silences follow-up errors: after one write fails, tensorstore's other writes find Orbax's event loop closed, and
    each prints that from its own thread. The failure itself is raised in the run."""
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not RuntimeError or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


class Writer:
    """Writes and reads the checkpoints of a directory; one write at a time.

    Args:
        directory: the same on all hosts.
        items: names of the trees of arrays that a checkpoint can hold; in addition, ``host`` is JSON.
    """

    def __init__(self, directory: epath.Path, items: Sequence[str] = ("state",)):
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for name in items:
            summed = _SummedHandler()
            for kind in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
                handlers.add(name, kind, summed)
        marked, atomicity = is_url(directory), ocp.path.atomicity
        options = ocp.CompositeOptions(  # for the items' directories; buckets cannot rename
            temporary_path_class=atomicity.CommitFileTemporaryPath if marked else atomicity.AtomicRenameTemporaryPath
        )
        self._directory = directory
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=options, handler_registry=handlers),
            timeout_secs=TIMEOUT_S,
            temporary_path_class=_Marked if marked else _Renamed,
        )
        logging.getLogger("absl").addFilter(_OneLine())
        _quiet_after_a_failure()
        _end_with_the_process()
        _steady_timeouts()

    def start(self, step: int, trees: Mapping[str, Any], host: Mapping[str, Any]) -> None:
        """Copy the arrays to the host and start writing; then the caller can donate the arrays."""
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        self._checkpointer.save(
            self._directory / str(step),
            args=ocp.args.Composite(host=ocp.args.JsonSave(dict(host)), **items),
            force=True,
        )

    def join(self) -> None:
        """Wait until the write is complete; raises its error."""
        self._checkpointer.wait_until_finished()

    def read(self, step: int, likes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trees of arrays placed and typed as ``likes``, host) of a checkpoint."""
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, like) for name, like in likes.items()}
        items = {
            name: ocp.args.PyTreeRestore(item=like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
            for name, like in abstract.items()
        }
        got = self._checkpointer.restore(
            self._directory / str(step), args=ocp.args.Composite(host=ocp.args.JsonRestore(), **items)
        )
        return {name: got[name] for name in likes}, got["host"]

    def close(self) -> None:
        self._checkpointer.close()


def check_shapes(directory: epath.Path, like: Any) -> None:
    """Raise UserError if the checkpoint holds other arrays than ``like``."""
    there, wanted = stored_shapes(directory), shapes_of(like)
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            seen, expected = (f"{name} of shape {d[name]}" if name in d else f"no {name}" for d in (there, wanted))
            raise UserError(
                f"checkpoint {directory} holds {seen}, expected {expected}; give the config that it was saved with"
            )


def stored_shapes(checkpoint: epath.Path) -> dict[str, list[int]]:
    """Shape of each array of a checkpoint's state by its path; no array is read."""
    return shapes_of(ocp.StandardCheckpointHandler().metadata(checkpoint / "state").tree)


def shapes_of(tree: Any) -> dict[str, list[int]]:
    """Shape of each array by its path, which is the same for a tree and for Orbax's metadata of the stored tree."""

    def part(key) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    return {"/".join(map(part, p)): list(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
