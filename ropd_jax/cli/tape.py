"""``ropd tape``: shows what is on a tape, and moves its entries to another machine."""

from __future__ import annotations

import json
import pathlib
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near
from ropd_jax.utils.text import plain

if TYPE_CHECKING:
    from ropd_jax.teacher.tape.batch_jobs import Job

_SHOWN = 1_000  # characters of one text
ACTIONS = {"stats": "TAPE", "show": "TAPE", "export": "TAPE FILE.jsonl", "import": "TAPE FILE.jsonl"}


def run(args: Arguments) -> None:
    """Runs the action.

    Raises:
        UserError: unknown action or role, missing file.
    """
    action, *files = args.words
    if action not in ACTIONS:
        raise UserError(f"ropd tape has no action {action!r}; {near(action, ACTIONS)}")
    if len(files) != len(ACTIONS[action].split()):
        raise UserError(f"ropd tape {action} takes {ACTIONS[action]}, not {len(files)} arguments (ropd tape --help)")

    from ropd_jax.teacher.clients.chat import PURPOSES
    from ropd_jax.teacher.tape.batch_jobs import Ledger
    from ropd_jax.teacher.tape.inspect import export_tape, import_tape, tape_replies, tape_stats
    from ropd_jax.teacher.tape.store import Tape
    from ropd_jax.utils import paths
    from ropd_jax.workdir.place import stored_tape

    if args["role"] and args["role"] not in PURPOSES:
        raise UserError(f"--role is {args['role']!r}; {near(args['role'], PURPOSES)}")
    if action == "import":
        paths.only_local(files[0], "ropd tape import")
    path = stored_tape(files[0])
    tape = Tape(path, read_only=action != "import")
    try:
        if action == "stats":
            _show(tape_stats(tape), Ledger(tape).jobs(), path, args["json"])
        elif action == "show":
            found = tape_replies(tape, role=args["role"], failed=args["failed"], most=args["n"])
            _show_replies(found, path, args["json"])
        elif action == "export":
            with paths.written(files[1]) as target:
                n = export_tape(tape, target)
            sys.stdout.write(f"{n} entries of {path} -> {files[1]}\n")
        else:
            added, known = import_tape(tape, paths.local_file(files[1]))
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


def _show_replies(rows: list[dict[str, Any]], path: pathlib.Path, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"tape": str(path), "replies": rows}) + "\n")
        return
    if not rows:
        sys.stdout.write(f"{path} has no such replies\n")
    for row in rows:
        step = "" if row["step"] is None or row["step"] < 0 else f", step {row['step']}"
        cause = f": {row['cause']}" if row["cause"] else ""
        sys.stdout.write(f"{row['role']}{cause} ({row['provider']}: {plain(row['model'])}{step}, {row['key'][:12]})\n")
        for name, label in (("problem", "problem"), ("reply", "reply"), ("next", "after the re-ask")):
            if row[name] is not None:
                sys.stdout.write(textwrap.indent(f"{label}: {_cut(row[name])}", "    ") + "\n")


def _cut(text: str) -> str:
    """Foreign text as a terminal shows it, at most 1,000 characters."""
    more = f" ... ({len(text):,} characters)" if len(text) > _SHOWN else ""
    return plain(text[:_SHOWN].strip()) + more


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
          show      the newest replies; with --failed, failed requests and replies that could not be used
          export    one JSON object per line; lossless, without API keys
          import    adds the entries of an exported file; a reply that the tape already has stays
    """,
    run=run,
    words=("ACTION", "[TAPE]", "[FILE]"),
    missing="ropd tape needs an action; expected stats, show, export or import (ropd tape --help)",
    usages=(
        "stats TAPE [--json]",
        "show TAPE [--role ROLE] [--failed] [--n N] [--json]",
        "export TAPE FILE.jsonl",
        "import TAPE FILE.jsonl",
    ),
    flags=(
        Flag("json", "", "Print JSON, for programs (stats, show).", False),
        Flag("role", "ROLE", "Only this role: reference, rubric, verify, score or judge (show)."),
        Flag("failed", "", "Only what failed or could not be used, with the reason (show).", False),
        Flag("n", "N", "Most replies to show (show).", 10, low=1),
    ),
    examples=(
        "ropd tape stats runs/quickstart",
        "ropd tape show runs/quickstart --role rubric --failed",
        "ropd tape export runs/quickstart tape.jsonl",
    ),
)
