"""Open a GGUF file, with every way in which that can fail told in one line. Imports no jax.

The weights (`ropd_jax.models.gguf`) and the tokenizer (`ropd_jax.text.tokenizer`) both read from here.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from ropd_jax.types import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader


def open_gguf(path: str | pathlib.Path) -> GGUFReader:
    """A reader over the memory-mapped file; its header is checked, tensor data is read when asked for.

    Raises:
        UserError: the file is missing, is no GGUF file, or ends too early.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; expected a .gguf file")
    with path.open("rb") as f:
        magic = f.read(4)
    if magic != b"GGUF":
        raise UserError(f"{path} is not a GGUF file: it starts with {magic!r}, expected b'GGUF'; name a .gguf file")
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as e:  # the reader runs off the end of the file in many ways: IndexError, ValueError, struct ...
        reason = " ".join(str(e).split())[:120]
        raise UserError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as GGUF ({type(e).__name__}: {reason}); "
            "it is truncated or damaged, fetch it again"
        ) from e


def metadata(reader: GGUFReader, path: str | pathlib.Path, key: str, default=None, *, required: bool = True):
    """The value of one metadata key, as Python objects.

    Raises:
        UserError: the key is absent and ``required``, or cannot be decoded.
    """
    field = reader.get_field(key)
    if field is None:
        if required:
            raise UserError(f"{path} has no metadata key {key!r}; expected a llama-family GGUF file with its tokenizer")
        return default
    try:
        return field.contents()
    except Exception as e:
        raise UserError(f"{path}: metadata key {key!r} cannot be decoded ({e}); fetch the file again") from e
