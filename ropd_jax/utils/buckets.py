"""Copies files from and to a bucket, many at a time. ``gs://`` needs gcsfs, ``s3://`` s3fs.

    pull(url, place)            copies files that ``place`` lacks, or has in another version
    push(place, url)            uploads a file or a directory
    append(url, tail, size)     extends a file without sending it again

`memory://` works as well, within one process, for tests. Imports no jax.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib.util
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ropd_jax.types import UserError
from ropd_jax.utils.writing import reason

PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme -> (package, our extra)
# They log a line for each file system, file or attempt.
NOISY = ("gcsfs", "fsspec", "google.auth", "botocore", "aiobotocore", "s3fs", "urllib3")
S3_PART = 5 << 20  # bytes; S3 joins parts on the server only if they are this long
VERSIONS = ".versions.json"  # in a copied directory: the version of which each file is a copy
_VERSION_KEYS = ("generation", "etag", "ETag", "mtime", "LastModified", "updated", "created")


def check(url: str, what: str = "", *, persistent: bool = False) -> None:
    """Raise UserError unless the URL's scheme is known, its package is installed, and it names a bucket.

    Args:
        what: the flag or key of the URL.
        persistent: reject ``memory://``, which ends with the process.
    """
    scheme, _, rest = url.partition("://")
    named = f"{what}: " if what else ""
    if scheme not in PACKAGES and (persistent or scheme != "memory"):
        raise UserError(f"{named}{url}: {scheme}:// is not supported; expected a local path, gs:// or s3://")
    if not rest.partition("/")[0]:
        raise UserError(f"{named}{url} names no bucket; expected {scheme}://BUCKET/PATH")
    if scheme in PACKAGES:
        package, extra = PACKAGES[scheme]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{named}{url} needs the package {package}, which is not installed: pip install 'ropd_jax[{extra}]'"
            )
    _set_up()


@functools.cache
def _set_up() -> None:
    """Settings for every file system of this process, including those of epath and Orbax."""
    import fsspec

    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in PACKAGES:  # another machine can have written meanwhile
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)


@functools.cache
def _filesystem(scheme: str) -> Any:
    import fsspec

    return fsspec.filesystem(scheme)


def prepare(url: str, what: str = "") -> Any:
    """The file system of a URL, with its libraries silenced.

    Raises:
        UserError: see `check`.
    """
    check(url, what)
    return _filesystem(url.partition("://")[0])


@contextlib.contextmanager
def reported(verb: str, url: str, what: str = "") -> Iterator[None]:
    """Converts all errors of a bucket's libraries, which share no base class, to one line."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{what}{': ' if what else ''}{url} does not exist; check the bucket and the path") from error
    except Exception as error:
        raise UserError(
            f"{what}{': ' if what else ''}cannot {verb} {url} ({reason(error)}); check the bucket's name and your "
            "credentials (docs/buckets.md)"
        ) from error


# ------------------------------------------------------------------------------------------------------- from it


def listing(url: str, what: str = "") -> dict[str, dict[str, Any]]:
    """The direct contents of a folder: name -> fsspec's info; {} if there is no such folder.

    Raises:
        UserError: the bucket does not exist or cannot be read.
    """
    fs = prepare(url, what)
    with reported("read", url, what):
        try:
            found = fs.ls(url, detail=True)
        except FileNotFoundError:
            bucket = url.partition("://")[0] + "://" + url.partition("://")[2].partition("/")[0]
            if url.partition("://")[0] in PACKAGES and not fs.exists(bucket):
                raise UserError(f"{what}{': ' if what else ''}{url}: the bucket {bucket} does not exist") from None
            return {}
    base = fs._strip_protocol(url).rstrip("/")
    rows = {str(row["name"]).rstrip("/"): row for row in found}
    return {name.rpartition("/")[2]: row for name, row in rows.items() if name != base}


def pull(
    url: str,
    place: pathlib.Path,
    *,
    folders: Sequence[str] = ("",),
    only: Sequence[str] = ("*",),
    leave_out: Sequence[str] = (),
    what: str = "",
) -> list[pathlib.Path]:
    """Copy the files of some folders of a URL that ``place`` lacks or has in another version; returns all of them.

    Args:
        folders: relative to the URL, not searched recursively.
        only, leave_out: patterns of names.

    Raises:
        UserError: nothing found, or it cannot be read.
    """
    fs = prepare(url, what)
    remote: dict[str, Mapping[str, Any]] = {}
    for folder in folders:
        for name, info in listing(f"{url.rstrip('/')}/{folder}".rstrip("/"), what).items():
            wanted, unwanted = (any(fnmatch.fnmatch(name, p) for p in some) for some in (only, leave_out))
            if info["type"] == "file" and wanted and not unwanted:
                remote[f"{folder}/{name}".lstrip("/")] = info
    if not remote and tuple(only) == ("*",):
        raise UserError(f"{what}{': ' if what else ''}nothing is at {url}; check the bucket and the path")
    known = _versions(place)
    versions = {name: version(info) for name, info in remote.items()}
    todo = [n for n in remote if known.get(n) != versions[n] or not (place / n).is_file()]
    with reported("read", url, what):
        fetch(fs, {str(remote[name]["name"]): place / name for name in todo})
    if todo:
        (place / VERSIONS).write_text(json.dumps(known | versions), encoding="utf-8")
    return [place / name for name in remote]


