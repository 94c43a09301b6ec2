"""Storage for the records of a lock: a folder on a disk, or under a URL (``gs://``, ``s3://``, ``memory://``).

The storage needs only three operations: create a record unless it exists, overwrite one's own, list the folder. Two
processes that create the same record must not both succeed:

- On a disk, a finished file is hard-linked to its name, which fails if the name is taken (also on NFS). Without hard
  links, the file is opened with O_EXCL.
- On a bucket, fsspec's exclusive create is a conditional request: ``ifGenerationMatch=0`` on GCS, ``If-None-Match: *``
  on S3. A second attempt shows whether the server honours it. If not (older S3-compatible servers, emulators), the
  record is read again after a pause: of two writers the last one wins.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import time
from typing import Any, Protocol

from ropd_jax.utils import buckets

SETTLE_S = 2.0  # if the server does not honour exclusive creation: pause after a write before it is read again


class Records(Protocol):
    """Numbered records."""

    def numbers(self) -> list[int]: ...
    def read(self, number: int) -> bytes | None:
        """None if there is no such record."""

    def create(self, number: int, record: bytes) -> bool:
        """False if it already exists; then it is not changed."""

    def overwrite(self, number: int, record: bytes) -> None:
        """Replaces a record that this process created by one of the same length."""

    def delete(self, number: int) -> None: ...
    def close(self) -> None:
        """Removes empty folders."""


def records_of(folder: str | os.PathLike[str]) -> Records:
    """The records in a folder, which does not need to exist; a URL is opened with fsspec."""
    return _InBucket(os.fspath(folder)) if "://" in os.fspath(folder) else _OnDisk(pathlib.Path(folder))


def _number(name: str) -> int | None:
    stem = name.rpartition("/")[2].removesuffix(".json")
    return int(stem) if stem.isdecimal() and name.endswith(".json") else None


class _OnDisk:
    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._made = [p for p in (folder.parent, *folder.parent.parents) if not p.exists()]  # the innermost first

    def numbers(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(n for name in os.listdir(self._folder) if (n := _number(name)) is not None)
        return []

    def read(self, number: int) -> bytes | None:
        try:
            return self._path(number).read_bytes()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):  # ESTALE: on NFS, another host has removed the file
                return None
            raise

    def create(self, number: int, record: bytes) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{os.getpid()}-{time.monotonic_ns()}.part"
        try:
            part.write_bytes(record)
            try:
                os.link(part, self._path(number))
            except FileExistsError:
                return False
            except OSError:  # no hard links on this disk
                try:
                    with open(self._path(number), "xb") as f:
                        f.write(record)
                except FileExistsError:
                    return False
            return True
        finally:
            part.unlink(missing_ok=True)

    def overwrite(self, number: int, record: bytes) -> None:
        with open(self._path(number), "r+b", buffering=0) as f:  # in place: works on a full disk as well
            f.write(record)

    def delete(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        for path in (self._folder, *self._made):
            try:
                path.rmdir()
            except OSError:  # it is not empty
                return

    def _path(self, number: int) -> pathlib.Path:
        return self._folder / f"{number}.json"


class _InBucket:
    def __init__(self, url: str):
        import fsspec

        buckets.prepare(url)
        self._fs: Any
        self._fs, self._folder = fsspec.core.url_to_fs(url)

    def numbers(self) -> list[int]:
        self._fs.invalidate_cache()  # listings are cached, and another process writes here
        with contextlib.suppress(FileNotFoundError):
            return sorted(n for name in self._fs.ls(self._folder, detail=False) if (n := _number(name)) is not None)
        return []

    def read(self, number: int) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return self._fs.cat_file(self._path(number))
        return None

    def create(self, number: int, record: bytes) -> bool:
        path = self._path(number)
        # No makedirs: a bucket has no folders, and s3fs would create a bucket even for a mistyped name.
        if self.read(number) is not None:
            return False
        try:
            self._fs.pipe_file(path, record, mode="create")
        except FileExistsError:
            return False
        try:
            self._fs.pipe_file(path, record, mode="create")
        except FileExistsError:
            return True
        time.sleep(SETTLE_S)
        return self.read(number) == record

    def overwrite(self, number: int, record: bytes) -> None:
        self._fs.pipe_file(self._path(number), record)

    def delete(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(number))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if not self.numbers():
                self._fs.rmdir(self._folder)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number}.json"
