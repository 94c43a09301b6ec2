"""Measures a config on a slice, looks for a remedy or the fastest setting, and prints it as text or JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ropd_jax.methods import load_method
from ropd_jax.plan import fit, gpu, programs
from ropd_jax.plan import saving as save
from ropd_jax.plan.chips import Topology, parse_topology
from ropd_jax.plan.measure import Measured, make_mesh, measure
from ropd_jax.plan.preflight import RolePlan
from ropd_jax.plan.preflight import plan as teacher_plan
from ropd_jax.plan.shapes import model_config
from ropd_jax.teacher import Tape
from ropd_jax.training.setup import check_config
from ropd_jax.types import Message, Prompt, UserError
from ropd_jax.utils import tables

UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


def run(
    cfg: ConfigDict,
    topology: str,
    *,
    as_json: bool = False,
    search: bool = False,
    mean_tokens: float | None = None,
    ladder: bool = False,
) -> dict[str, Any]:
    """Plans, prints and returns the plan (`summary`); its ``fits`` is None if nothing is published about the chip.

    Raises:
        UserError: a config that cannot work, an unknown slice, or ``mean_tokens`` above the maximum of an answer.
    """
    check_config(cfg)
    slice_ = parse_topology(topology)
    model_cfg = model_config(cfg.student.checkpoint)
    if mean_tokens is not None and not 0 <= mean_tokens <= cfg.sampling.max_tokens:
        raise UserError(
            f"--mean_tokens={mean_tokens:g}; expected at most sampling.max_tokens={cfg.sampling.max_tokens}"
        )
    options: dict[str, Any] = {"mean_tokens": mean_tokens or None, "ladder": ladder}
    with progress() as say:
        make_mesh(cfg, model_cfg, slice_)  # rejects the slice before a minute of compiling
        advice = fit.search(cfg, model_cfg, slice_, say, **options) if search else None
        chosen = fit.changed(cfg, advice.keys) if advice and advice.keys else cfg
        measured = measure(chosen, model_cfg, slice_, say, **options)
        if measured.fits is False and not search:
            advice = fit.remedy(cfg, model_cfg, slice_, measured, say, **options)
    roles, note = teacher(chosen)
    saved = save.saving(chosen, model_cfg, make_mesh(chosen, model_cfg, slice_), slice_, busy_s(chosen, measured))
    report = summary(chosen, slice_, measured, advice, roles, note, mean_tokens or None)
    report["checkpoint"] = dataclasses.asdict(saved)
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        _show(chosen, slice_, measured, report)
        tables.console(width=None if sys.stdout.isatty() else 120).print(
            save.line(saved), highlight=False, soft_wrap=True
        )
    return report


def busy_s(cfg: ConfigDict, measured: Measured) -> float | None:
    """Minimum seconds of one call of the update: the longest time in which a run does not check for signals."""
    seconds = next((b.seconds for b in measured.bounds if b.name == "update"), None)
    return None if seconds is None else seconds / programs.update_calls(cfg, load_method(cfg.method, cfg))


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Shows the current task and its duration: a spinner on a terminal, plain lines elsewhere."""
    console = tables.console(stderr=True)
    if not console.is_terminal:
        yield lambda text: console.print(text, soft_wrap=True)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("plan", total=None)
        yield lambda text: shown.reset(task, description=text)


def teacher(cfg: ConfigDict, tape: Tape | None = None) -> tuple[list[RolePlan], str]:
    """(calls and cost of each role of the teacher, a note about the data); see `plan.preflight`."""
    from ropd_jax.data.mixture import sources_of
    from ropd_jax.data.questions import training_prompts

    prompts: Sequence[Prompt]
    try:
        prompts = training_prompts(cfg.data).prompts
        note = ""
    except UserError:  # a plan works without the data: prompts of maximum length, all different
        text = "x" * (4 * cfg.data.max_prompt_tokens)
        count = cfg.steps * cfg.data.prompts_per_step
        prompts = [Prompt("longest", (Message("user", text),))] * count
        where = ", ".join(s.data["path"] or s.data["source"] for s in sources_of(cfg.data))
        note = f"the data ({where}) are not available: every prompt counts with maximum length, and once"
    method = load_method(cfg.method, cfg)
    rows = teacher_plan(cfg, prompts, asks=method.asks, once=method.asks_once, tape=tape)
    return rows, note


# ------------------------------------------------------------------------------------------------------- summary


