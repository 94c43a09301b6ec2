"""The header of a safetensors file, checked before any of its numbers are used. Imports no jax.

The layout: eight bytes with the header's length, the header (a JSON object), the data::

    {"__metadata__": {...}, "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}

The offsets count from the end of the header. The format requires that the tensors fill the data without gaps or
overlaps. A header that violates this is a mistake or an attack: one that points beyond the end of the file, or claims
2^60 rows, must not cause an allocation.
"""

from __future__ import annotations

import json
import math
import pathlib
import stat
from typing import Any

from ropd_jax.types import UserError

HEADER_BYTES = 100_000_000  # the format's own bound
AXES = 8
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def read_header(file: pathlib.Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(name to dtype, shape and data_offsets; the byte at which the data starts).

    Raises:
        UserError: not a safetensors file, truncated, or its tensors do not fill its data.
    """
    size: int | None = None
    try:
        found = file.stat()  # opening a pipe would block forever
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is not a regular file")
        size = found.st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if size < 8 or length > min(HEADER_BYTES, size - 8):
                raise ValueError(f"its header needs {length:,} bytes")
            header = json.loads(f.read(length), object_pairs_hook=_without_copies)
        if not isinstance(header, dict):
            raise ValueError(f"its header is a JSON {type(header).__name__}")
        header.pop("__metadata__", None)
        _check(header, size - 8 - length)
    except (ValueError, OSError, RecursionError) as e:
        seen = "missing" if not file.exists() else f"{size:,} bytes" if size is not None else "unread"
        raise UserError(
            f"{file} ({seen}) is not a complete safetensors file ({e}); it is truncated or wrong, fetch it again"
        ) from e
    return header, 8 + length


def _without_copies(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"its header has {name[:60]!r} twice")
        found[name] = value
    return found


def _check(header: dict[str, Any], data_bytes: int) -> None:
    """Raises ValueError unless the tensors fill the data, each with the length of its dtype and shape."""
    spans = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
                numbers = [*shape, begin, end]
            case _:
                raise ValueError(f"tensor {name[:60]!r} has no dtype, shape and data_offsets")
        if len(shape) > AXES or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"tensor {name[:60]!r} has a shape or data_offsets that are not counts")
        if dtype not in BITS:
            raise ValueError(f"tensor {name[:60]!r} has the unknown dtype {dtype[:60]!r}")
        if (end - begin) * 8 != (bits := math.prod(shape) * BITS[dtype]):
            raise ValueError(f"tensor {name[:60]!r} of {bits / 8:.4g} bytes is at bytes {begin:,} to {end:,}")
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise ValueError(f"tensor {name[:60]!r} begins at byte {begin:,} of the data, expected {at:,}")
        at = end
    if at != data_bytes:
        raise ValueError(f"its tensors end at byte {at:,} of {data_bytes:,} bytes of data")
