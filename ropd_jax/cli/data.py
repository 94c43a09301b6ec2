"""``ropd data``: what of the published sets is at hand, whether it is what it should be, and TFDS files of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.table import Table

from ropd_jax.data.published import PUBLISHED, TRAINING
from ropd_jax.data.reading import ENVIRONMENT, HUB, read_source
from ropd_jax.data.sets import SetOptions, load_set
from ropd_jax.data.source import Found, Source
from ropd_jax.evaluation.benchmarks import load_benchmark
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near


def main(name: str, *, data: str = "", prepare: str = "", language: str = "en") -> int:
    """Lists all sets (no name), or reads one and says what it is; returns the exit code 0.

    Args:
        data: the place, see ``data.reading.read_source``.
        prepare: a directory for TFDS files of the set, "" for none.
        language: of a training set.

    Raises:
        UserError: no such set, or no rows.
    """
    if not name:
        listing(data)
        return 0
    if name not in PUBLISHED:
        raise UserError(f"published set {name!r} is unknown; {near(name, PUBLISHED)}")
    source = PUBLISHED[name]
    if prepare:
        from ropd_jax.data.tfds import prepare as write

        data_path = write(source, prepare, lambda: read_source(source, data)[0])
        data = f"tfds:{prepare}"
        Console(highlight=False).print(f"prepared {data_path}; name it with --data {data}", soft_wrap=True)
    if name in TRAINING:
        prompts, dropped, found = load_set(name, data, SetOptions(language=language))
        show(source, found, len(prompts), dropped)
    else:
        loaded = load_benchmark(name, data)
        show(source, loaded.found, len(loaded.prompts), {})
    return 0


def listing(data: str = "", *, file: TextIO | None = None) -> None:
    """All sets, and which of them are at the place."""
    table = Table("set", "rows", "here", "licence")
    local = (data or os.environ.get(ENVIRONMENT, HUB)) != HUB  # nothing is downloaded for a list
    for name, source in PUBLISHED.items():
        if not local:
            table.add_row(name, f"{source.rows or 0:,}", "no --data", source.licence)
            continue
        try:
            rows, _ = read_source(source, data)
            here = "yes" if source.rows in (None, len(rows)) else f"{len(rows):,} rows"
        except UserError:
            here = "no"
        table.add_row(name, f"{source.rows or 0:,}", here, source.licence)
    Console(file=file, highlight=False).print(table)


def show(source: Source, found: Found, kept: int, dropped: Mapping[str, int], *, file: TextIO | None = None) -> None:
    """What was read, next to what was expected, and what is left of it."""
    console = Console(file=file, highlight=False)
    verdict = {True: "as known", False: "NOT as known", None: "cannot be checked"}
    expected = source.sha or "not known"
    rows = (
        ("read from", found.place),
        ("rows", f"{found.rows:,} (expected {source.rows:,})" if source.rows else f"{found.rows:,}"),
        ("hash of the text", f"{found.sha} (expected {expected}): {verdict[found.as_known]}"),
        ("licence", source.licence or "not stated"),
        *((f"dropped: {cause}", f"{n:,}") for cause, n in dropped.items()),
        ("prompts", f"{kept:,}"),
    )
    for name, value in rows:
        console.print(f"{name:<22} {value}", soft_wrap=True)
