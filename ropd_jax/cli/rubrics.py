"""``ropd rubrics``: the rubrics of a run as a data set."""

from __future__ import annotations

import sys

from ropd_jax.cli.flags import STEPS, Arguments, Command, Flag, steps_of
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near


def run(args: Arguments) -> None:
    """Exports the rubrics.

    Raises:
        UserError: unknown action, no run, no rubrics.
    """
    action, *files = args.words
    if action != "export":
        raise UserError(f"ropd rubrics has no action {action!r}; {near(action, ['export'])}")
    if len(files) not in (1, 2):
        raise UserError(f"ropd rubrics export takes RUN [FILE], not {len(files)} arguments (ropd rubrics --help)")

    from ropd_jax.workdir.rubrics import export_rubrics

    out = files[1] if len(files) == 2 else ""
    n, written = export_rubrics(files[0], out, steps=steps_of(args["steps"]), latest=args["latest"])
    sys.stdout.write(f"{n} rubrics of {files[0]} -> {', '.join(written)}\n")


COMMAND = Command(
    name="rubrics",
    summary="write the rubrics of a run as a data set, with where each comes from",
    intro="""
        Writes each rubric that RUN/groups/*.jsonl holds as one row: question, gold answer, criteria with points, steps
        that used it, mean reward under it, and lineage (model, template, hashes of the texts that it was induced from).
        Without FILE: RUN/rubrics.jsonl, and RUN/rubrics.parquet where pyarrow is installed.

        A run trains on such rows with data.source="jsonl" and rar.rubrics="published" or ropd.rubrics="published"
        (docs/data.md).
    """,
    run=run,
    words=("export", "RUN", "[FILE]"),
    missing="what to do? expected ropd rubrics export RUN",
    flags=(STEPS, Flag("latest", "", "Only the last rubric of each prompt.", False)),
    examples=("ropd rubrics export runs/a", "ropd rubrics export runs/a rubrics.parquet --latest"),
)
