"""Files: written atomically, read as JSON or as JSON lines. Imports no jax."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from ropd_jax.types import UserError
from ropd_jax.utils import paths


def read_json(file: pathlib.Path | epath.Path, *, optional: bool = False) -> dict:
    """A JSON object; ``optional``: {} if there is no such file.

    Raises:
        UserError: unreadable, not JSON, not an object.
    """
    if optional and not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise UserError(f"{file} cannot be read as JSON ({e}); fetch it again") from e
    if not isinstance(value, dict):
        raise UserError(f"{file} holds a {type(value).__name__}; expected a JSON object; fetch it again")
    return value


@contextlib.contextmanager
def one_line(where: str | os.PathLike[str]) -> Iterator[None]:
    """For code that parses a foreign file: a value of an unexpected form becomes a `UserError`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise UserError(f"{where} holds a value of an unexpected form ({reason}); fetch it again") from e


def numbered_rows(
    path: paths.AnyPath, *, file: str = "a JSONL file", row: str = "an object"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line of a JSONL file that is not blank.

    Args:
        file, row: what is expected, for messages.

    Raises:
        UserError: unreadable, not UTF-8, or a line that is not a JSON object.
    """
    for number, line in enumerate(_lines(paths.local_file(path), file), start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error}); expected one object per line") from error
            if not isinstance(value, dict):
                raise UserError(f"{path}:{number}: a JSON {type(value).__name__}; expected {row}")
            yield number, value


def _lines(path: pathlib.Path, file: str) -> Iterator[str]:
    """The lines of a text, one after the other, so that a large file is never in memory as a whole."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from lines
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}; expected {file}") from error
    except UnicodeDecodeError:
        try:
            path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:  # the first one counts from the start of a block
            raise UserError(f"{path}: byte {error.start} is not UTF-8; expected a JSONL file in UTF-8") from error
        raise


def whole_rows(path: pathlib.Path, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The ``wanted`` objects in a log to which a run appends; [] if there is no such file.

    An incomplete line after a kill is ignored.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and wanted(row):
            rows.append(row)
    return rows


def create_private(path: pathlib.Path, mode: str = "w", **how: Any) -> IO[Any]:
    """Opens a new file that only its owner can read and write (0600) from the start; replaces an older one."""
    path.unlink(missing_ok=True)  # it could have another mode
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600), **how)


def write_atomic(path: str | os.PathLike[str], text: str | bytes, *, private: bool = False) -> None:
    """Writes (or uploads) a file atomically, even if the machine stops in between.

    Lone surrogates (a student can emit half a character) are written as ``\\udcxx``, which JSON reads back. With
    ``private`` only the owner can read the file.
    """
    with paths.written(path) as place:
        _write_atomic(place, text, private)


def _write_atomic(path: pathlib.Path, text: str | bytes, private: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with create_private(part, "wb") if private else open(part, "wb") as f:
            f.write(text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace"))
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):  # on a full disk, a partial file would take up space
            part.unlink(missing_ok=True)
        raise


def finite(value: Any) -> int | float | None:
    """A number that JSON can hold, or None for None, NaN and infinities. Takes numpy and jax scalars."""
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