def summary(
    cfg: ConfigDict,
    topology: Topology,
    measured: Measured,
    advice: fit.Remedy | None,
    roles: Sequence[RolePlan],
    note: str,
    mean_tokens: float | None,
) -> dict[str, Any]:
    """The whole plan as plain data: bytes, seconds and dollars; None for unknown values."""
    seconds, likely = measured.seconds, measured.seconds_expected
    answers = cfg.data.prompts_per_step * cfg.sampling.rollouts
    tokens = answers * (mean_tokens or cfg.sampling.max_tokens)
    usd = [r.usd_max for r in roles]
    chip = topology.chip
    return {
        "topology": str(topology),
        "chips": topology.chips,
        "devices": topology.devices,
        "mesh": fit.mesh_sizes(cfg, topology, "sample"),
        "update_mesh": fit.mesh_sizes(cfg, topology, "update"),
        "chip": {
            "hbm": chip.hbm, "usable_by_device": chip.a_device().usable, "flops": chip.flops,
            "bandwidth": chip.bandwidth, "ici_in": chip.ici, "source": chip.source,
        },
        "student": cfg.student.checkpoint,
        "setting": dataclasses.asdict(measured.setting),
        "fits": measured.fits,
        "memory": [dataclasses.asdict(m) for m in measured.memory],
        "compiled": [dataclasses.asdict(c) for c in measured.compiled],
        "bounds": [dataclasses.asdict(b) for b in measured.bounds],
        "expected": [dataclasses.asdict(e) for e in measured.expected],
        "ladder": [dataclasses.asdict(s) for s in measured.ladder],
        "answer_tokens": mean_tokens or cfg.sampling.max_tokens,
        "step": {
            "seconds_at_least": seconds,
            "tokens_per_second_at_most": None if seconds is None else tokens / seconds,
            "run_hours_at_least": None if seconds is None else seconds * cfg.steps / 3600,
            "seconds_expected": likely,
            "tokens_per_second_expected": None if likely is None else tokens / likely,
            "run_hours_expected": None if likely is None else likely * cfg.steps / 3600,
        },
        "teacher": {
            "roles": [dataclasses.asdict(r) for r in roles],
            "calls": sum(r.calls for r in roles),
            "usd_at_most": None if None in usd else sum(usd),
            "note": note,
        },
        "advice": None if advice is None else dataclasses.asdict(advice),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- print


def _show(cfg: ConfigDict, topology: Topology, measured: Measured, report: dict[str, Any]) -> None:
    width = None if sys.stdout.isatty() else max(tables.console().width, 120)
    console = tables.console(width=width, highlight=True)
    mesh, s = report["mesh"], measured.setting
    update = report["update_mesh"]
    other = "" if update == mesh else f", the update fsdp={update['fsdp']} tp={update['tp']}"
    console.print(
        f"{cfg.student.checkpoint} on {topology}: {topology.chips} chips, fsdp={mesh['fsdp']} tp={mesh['tp']}{other}; "
        f"{s.slots} slots, microbatch {s.microbatch or 'all'}, remat {s.remat}, answers up to {s.max_tokens} tokens",
        highlight=False,
        soft_wrap=True,
    )
    if cfg.sampling.engine != "own":
        console.print("A server samples (sampling.engine): its memory and time are not part of this plan.")
    _show_memory(console, topology, measured)
    _show_collectives(console, measured, cfg.sampling.chunk)
    _show_seconds(console, cfg, measured, report)
    _show_teacher(console, cfg, report)
    if topology.chip.platform == "gpu":
        console.print(f"JAX takes 75 % of a GPU's memory by default; this plan assumes {gpu.MEMORY}.", highlight=False)
    _show_advice(console, topology, measured, report)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i > 0)
    return table


def _unit(largest: float) -> tuple[str, float]:
    """The largest unit in which a number is at least 1."""
    return next(((name, size) for name, size in UNITS.items() if largest >= size), ("kB", 1e3))


def _show_memory(console: Console, topology: Topology, measured: Measured) -> None:
    usable = topology.chip.a_device().usable
    unit, size = _unit(max(m.peak for m in measured.memory))

    def text(n: float) -> str:
        return f"{n / size:.2f}"

    some = {"method's": "method", "gradients": "gradients", "a step ahead": "ahead", "copy": "copy"}
    columns = {"KV cache": "kv_cache"} | {k: v for k, v in some.items() if any(getattr(m, v) for m in measured.memory)}
    has = "no published figures" if usable is None else f"it has {text(usable)} for programs"
    table = _table(
        f"memory of one device in {unit} ({size:.0e} bytes); {has}".replace("e+0", "e"),
        "while", "parameters", "optimizer", *columns, "inputs", "temporaries", "peak", "of it", "",
    )  # fmt: skip
    for m, c in zip(measured.memory, measured.compiled, strict=True):
        share = "" if usable is None else f"{m.peak / usable:.0%}"
        verdict = {True: Text("fits"), False: Text("does not fit", style="bold"), None: Text()}[m.fits]
        row = [text(x) for x in (m.parameters, m.optimizer, *(getattr(m, name) for name in columns.values()), m.inputs)]
        row += [text(m.temporaries), text(m.peak)] if c.fits else ["unknown", f">= {text(m.peak)}"]
        table.add_row(m.program, *row, share, verdict)
    console.print(table)


