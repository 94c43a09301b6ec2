"""A tape in pieces, for storage that holds only whole files (a bucket): a snapshot and later additions.

    snapshot(tape, file)                    everything at one moment, even while another thread records
    mark = newest(tape); part(tape, mark, file)     only the rows added since
    merge(tape, file)                       merges a part back; ``keep=True`` adds only missing rows

The rows are copied unchanged. All files are tapes, so each can be opened separately.
"""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from ropd_jax.teacher.tape.store import Tape, explained


class Mark(NamedTuple):
    """The end of a tape: the last rows of two tables, and the time of the last failure.

    SQLite can reuse the row number of a deleted failure, so failures are also found by their time.
    """

    replies: int = 0
    failures: int = 0
    failed_at: float = 0.0


def snapshot(tape: pathlib.Path, file: pathlib.Path) -> Mark:
    """Copies the whole tape. Returns the copy's end."""
    _empty(file)
    with _connected(tape) as source, contextlib.closing(sqlite3.connect(file)) as target:
        source.backup(target)
    return newest(file)


def newest(tape: pathlib.Path) -> Mark:
    """The end of a tape; zeros if there is no such file."""
    if not tape.exists():
        return Mark()
    with _connected(tape) as db:
        return Mark(
            *db.execute(
                "SELECT (SELECT coalesce(max(rowid), 0) FROM replies), (SELECT coalesce(max(rowid), 0) FROM failures), "
                "(SELECT coalesce(max(created), 0) FROM failures)"
            ).fetchone()
        )


def part(tape: pathlib.Path, mark: Mark, file: pathlib.Path) -> Mark:
    """Copies the requests that got a reply or a failure since the mark, with all their data.

    Returns:
        The new mark; equal to ``mark`` if nothing was added.
    """
    end = newest(tape)
    _new_tape(file)
    with _connected(file) as db:
        db.execute("ATTACH ? AS whole", (str(tape),))
        with db:
            db.execute(
                "INSERT INTO requests SELECT * FROM whole.requests WHERE key IN (SELECT key FROM whole.replies WHERE "
                "rowid > ? UNION SELECT key FROM whole.failures WHERE rowid > ? OR created > ?)",
                mark,
            )
            for table in ("replies", "failures"):
                columns = _columns(db, table)
                db.execute(
                    f"INSERT INTO {table}({columns}) SELECT {columns} FROM whole.{table} "
                    "WHERE key IN (SELECT key FROM requests)"
                )
            db.execute("INSERT INTO batches SELECT * FROM whole.batches")
    return end


def merge(tape: pathlib.Path, file: pathlib.Path, *, keep: bool = False) -> None:
    """Merges the rows of a part into a tape, which is created if it does not exist.

    Args:
        keep: keep the tape's rows; otherwise the part is newer and replaces them.
    """
    _new_tape(tape, fresh=False)
    _new_tape(file, fresh=False)  # adds missing tables to one of an earlier version
    how = "IGNORE" if keep else "REPLACE"
    with _connected(tape) as db:
        db.execute("ATTACH ? AS part", (str(file),))
        with db:
            if not keep:
                db.execute("DELETE FROM failures WHERE key IN (SELECT key FROM part.requests)")
            db.execute("INSERT OR IGNORE INTO requests SELECT * FROM part.requests")
            for table in ("replies", "failures", "batches"):
                columns = _columns(db, table)
                db.execute(f"INSERT OR {how} INTO {table}({columns}) SELECT {columns} FROM part.{table}")


def _columns(db: sqlite3.Connection, table: str) -> str:
    return ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))


def _new_tape(file: pathlib.Path, *, fresh: bool = True) -> None:
    if fresh:
        _empty(file)
    tape = Tape(file)
    tape.end()  # opens the tape, which creates the tables
    tape.close()


def _empty(file: pathlib.Path) -> None:
    for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
        file.with_name(name).unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)


@contextlib.contextmanager
def _connected(file: pathlib.Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=30.0)) as db:
            yield db
    except sqlite3.Error as error:
        raise explained(error, file) from error
