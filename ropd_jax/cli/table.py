"""``ropd table``: a table of the paper from finished runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from ropd_jax.cli.flags import Arguments, Command, Flag, parse


def run(args: Arguments) -> None:
    from ropd_jax.analysis import tables
    from ropd_jax.utils.files import write_atomic

    cost = _costs(args["topology"]) if args["costs"] else None
    spec = tables.load_spec(args.words[0])
    text = tables.render(tables.collect(spec, runs=args["runs"], evals=args["evals"], cost=cost), args["format"])
    if args["out"]:
        write_atomic(args["out"], text)
    else:
        sys.stdout.write(text)


# The flags of a table's rows are those of ``ropd train`` without --workdir.
TRAIN_FLAGS = Command(name="train", summary="", intro="", run=lambda args: 0, config="required")


def _costs(topology: str) -> Callable[[str, tuple[str, ...]], str]:
    """(flags of ``ropd train``, runs of other seeds) -> what such a run costs; see `plan.costs`."""
    from ropd_jax import plan
    from ropd_jax.plan.chips import parse_topology

    plan.prepare(f"cpu:{parse_topology(topology).devices}")  # before jax is imported

    from ropd_jax.plan.costs import cost_of

    return lambda train, like: cost_of(parse(TRAIN_FLAGS, shlex.split(train)).config, like, topology)


COMMAND = Command(
    name="table",
    summary="a table of the paper from finished runs, with the paper's numbers and what is missing",
    intro="""
        Collects the results of ropd eval into the table that get_table() of a file describes: one that comes with the
        package, by its name, or your own, by its path. What follows a colon is passed on as get_table(arg);
        the paper's tables take paper or released, the column of settings. The table shows our value with its 95 %
        interval, n, k and seeds, and the paper's number next to it. For a cell without a result it prints the command
        that fills it. Nothing is run.
    """,
    run=run,
    words=("NAME[:arg]",),
    missing="which table? expected its name or file first, e.g. ropd table table1_blackbox",
    flags=(
        Flag("runs", "DIR", "Directory that contains the runs.", "runs"),
        Flag("evals", "DIR", "Directory of the results of ropd eval CHECKPOINT.", "evals"),
        Flag("format", "F", "markdown, csv or latex.", "markdown"),
        Flag(
            "costs",
            "",
            "Add calls, dollars and hours to each training command: expected values if another seed has been run; "
            "otherwise an upper bound of the dollars and a lower bound of the hours.",
            False,
        ),
        Flag("topology", "CHIP:SIZE", "The slice for --costs; nothing is compiled (ropd plan does that).", "v5e:4x4"),
        Flag("out", "FILE", "Write the table to a file."),
    ),
    examples=(
        "ropd table table1_blackbox",
        "ropd table table1_blackbox:released",
        "ropd table table_quickstart --runs runs/lab --format csv --out mini.csv",
    ),
)
