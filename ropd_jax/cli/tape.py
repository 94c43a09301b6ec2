"""``ropd tape``: look at a tape, carry it elsewhere."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ropd_jax.teacher.clients.chat import Usage
from ropd_jax.teacher.tape.batch_jobs import ENDED, Job, Ledger
from ropd_jax.teacher.tape.inspect import export_tape, import_tape, tape_stats
from ropd_jax.teacher.tape.store import Tape, tape_path
from ropd_jax.teacher.traffic.budget import dollars
from ropd_jax.teacher.traffic.prices import Prices
from ropd_jax.types import UserError
from ropd_jax.utils.suggest import near

HELP = """\
usage: ropd tape stats TAPE [--json]
       ropd tape export TAPE FILE.jsonl
       ropd tape import TAPE FILE.jsonl

TAPE is a tape.sqlite or the directory of a run that has one. Every answer of the teacher is on the run's tape, so that
nothing is paid for twice: replay a run with --config.teacher.tape.mode=replay --config.teacher.tape.path=TAPE

  stats     replies, failures, tokens, seconds and list price by role and model; batch jobs, their state and cost
  export    one JSON object a line; lossless, holds no key
  import    adds the entries of an exported file; a reply that the tape already has stays

  ropd tape stats runs/quickstart
  ropd tape export runs/quickstart tape.jsonl
"""


def run(args: list[str]) -> int:
    """Runs the verb; returns 0.

    Raises:
        UserError: unknown action, missing file.
    """
    as_json = "--json" in args
    words = [a for a in args if a != "--json"]
    if flags := [w for w in words if w.startswith("-")]:
        raise UserError(f"ropd tape has no flag {flags[0]}; expected --json (ropd tape --help)")
    actions = {"stats": 1, "export": 2, "import": 2}
    if not words:
        raise UserError("ropd tape needs an action; expected stats, export or import (ropd tape --help)")
    action, rest = words[0], words[1:]
    if action not in actions:
        raise UserError(f"ropd tape has no action {action!r}; {near(action, actions)}")
    if len(rest) != actions[action]:
        what = "TAPE" if actions[action] == 1 else "TAPE FILE.jsonl"
        raise UserError(f"ropd tape {action} takes {what}, not {len(rest)} arguments (ropd tape --help)")
    path = tape_path(rest[0])
    tape = Tape(path, read_only=action != "import")
    try:
        if action == "stats":
            _show(tape_stats(tape), Ledger(tape).jobs(), path, as_json)
        elif action == "export":
            n = export_tape(tape, rest[1])
            sys.stdout.write(f"{n} entries of {path} -> {rest[1]}\n")
        else:
            added, known = import_tape(tape, rest[1])
            sys.stdout.write(f"{added} entries added to {path}, {known} were there already\n")
    finally:
        tape.close()
    return 0


def _show(rows: list[dict[str, Any]], jobs: list[Job], path: pathlib.Path, as_json: bool) -> None:
    batches = [
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
    Console().print(table)
    for job in batches:  # the table counts their replies too, at the list price
        cost = f"{'' if job['state'] == ENDED else 'about '}{dollars(job['usd'])}"
        name = job["id"] or "(id not known)"
        sys.stdout.write(f"batch job {name} of {job['provider']}: {job['state']}, {job['requests']} requests, {cost}\n")


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
