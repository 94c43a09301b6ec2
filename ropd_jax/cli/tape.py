"""``ropd tape``: looks at a tape, and moves its entries to another machine."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

if TYPE_CHECKING:
    from ropd_jax.teacher.tape.batch_jobs import Job

ACTIONS = {"stats": "TAPE", "export": "TAPE FILE.jsonl", "import": "TAPE FILE.jsonl"}


def run(args: Arguments) -> None:
    """Runs the action.

    Raises:
        UserError: unknown action, missing file.
    """
    action, *files = args.words
    if action not in ACTIONS:
        raise UserError(f"ropd tape has no action {action!r}; {near(action, ACTIONS)}")
    if len(files) != len(ACTIONS[action].split()):
        raise UserError(f"ropd tape {action} takes {ACTIONS[action]}, not {len(files)} arguments (ropd tape --help)")

    from ropd_jax.teacher.tape.batch_jobs import Ledger
    from ropd_jax.teacher.tape.inspect import export_tape, import_tape, tape_stats
    from ropd_jax.teacher.tape.store import Tape, tape_path

    path = tape_path(files[0])
    tape = Tape(path, read_only=action != "import")
    try:
        if action == "stats":
            _show(tape_stats(tape), Ledger(tape).jobs(), path, args["json"])
        elif action == "export":
            n = export_tape(tape, files[1])
            sys.stdout.write(f"{n} entries of {path} -> {files[1]}\n")
        else:
            added, known = import_tape(tape, files[1])
            sys.stdout.write(f"{added} entries added to {path}, {known} were there already\n")
    finally:
        tape.close()


def _show(rows: list[dict[str, Any]], jobs: list[Job], path: pathlib.Path, as_json: bool) -> None:
    batches: list[dict[str, Any]] = [
        {
            "id": job.id,
            "provider": job.provider,
            "state": job.state,
            "requests": len(job.keys),
            "usd": job.spent.cost_usd,
        }
        for job in jobs
    ]
    if as_json:
        about = {"tape": str(path), "file_bytes": path.stat().st_size, "rows": rows, "batches": batches}
        sys.stdout.write(json.dumps(about) + "\n")
        return

    from rich import box
    from rich.table import Table

    from ropd_jax.teacher.clients.chat import Usage
    from ropd_jax.teacher.tape.batch_jobs import ENDED
    from ropd_jax.teacher.traffic.budget import dollars
    from ropd_jax.teacher.traffic.prices import Prices
    from ropd_jax.utils import tables

    title = f"{path} ({path.stat().st_size / 1e6:,.1f} MB)"
    table = Table("role", "model", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("replies", "failures", "input", "output", "thinking", "mean s", "list price"):
        table.add_column(name, justify="right")
    prices = Prices.load()
    for r in rows:
        price = prices.find(r["provider"], r["model"])
        usage = Usage(r["input_tokens"], r["output_tokens"], r["thought_tokens"], r["cached_tokens"])
        causes = ", ".join(f"{n} {cause}" for cause, n in r["failures"].items())
        counts = (_number(r[f"{k}_tokens"]) for k in ("input", "output", "thought"))
        seconds = "unknown" if r["latency_s_mean"] is None else f"{r['latency_s_mean']:.2f}"
        cost = dollars(None if price is None else price.cost(usage)) if r["replies"] else "-"
        table.add_row(r["role"], r["model"], f"{r['replies']:,}", causes or "0", *counts, seconds, cost)
    tables.console(highlight=True).print(table)
    for job in batches:  # the table counts their replies too, at the list price
        cost = f"{'' if job['state'] == ENDED else 'about '}{dollars(job['usd'])}"
        name = job["id"] or "(id not known)"
        sys.stdout.write(f"batch job {name} of {job['provider']}: {job['state']}, {job['requests']} requests, {cost}\n")


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


COMMAND = Command(
    name="tape",
    summary="look at the recorded answers of the teacher, export and import them",
    intro="""
        TAPE is a tape.sqlite, or the directory of a run that has one. Every answer of the teacher is on the run's tape,
        so that nothing is paid for twice. To replay a run:

          --config.teacher.tape.mode=replay --config.teacher.tape.path=TAPE

          stats     replies, failures, tokens, seconds and list price by role and model; batch jobs
          export    one JSON object per line; lossless, without API keys
          import    adds the entries of an exported file; a reply that the tape already has stays
    """,
    run=run,
    words=("ACTION", "[TAPE]", "[FILE]"),
    missing="ropd tape needs an action; expected stats, export or import (ropd tape --help)",
    usages=("stats TAPE [--json]", "export TAPE FILE.jsonl", "import TAPE FILE.jsonl"),
    flags=(Flag("json", "", "Print JSON, for programs (stats).", False),),
    examples=("ropd tape stats runs/quickstart", "ropd tape export runs/quickstart tape.jsonl"),
)
