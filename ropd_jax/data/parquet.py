"""Rows of a Parquet file, if pyarrow is installed: the same rows as in a JSONL file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ropd_jax.types import UserError
from ropd_jax.utils import paths

ENDING = ".parquet"
_AT_ONCE = 1_000  # rows in memory


def numbered_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a file. A null column is absent from its row, because Parquet has no other way to
    omit a key.

    Raises:
        UserError: pyarrow is missing, or the file cannot be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path} needs pyarrow: pip install pyarrow, or write the rows as JSONL") from error
    local, number = paths.local_file(path), 0
    try:
        with pyarrow.parquet.ParquetFile(local) as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {key: value for key, value in row.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {path!r} after row {number}: {why}; expected a Parquet file") from error
