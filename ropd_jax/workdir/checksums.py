"""Checksums of a directory of files: damage is found before any file is used.

    1c291ca3 4096 state/ocdbt.process_0/d/0f3a...      CRC-32, bytes and name of each file
    9e83486d - checksums                               CRC-32 of the lines above, which protects the list as well

With several hosts, each sums the files that it wrote (`write_part`); host 0 joins the parts and sums the rest (`seal`).
CRC-32 finds any damage of one file with probability 1 - 2^-32; it does not protect against deliberate forgery.
"""

from __future__ import annotations

import concurrent.futures
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from etils import epath

from ropd_jax.utils.paths import is_url

NAME = "checksums"  # name of the list in the directory, and prefix of the names of its parts
THREADS = 8  # zlib and reads release the GIL
BLOCK = 1 << 22  # bytes read at once


class Sum(NamedTuple):
    """Size and CRC-32 of a file."""

    bytes: int
    crc32: int


def sum_of(data: bytes) -> Sum:
    return Sum(len(data), zlib.crc32(data))


def sum_files(directory: epath.Path, names: Iterable[str]) -> dict[str, Sum]:
    """The sums of some files, by their names."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: _sum_file(directory / name), names), strict=True))


def write_part(directory: epath.Path, folder: str) -> None:
    """Sum the files of one folder of the directory, for a later `seal`."""
    names = [f"{folder}/{name}" for name in _files(directory / folder)]
    (directory / f"{NAME}.{folder}").write_text(_lines(sum_files(directory, names)))


def seal(directory: epath.Path, *, later: Mapping[str, bytes] = {}) -> None:
    """Write the list of all files of the directory.

    Args:
        later: files that are written afterwards, with their future contents.
    """
    names = list(_files(directory))
    known: dict[str, Sum] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        if last.startswith(f"{NAME}."):
            part = _parse((directory / name).read_text())
            known |= {f"{folder}/{file}" if folder else file: found for file, found in part.items()}
    missing = known.keys() - set(names)
    if missing:
        raise FileNotFoundError(f"{directory / min(missing)} was written but is missing")
    sums = known | sum_files(directory, (name for name in names if name not in known))
    sums |= {name: sum_of(data) for name, data in later.items()}
    (directory / NAME).write_text(_lines(sums))


def sealed(directory: epath.Path) -> bool:
    """Whether the directory was written with a list, even if the list is missing."""
    return (directory / NAME).exists() or any(directory.glob(f"*/{NAME}.*"))


def size(directory: epath.Path) -> int:
    """Bytes of all files on the list.

    Raises:
        ValueError, OSError: the list is damaged.
    """
    return sum(found.bytes for found in _parse((directory / NAME).read_text()).values())


def damage(directory: epath.Path, *, share: tuple[int, int] = (0, 1)) -> str:
    """The first file that differs from what was written, and how; "" if none does.

    Args:
        share: (i, n): check only every n-th file, starting with the i-th; the list itself is always checked.

    Raises:
        OSError: a bucket does not answer. That says nothing about its files. On a disk, a file that cannot be read is
            damaged.
    """
    try:
        expected = _parse((directory / NAME).read_text())
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and is_url(directory):
            raise
        return f"{NAME} is damaged ({_first_line(error)})"
    names = sorted(expected)[share[0] :: share[1]]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
        problems = threads.map(lambda name: _problem(directory / name, expected[name]), names)
        return next((f"{name} {problem}" for name, problem in zip(names, problems, strict=True) if problem), "")


def _problem(file: epath.Path, expected: Sum) -> str:
    try:
        found = _sum_file(file)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        if is_url(file):
            raise
        return f"cannot be read ({error.strerror or _first_line(error)})"
    if found.bytes != expected.bytes:
        return f"has {found.bytes:,} bytes, but {expected.bytes:,} were written"
    return "" if found == expected else "differs from what was written (checksum mismatch)"


def _sum_file(file: epath.Path) -> Sum:
    count, crc = 0, 0
    with file.open("rb") as f:
        while block := f.read(BLOCK):
            count, crc = count + len(block), zlib.crc32(block, crc)
    return Sum(count, crc)


def _files(directory: epath.Path, prefix: str = "") -> Iterator[str]:
    """Names of all files below the directory, with / between the folders, in order."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif prefix + path.name != NAME:
            yield prefix + path.name


def _lines(sums: Mapping[str, Sum]) -> str:
    text = "".join(f"{crc:08x} {count} {name}\n" for name, (count, crc) in sorted(sums.items()))
    return f"{text}{zlib.crc32(text.encode()):08x} - {NAME}\n"


def _parse(text: str) -> dict[str, Sum]:
    """The inverse of `_lines`; raises ValueError for anything else."""
    head, _, last = text.removesuffix("\n").rpartition("\n")
    head = f"{head}\n" if head else ""
    if last != f"{zlib.crc32(head.encode()):08x} - {NAME}" or not text.endswith("\n"):
        raise ValueError("its own checksum differs")
    rows = (line.split(" ", 2) for line in head.splitlines())
    return {name: Sum(int(count), int(crc, 16)) for crc, count, name in rows}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