def _show_collectives(console: Console, measured: Measured, chunk: int) -> None:
    largest = max((one.bytes for c in measured.compiled for one in c.collectives), default=0)
    unit, size = _unit(largest)
    table = _table("collectives in the compiled programs, one device", "program", "kind", "count", f"{unit} received")
    for c in measured.compiled:
        name = {"prefill": "prefill, a call", "decode": f"decode, {chunk} tokens"}.get(c.name, c.name)
        for one in c.collectives:
            table.add_row(name, one.kind, f"{one.count:,}", f"{one.bytes / size:.3f}")
            name = ""
    console.print(table if table.row_count else "no collectives: a single device")


def _show_seconds(console: Console, cfg: ConfigDict, measured: Measured, report: dict[str, Any]) -> None:
    if not measured.bounds or measured.seconds is None:
        console.print("seconds: unknown, because there are no published figures for this chip", highlight=False)
        return
    table = _table(
        "seconds of one step: minimum by published figures, and expected",
        "phase", "compute", "memory", "links", "at least", "waits for", "expected", "of it links", "from",
    )  # fmt: skip
    likely = {e.name: e for e in measured.expected}

    def text(x: float | None) -> str:
        return "unknown" if x is None else f"{x:.2f}"

    for b in measured.bounds:
        e = likely.get(b.name)
        more = (text(e.seconds), text(e.links), e.source) if e else ("unknown", "", "")
        table.add_row(b.name, text(b.compute), text(b.memory), text(b.links), text(b.seconds), b.waits_for, *more)
    console.print(table)
    _show_ladder(console, measured)
    step = report["step"]
    console.print(
        f"a step: {step['seconds_at_least']:.1f} s at least, {step['tokens_per_second_at_most']:,.0f} sampled "
        f"tokens per second at most; {cfg.steps} steps: {step['run_hours_at_least']:.1f} hours at least, with "
        "the teacher hidden.\n"
        + _expectation(step, cfg.steps)
        + f"Answers of {report['answer_tokens']:g} tokens, prompts of {programs.prompt_len(cfg)}; links: what a chip "
        "receives over half of its published two-way bandwidth; of an expected time on TPUs, over one axis.",
        highlight=False,
        soft_wrap=True,
    )


def _expectation(step: dict[str, Any], steps: int) -> str:
    if step["seconds_expected"] is None:
        return ""
    seconds, tokens, hours = (step[f"{n}_expected"] for n in ("seconds", "tokens_per_second", "run_hours"))
    return (
        f"Expected: {seconds:.1f} s per step, {tokens:,.0f} tokens per second, {hours:.1f} hours for {steps} steps. "
        "Not included: waits for memory within a program, the latency of collectives, the host between chunks, the "
        "teacher. Collectives count in full, hidden or not.\n"
    )


def _show_ladder(console: Console, measured: Measured) -> None:
    if not measured.ladder:
        return
    table = _table(
        "programs of decoding in one step: rows halve in its tail",
        "rows", "pages", "token steps", "ms each", "seconds expected", "compiled",
    )  # fmt: skip
    for one in measured.ladder:
        r, seconds = one.rung, one.expected.seconds
        cells = ("unknown",) * 2 if seconds is None else (f"{1e3 * seconds / r.steps:.2f}", f"{seconds:.1f}")
        compiled = "yes" if one.compiled else "no: as with the most rows"
        table.add_row(f"{r.rows:,}", f"{r.pages:,}", f"{r.steps:,}", *cells, compiled)
    console.print(table)


def _show_teacher(console: Console, cfg: ConfigDict, report: dict[str, Any]) -> None:
    t = report["teacher"]
    usd = (
        "dollars unknown: a model without a price" if t["usd_at_most"] is None else f"${t['usd_at_most']:,.2f} at most"
    )
    note = f" ({t['note']})" if t["note"] else ""
    console.print(f"teacher: {t['calls']:,} calls, {usd}{note}; see ropd preflight", highlight=False, soft_wrap=True)


def _show_advice(console: Console, topology: Topology, measured: Measured, report: dict[str, Any]) -> None:
    advice = report["advice"]
    if advice is None:
        return
    table = _table("tried", "change", "peak", "fits", "seconds per step, at least")
    for t in advice["tried"]:
        seconds = "" if t["seconds"] is None else f"{t['seconds']:.1f}"
        fits = {True: "yes", False: "no", None: "unknown"}[t["fits"]]
        table.add_row(fit.words(t["keys"]) or "as it is", f"{t['peak'] / 1e9:.2f} GB", fits, seconds)
    console.print(table)
    if advice["keys"] is None:
        console.print("None of these fits: use a larger slice, or lower data.max_prompt_tokens.", highlight=False)
        return
    flags = " ".join(shlex.quote(f"--config.{k}={v}") for k, v in advice["keys"].items())
    if measured.fits is False:
        console.print(f"It fits with: {flags}", highlight=False, soft_wrap=True)
    elif flags:
        console.print(f"The fastest of them, shown above: {flags}", highlight=False, soft_wrap=True)
