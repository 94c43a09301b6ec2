"""Paths that a user names: a local path, with ``~`` for the home directory, or the URL of a bucket.

    as_path("gs://bucket/runs/a")       an `epath.Path`, which reads, lists and writes either kind
    local_file("gs://bucket/q.jsonl")   a file to read: a bucket's is copied into the cache
    local_run("gs://bucket/runs/a")     a directory to read, copied in the same way
    written("gs://bucket/out")          a local path to write; a bucket's is uploaded when the block ends
    only_local("gs://bucket/x", "--to") refuses a URL in one line

Everything that a command or a config takes as a path goes through one of these. Imports no jax.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence

from etils import epath

from ropd_jax.types import UserError
from ropd_jax.utils import buckets

AnyPath = str | os.PathLike[str]
RUN_FOLDERS = ("", "groups")  # of a run: its own files and the groups; neither checkpoints nor TensorBoard
TAPES = "tape*"  # big, and read by few


def is_url(path: AnyPath) -> bool:
    """Whether it is a URL (``gs://...``), and not a path of this machine."""
    return "://" in os.fspath(path)


def as_path(path: AnyPath, what: str = "") -> epath.Path:
    """The path, with ``~`` expanded; a bucket's is checked for a known scheme and its package.

    Args:
        what: the flag or key that named it, for the error.

    Raises:
        UserError: a scheme other than gs and s3, a package that is missing, or a URL that has lost a slash.
    """
    text = os.fspath(path)
    if is_url(text):
        buckets.check(text, what, persistent=True)
        return epath.Path(text)
    if found := re.match(r"(gs|gcs|s3):/(?=[^/])", text):
        raise UserError(f"{_named(what)}{text} has lost a slash; write {found[1]}://{text[found.end() :]}")
    return epath.Path(text).expanduser()


def only_local(path: AnyPath, what: str) -> pathlib.Path:
    """A path of this machine, with ``~`` expanded.

    Raises:
        UserError: a URL.
    """
    if is_url(path):
        raise UserError(
            f"{_named(what)}{os.fspath(path)} is a URL, and this must be a path of this machine; "
            "name a local one, and copy it with gcloud storage or aws s3"
        )
    return pathlib.Path(as_path(path, what))


def local_file(path: AnyPath, what: str = "") -> pathlib.Path:
    """The file (or directory) to read. A URL's is copied into the cache, unless the copy there is the same version.

    Raises:
        UserError: it is in a bucket and cannot be read.
    """
    if not is_url(path):
        return pathlib.Path(as_path(path, what))
    return buckets.copied(os.fspath(path), _copy_of(path), what)


def matching(pattern: str) -> list[str]:
    """The files that match a pattern (``q_*.jsonl``), in sorted order; a name without ``*``, ``?`` or ``[`` is itself.

    Raises:
        UserError: the bucket of a URL cannot be read.
    """
    if not glob.has_magic(pattern):
        return [pattern]
    if is_url(pattern):
        return buckets.matching(pattern)
    return sorted(glob.glob(os.fspath(as_path(pattern))))


def local_run(run: AnyPath, what: str = "", *, only: Sequence[str] = ("*",)) -> pathlib.Path:
    """The directory of a run to read its logs from; of a bucket's run, a copy without checkpoints and tapes.

    Args:
        only: patterns of the names that are copied.

    Raises:
        UserError: it is in a bucket and cannot be read.
    """
    if not is_url(run):
        return pathlib.Path(as_path(run, what))
    place = _copy_of(run)
    buckets.pull(os.fspath(run), place, folders=RUN_FOLDERS, only=only, leave_out=(TAPES,), what=what)
    return place


@contextlib.contextmanager
def written(path: AnyPath, what: str = "", *, earlier: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """Where to write a file or a directory. A URL's is a temporary place that is uploaded, also after an error.

    Args:
        earlier: files of the directory that are read before they are written; copied from the bucket first.

    Raises:
        UserError: the bucket cannot be written.
    """
    if not is_url(path):
        yield pathlib.Path(as_path(path, what))
        return
    url = os.fspath(path).rstrip("/")
    buckets.check(url, what)
    with tempfile.TemporaryDirectory(prefix="ropd_") as directory:
        place = pathlib.Path(directory) / url.rpartition("/")[2]
        if earlier:
            buckets.pull(url, place, only=earlier, what=what)
        try:
            yield place
        finally:
            buckets.push(place, url, what)


def cache_dir() -> pathlib.Path:
    """``$ROPD_CACHE``, or ``~/.cache/ropd_jax``."""
    return pathlib.Path(os.environ.get("ROPD_CACHE") or "~/.cache/ropd_jax").expanduser()


def folder_name(url: str) -> str:
    """A name for a folder of the cache that belongs to a URL or a directory: readable, and its own."""
    shown = re.sub(r"[^A-Za-z0-9.-]+", "_", url.rpartition("://")[2]).strip("_")[-60:]
    return f"{shown}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


def _copy_of(url: AnyPath) -> pathlib.Path:
    text = os.fspath(url).rstrip("/")
    return cache_dir() / "copies" / folder_name(text) / text.rpartition("/")[2]


def _named(what: str) -> str:
    return f"{what}: " if what else ""
