"""Paths that a user names: a local path, with ``~`` for the home directory, or the URL of a bucket.

    as_path("gs://bucket/runs/a")       an `epath.Path`, which reads, lists and writes either kind
    local_file("gs://bucket/q.jsonl")   a file to read: copied from a bucket into the cache
    local_run("gs://bucket/runs/a")     a directory to read, copied in the same way
    written("gs://bucket/out")          a local path to write; uploaded to a bucket when the block ends
    only_local("gs://bucket/x", "--to") rejects a URL with a one-line error

All paths in commands and configs use one of these. Imports no jax.
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
RUN_FOLDERS = ("", "groups")  # of a run: its own files and the groups, without checkpoints and TensorBoard
TAPES = "tape*"  # large, and rarely read


def is_url(path: AnyPath) -> bool:
    """Whether it is a URL (``gs://...``) and not a local path."""
    return "://" in os.fspath(path)


def as_path(path: AnyPath, what: str = "") -> epath.Path:
    """The path, with ``~`` expanded; a URL is checked for a known scheme and its package.

    Args:
        what: the flag or key of the path, for the error.

    Raises:
        UserError: a scheme other than gs and s3, a missing package, or a URL that lacks a slash.
    """
    text = os.fspath(path)
    if is_url(text):
        buckets.check(text, what, persistent=True)
        return epath.Path(text)
    if found := re.match(r"(gs|gcs|s3):/(?=[^/])", text):
        raise UserError(f"{_named(what)}{text} lacks a slash; write {found[1]}://{text[found.end() :]}")
    return epath.Path(text).expanduser()


def only_local(path: AnyPath, what: str) -> pathlib.Path:
    """A local path, with ``~`` expanded.

    Raises:
        UserError: a URL.
    """
    if is_url(path):
        raise UserError(
            f"{_named(what)}{os.fspath(path)} is a URL, but this must be a local path; "
            "give a local one, and copy it with gcloud storage or aws s3"
        )
    return pathlib.Path(as_path(path, what))


def local_file(path: AnyPath, what: str = "") -> pathlib.Path:
    """The file (or directory) to read. A URL is copied into the cache, unless the cached copy is the same version.

    Raises:
        UserError: it is in a bucket and cannot be read.
    """
    if not is_url(path):
        return pathlib.Path(as_path(path, what))
    return buckets.copied(os.fspath(path), _copy_of(path), what)


def matching(pattern: str) -> list[str]:
    """The files that match a pattern (``q_*.jsonl``), in sorted order; a name without ``*``, ``?`` or ``[`` is kept.

    Raises:
        UserError: the bucket cannot be read.
    """
    if not glob.has_magic(pattern):
        return [pattern]
    if is_url(pattern):
        return buckets.matching(pattern)
    return sorted(glob.glob(os.fspath(as_path(pattern))))


def local_run(run: AnyPath, what: str = "", *, only: Sequence[str] = ("*",)) -> pathlib.Path:
    """The directory of a run to read its logs from; for a run in a bucket, a copy without checkpoints and tapes.

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
    """A path for writing a file or a directory. For a URL, a temporary path that is uploaded, even after an error.

    Args:
        earlier: files that are read before they are written; first copied from the bucket.

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
    """A readable, unique name for the cache folder of a URL or a directory."""
    shown = re.sub(r"[^A-Za-z0-9.-]+", "_", url.rpartition("://")[2]).strip("_")[-60:]
    return f"{shown}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


def _copy_of(url: AnyPath) -> pathlib.Path:
    text = os.fspath(url).rstrip("/")
    return cache_dir() / "copies" / folder_name(text) / text.rpartition("/")[2]


def _named(what: str) -> str:
    return f"{what}: " if what else ""
