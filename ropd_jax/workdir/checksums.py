"""Checksums of a directory of files: damage is found before anything of it is used.

    1c291ca3 4096 state/ocdbt.process_0/d/0f3a...      CRC-32, bytes and name of each file
    9e83486d - checksums                               CRC-32 of the lines above, so that the list is guarded as well

On several hosts each sums what it has written (`write_part`), and host 0 joins the parts and sums the rest (`seal`).
CRC-32 finds any damage of one file with probability 1 - 2^-32; it is no defence against a person who forges a file.
"""

from __future__ import annotations

import concurrent.futures
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from etils import epath

NAME = "checksums"  # of the list in the directory, and the beginning of the names of its parts
THREADS = 8  # zlib and the reads release Python's lock
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
    """Sum the files of one folder of the directory, for a later `seal` to take up."""
    names = [f"{folder}/{name}" for name in _files(directory / folder)]
    (directory / f"{NAME}.{folder}").write_text(_lines(sum_files(directory, names)))


def seal(directory: epath.Path, *, later: Mapping[str, bytes] = {}) -> None:
    """Write the list of all files of the directory.

    Args:
        later: files that are written afterwards, with what they will hold.
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
        raise FileNotFoundError(f"{directory / min(missing)} was written and is gone")
    sums = known | sum_files(directory, (name for name in names if name not in known))
    sums |= {name: sum_of(data) for name, data in later.items()}
    (directory / NAME).write_text(_lines(sums))


def sealed(directory: epath.Path) -> bool:
    """Whether the directory was made with a list, even if that is gone."""
    return (directory / NAME).exists() or any(directory.glob(f"*/{NAME}.*"))


def size(directory: epath.Path) -> int:
    """Bytes of all files on the list.

    Raises:
        ValueError, OSError: the list is damaged.
    """
    return sum(found.bytes for found in _parse((directory / NAME).read_text()).values())


def damage(directory: epath.Path, *, share: tuple[int, int] = (0, 1)) -> str:
    """The first file that is not as it was written, and what is wrong with it; "" if all are.

    Args:
        share: (i, n): only look at every n-th file, from the i-th on; the list itself is always looked at.
    """
    try:
        expected = _parse((directory / NAME).read_text())
    except (ValueError, OSError) as error:
        gone = isinstance(error, FileNotFoundError)
        return f"{NAME} is missing" if gone else f"{NAME} is damaged ({_first_line(error)})"
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
        return f"cannot be read ({error.strerror or _first_line(error)})"
    if found.bytes != expected.bytes:
        return f"has {found.bytes:,} bytes, {expected.bytes:,} were written"
    return "" if found == expected else "does not hold what was written (its checksum differs)"


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