def fetch(fs: Any, files: Mapping[str, pathlib.Path]) -> None:
    """Download files, several at a time; each appears atomically."""
    parts = {}
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts[name] = path.with_name(f".{path.name}.part")
    if files:
        fs.get([*parts], [str(part) for part in parts.values()])
    for name, path in files.items():
        os.replace(parts[name], path)


def copied(url: str, place: pathlib.Path, what: str = "") -> pathlib.Path:
    """The local copy of a file, or of a directory with all its contents.

    Raises:
        UserError: the file or directory does not exist or cannot be read.
    """
    fs = prepare(url, what)
    with reported("read", url, what):
        if not fs.isdir(url):
            info = fs.info(url)
            folder = place.parent
            if _versions(folder).get(place.name) != version(info) or not place.is_file():
                fetch(fs, {str(info["name"]): place})
                (folder / VERSIONS).write_text(json.dumps({place.name: version(info)}), encoding="utf-8")
            return place
        base = fs._strip_protocol(url).rstrip("/")
        inside = {str(name).removeprefix(base).strip("/").rpartition("/")[0] for name in fs.find(url)}
    pull(url, place, folders=sorted(inside), what=what)
    return place


def matching(pattern: str) -> list[str]:
    """The URLs that match a pattern, in sorted order."""
    fs = prepare(pattern)
    with reported("read", pattern, ""):
        return sorted(f"{pattern.partition('://')[0]}://{name.lstrip('/')}" for name in fs.glob(pattern))


def version(info: Mapping[str, Any]) -> str:
    """A value that distinguishes two versions of one name."""
    return " ".join(str(info[key]) for key in ("size", *_VERSION_KEYS) if info.get(key) is not None)


def _versions(place: pathlib.Path) -> dict[str, str]:
    try:
        return json.loads((place / VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# --------------------------------------------------------------------------------------------------------- to it


def push(place: pathlib.Path, url: str, what: str = "", *, leave_out: str = "") -> None:
    """Upload a file, or all files of a directory; hidden and missing files are skipped.

    Args:
        leave_out: the name of a file that is not uploaded.

    Raises:
        UserError: it cannot be written.
    """
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    upload = {}
    for path in files:
        if not path.name.startswith(".") and (path == place or path.relative_to(place).as_posix() != leave_out):
            name = "" if path == place else f"/{path.relative_to(place).as_posix()}"
            upload[f"{url.rstrip('/')}{name}"] = path
    put(upload, url, what)


def put(files: Mapping[str, pathlib.Path], url: str, what: str = "") -> None:
    """Upload files to URLs, several at a time.

    Raises:
        UserError: one of them cannot be written.
    """
    fs = prepare(url, what)
    with reported("write", url, what):
        if files:
            fs.put([str(path) for path in files.values()], [*files])


def append(url: str, tail: bytes) -> None:
    """Append ``tail`` to a file in a bucket; only ``tail`` is sent.

    GCS composes the file from itself and the tail; S3 joins parts on the server (s3fs does so for files of `S3_PART`).

    Raises:
        UserError: it cannot be written; then the file is unchanged, or extended by the whole tail.
    """
    fs = prepare(url)
    with reported("write", url, ""):
        if url.startswith("gs://"):
            part = f"{url}.tail"
            fs.pipe_file(part, tail)
            fs.merge(url, [url, part])
            fs.rm_file(part)
        else:
            with fs.open(url, "ab") as file:
                file.write(tail)


def size(url: str) -> int | None:
    """Bytes of a file; None if there is no such file."""
    fs = prepare(url)
    with reported("read", url, ""):
        try:
            return fs.info(url)["size"]
        except FileNotFoundError:
            return None


def remove(urls: Sequence[str]) -> None:
    """Delete files, and folders with all their contents."""
    if urls:
        fs = prepare(urls[0])
        with reported("write", urls[0], ""):
            fs.rm([*urls], recursive=True)
