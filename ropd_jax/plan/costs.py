"""The cost of a future run in one sentence: dollars for the teacher, and hours.

If a run exists that differs only in its seed, the figures are expected values: from the means of its tape, and its own
seconds per step. Otherwise they are bounds: dollars if every answer of the teacher has maximum length
(``ropd preflight``), and minimum hours on a slice (the bounds of ``ropd plan``, from shapes and published figures;
nothing is compiled, so links are not counted). Unknown values are reported as unknown.
"""

from __future__ import annotations

import contextlib
import pathlib
import statistics
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import measure
from ropd_jax.plan.bound import bound
from ropd_jax.plan.chips import CPU, Topology, parse_topology, topology_devices
from ropd_jax.plan.report import teacher
from ropd_jax.plan.shapes import model_config
from ropd_jax.teacher import Tape
from ropd_jax.types import UserError
from ropd_jax.workdir.metrics import read_metrics


def cost_of(cfg: ConfigDict, like: Sequence[str], topology: str) -> str:
    """The cost of a run of this config, as a sentence.

    Args:
        like: directories of runs that differ from it only in their seed; the first existing one is used.
        topology: a slice, as in ``ropd plan``.
    """
    known = next((run for run in map(pathlib.Path, like) if seconds_a_step(run) is not None), None)
    return f"{_teacher(cfg, known)}; {_hours(cfg, known, parse_topology(topology))}"


def _teacher(cfg: ConfigDict, known: pathlib.Path | None) -> str:
    with contextlib.ExitStack() as stack:
        file = known / "tape.sqlite" if known else None
        tape = stack.enter_context(contextlib.closing(Tape(file, read_only=True))) if file and file.exists() else None
        roles, _ = teacher(cfg, tape)
    calls = f"teacher: {sum(r.calls for r in roles):,} calls"
    expected, most = ([getattr(r, name) for r in roles] for name in ("usd", "usd_max"))
    if known and None not in expected:
        return f"{calls}, ${sum(expected):,.2f} expected by the tape of {known}"
    if None in most:
        return f"{calls}, dollars unknown: a model without a price"
    return f"{calls}, ${sum(most):,.2f} at most"


def _hours(cfg: ConfigDict, known: pathlib.Path | None, topology: Topology) -> str:
    if known and (seconds := seconds_a_step(known)) is not None:
        return f"{_number(seconds * cfg.steps / 3600)} hours expected by the steps of {known}"
    try:
        seconds = seconds_at_least(cfg, topology)
    except UserError as error:
        return f"hours on {topology} unknown: {error}"
    if seconds is None:
        return f"hours unknown: no published figures for {topology}"
    return f"{_number(seconds * cfg.steps / 3600)} hours at least on {topology}, links not counted"


def _number(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else "under 0.1"


def seconds_a_step(run: pathlib.Path) -> float | None:
    """Median seconds of a run's steps, without evaluations and checkpoints; None without steps."""
    values = [v for v in read_metrics(run).get("time/step_s", ((), ()))[1] if v is not None]
    return statistics.median(values) if values else None


def seconds_at_least(cfg: ConfigDict, topology: Topology) -> float | None:
    """Minimum seconds of one step on a slice, from shapes: compute and memory of each phase; None if unknown.

    The mesh's devices are this machine's CPU, in as many parts (`ropd_jax.plan.prepare`); no libtpu is needed.

    Raises:
        UserError: the model does not divide over the slice, or there are too few parts.
    """
    model_cfg = model_config(cfg.student.checkpoint)
    devices = topology_devices(Topology(CPU, (topology.devices,)))
    mesh = mesh_lib.update_mesh(cfg.mesh, devices=devices)
    mesh_lib.check_divides(model_cfg, mesh, keys=mesh_lib.size_keys(cfg.mesh, "update"))
    with jax.set_mesh(mesh):
        sizes = measure.sizes(cfg, model_cfg, mesh)
    chip = topology.chip.a_device()
    parts = [bound(phase, chip).seconds for phase in measure.phases(cfg, model_cfg, mesh, {}, sizes)]
    known = [s for s in parts if s is not None]
    return sum(known) if len(known) == len(parts) else None
