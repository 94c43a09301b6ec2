"""``ropd data``: the published sets, whether they are complete and unmodified, and TFDS files of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

if TYPE_CHECKING:
    from ropd_jax.data.source import Found, Source


def run(args: Arguments) -> int:
    """Lists all sets (without SET), or reads one and reports what it is; 2 if it is incomplete or modified."""
    if not args.words:
        listing(args["data"])
        return 0

    from ropd_jax.data.published import PUBLISHED, TRAINING
    from ropd_jax.data.reading import read_source
    from ropd_jax.data.sets import SetOptions, load_set
    from ropd_jax.evaluation.benchmarks import load_benchmark
    from ropd_jax.utils import tables

    name, place = args.words[0], args["data"]
    if name not in PUBLISHED:
        raise UserError(f"published set {name!r} is unknown; {near(name, PUBLISHED)}")
    source = PUBLISHED[name]
    if args["prepare"]:
        from ropd_jax.data.tfds import prepare

        written = prepare(source, args["prepare"], lambda: read_source(source, args["data"])[0])
        place = f"tfds:{args['prepare']}"
        tables.console().print(f"prepared {written}; use it with --data {place}", soft_wrap=True)
    dropped: Mapping[str, int] = {}
    if name in TRAINING:
        prompts, dropped, found = load_set(name, place, SetOptions(language=args["language"]))
        kept = len(prompts)
    else:
        loaded = load_benchmark(name, place)
        found, kept = loaded.found, len(loaded.prompts)
    show(source, found, kept, dropped)
    return 2 if found.as_known is False else 0


def listing(data: str = "", *, file: TextIO | None = None) -> None:
    """All sets, and which of them are in the given place."""
    from rich.table import Table

    from ropd_jax.data.published import PUBLISHED
    from ropd_jax.data.reading import ENVIRONMENT, HUB, read_source
    from ropd_jax.utils import tables

    table = Table("set", "rows", "here", "licence")
    local = (data or os.environ.get(ENVIRONMENT, HUB)) != HUB  # a list downloads nothing
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
    tables.console(file).print(table)


def show(source: Source, found: Found, kept: int, dropped: Mapping[str, int], *, file: TextIO | None = None) -> None:
    """What was read, next to what was expected, and how many prompts remain."""
    from ropd_jax.utils import tables

    console = tables.console(file)
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


COMMAND = Command(
    name="data",
    summary="list and check the published data sets, and convert them to TFDS",
    intro="""
        Without SET: lists the published sets with their rows and licences, and which of them are available. With SET:
        reads it, checks rows and text against the known ones, and counts what a training set drops (copies, other
        languages, questions with two answers, questions of the benchmarks). The exit code is 2 if the set is incomplete
        or modified.

        A run trains on a set with data.source="published", data.task=SET and data.path=PLACE. It draws data.size and
        data.heldout_size prompts by their seeds (0: all), never the same prompt twice.
    """,
    run=run,
    words=("[SET]",),
    flags=(
        Flag(
            "data",
            "PLACE",
            "A directory with SET.jsonl; tfds:DIR, written by --prepare; or hub (pip install datasets). Default: "
            "$ROPD_DATA, else the Hub.",
        ),
        Flag(
            "prepare",
            "DIR",
            "Write the set as TFDS (array_record, without TensorFlow), to be read with --data tfds:DIR.",
        ),
        Flag("language", "en|zh|all", "Language of a training set.", "en"),
    ),
    examples=(
        "ropd data dapo_math_17k --data ~/benchmarks --prepare ~/tfds",
        "ropd train --config my.py --config.data.source=published --config.data.task=dapo_math_17k \\",
        "    --config.data.path=tfds:~/tfds --config.data.size=0 --config.data.heldout_size=200 \\",
        "    --workdir runs/dapo",
    ),
)
