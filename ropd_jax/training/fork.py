"""``ropd train --fork RUN[@STEP] --workdir NEW``: a new run that starts from another run's checkpoint, with any config.

The new run takes over the student's parameters. It also takes over the optimizer's moments and what the method trains,
if both runs have all of them in the same shapes; otherwise these start from zero. The new run has its own steps,
schedule with warm-up, data order and random streams, from step 0. ``student.checkpoint`` keeps its meaning: tokenizer,
reference of a KL term, frozen base of adapters.

    RUN      NEW                                                     takes over
    full     full                                                    the parameters
    LoRA     LoRA of the same rank, targets, alpha and base          the adapters
    LoRA     full                                                    base and adapters, merged
    other                                                            refused: export RUN, and start from the export

NEW saves what it took over as its checkpoint after step 0, and does not need RUN afterwards.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from etils import epath

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.lora import Lora, adapter_shapes, merge
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.update import State
from ropd_jax.types import UserError
from ropd_jax.utils.paths import as_path, is_url
from ropd_jax.weights.student import load_checkpoint, outline
from ropd_jax.workdir.checkpoint import Checkpoints, saved_params
from ropd_jax.workdir.config import CONFIG, provenance, stored_config
from ropd_jax.workdir.kept import kept_steps
from ropd_jax.workdir.orbax_io import shapes_of, stored_shapes

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The checkpoint that a new run starts from.

    Attributes:
        run: the other run's directory, absolute, or its URL.
        step: finished steps of its checkpoint.
        pending: the new run has not saved a checkpoint yet.
    """

    run: epath.Path
    step: int
    pending: bool

    def as_json(self) -> dict[str, Any]:
        return {"run": str(self.run), "step": self.step}


def origin_of(fork: str, workdir: epath.Path) -> Origin | None:
    """Where the run in ``workdir`` starts from; None for a run that starts from ``student.checkpoint``.

    Args:
        fork: ``RUN`` or ``RUN@STEP``; "" for none, or for a run that was forked at an earlier start.

    Raises:
        UserError: RUN is not a run or lacks that checkpoint, or ``workdir`` holds a run with another origin.
    """
    stored = provenance(workdir).get("forked_from")
    pending = not kept_steps(workdir)
    run, step = _parsed(fork) if fork else (None, None)
    if stored:
        origin = Origin(as_path(stored["run"]), int(stored["step"]), pending)
        if run is not None and (run != origin.run or step not in (None, origin.step)):
            raise UserError(
                f"--fork {fork}: the run in {workdir} was forked from {origin.run}@{origin.step}; remove --fork to "
                "resume it, or choose another --workdir"
            )
        return origin
    if run is None:
        return None
    if (workdir / CONFIG).exists():
        raise UserError(f"--fork {fork}: {workdir} already holds a run that was not forked; choose another --workdir")
    return Origin(run, _checked_step(fork, run, step), pending)


def _parsed(fork: str) -> tuple[epath.Path, int | None]:
    """(the directory, the step or None) of ``RUN`` or ``RUN@STEP``; a directory can have an @ in its name."""
    whole = _absolute(fork)
    found = re.fullmatch(r"(?P<run>.+)@(?P<step>\d+)", fork)
    if whole.exists() or not found:
        return whole, None
    return _absolute(found["run"]), int(found["step"])


def _absolute(run: str) -> epath.Path:
    path = as_path(run, "--fork")
    return path if is_url(path) else epath.Path(pathlib.Path(path).absolute())


def _checked_step(fork: str, run: epath.Path, step: int | None) -> int:
    if not (run / CONFIG).is_file():
        raise UserError(f"--fork {fork}: {run} holds no run; expected a workdir of ropd train, or RUN@STEP")
    kept = kept_steps(run)
    if not kept:
        raise UserError(f"--fork {fork}: {run} has no checkpoint yet; wait for the first one")
    if step is not None and step not in kept:
        there = ", ".join(map(str, kept))
        raise UserError(f"--fork {fork}: {run} has no checkpoint after step {step}; it has those after steps {there}")
    return kept[-1] if step is None else step


def check_origin(origin: Origin, lora: Lora, model: ModelConfig, contents: Mapping[str, str]) -> None:
    """Checks that a student of this shape can take the checkpoint over; no weights are read.

    Args:
        lora: of the new run. model: its student's shape. contents: hashes of its files.

    Raises:
        UserError: the shapes differ, or the adapters do not fit.
    """
    theirs = _lora_of(origin)
    export = f"ropd export {origin.run} --to DIR, then --config.student.checkpoint=DIR without --fork"
    if theirs.rank and lora.rank:
        name = "student.checkpoint"
        was, now = provenance(origin.run).get("contents", {}).get(name), contents.get(name)
        if theirs != lora or (None not in (was, now) and was != now):
            raise UserError(
                f"--fork {origin.run}: its adapters ({_shown(theirs)}) do not fit this run ({_shown(lora)}, or another "
                f"base); give the same student.lora.* and {name}, or start from the merged weights: {export}"
            )
    elif lora.rank:
        raise UserError(
            f"--fork {origin.run}: it trained all weights, but this run trains adapters (student.lora.rank="
            f"{lora.rank}) on the frozen student.checkpoint; start from its weights: {export}"
        )
    if theirs.rank and not lora.rank:
        other = outline(str(stored_config(origin.run).student.checkpoint)).cfg
        if other != model:
            raise UserError(f"--fork {origin.run}: its student and student.checkpoint have different shapes; {export}")
        return
    wanted = adapter_shapes(model, lora) if lora.rank else transformer.param_shapes(model)
    there = _part(stored_shapes(epath.Path(origin.run) / "checkpoints" / str(origin.step)), "params")
    for name, shape in shapes_of(wanted).items():
        if there.get(name) != shape:
            seen = f"{name} of shape {there[name]}" if name in there else f"no {name}"
            raise UserError(
                f"--fork {origin.run}@{origin.step} holds {seen}, but student.checkpoint needs {shape}; give the "
                "student.checkpoint of that run, or one of the same shape"
            )


def forked(origin: Origin, state: State, mesh: jax.sharding.Mesh, lora: Lora) -> State:
    """The state of a new run before its first step: taken over from ``origin`` where possible, else from ``state``."""
    theirs, where = _lora_of(origin), origin.run / "checkpoints"
    if theirs.rank and not lora.rank:
        base = load_checkpoint(str(stored_config(origin.run).student.checkpoint), mesh=mesh, dtype=theirs.load_dtype)
        _, adapters = saved_params(where, origin.step, adapter_shapes(base.cfg, theirs))
        params = merge(theirs, base.params, mesh_lib.put(adapters, mesh, mesh_lib.RULES.storage(adapters)))
        params = mesh_lib.put(jax.device_get(params), mesh, mesh_lib.RULES.storage(params))
        what, state = "the merged parameters; the optimizer starts from zero", state._replace(params=params)
    elif stored_shapes(epath.Path(where) / str(origin.step)) == shapes_of(state):
        checkpoints = Checkpoints(where, keep=len(kept_steps(origin.run)) + 1)
        try:
            state, _ = checkpoints.restore(origin.step, state)
        finally:
            checkpoints.close()
        what, state = "parameters and moments", state._replace(opt_state=_from_step_0(state.opt_state))
    else:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params)
        _, params = saved_params(where, origin.step, shapes)
        params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        what = "the parameters; optimizer and method differ in shape and start from zero"
        state = state._replace(params=params)
    log.info("forked from %s after step %d: %s", origin.run, origin.step, what)
    return state


def _lora_of(origin: Origin) -> Lora:
    return Lora.from_config(stored_config(origin.run).student.lora)


def _shown(lora: Lora) -> str:
    return f"rank {lora.rank}, alpha {lora.alpha:g}, {' '.join(lora.targets)}, base {lora.base_dtype}"


def _part(shapes: Mapping[str, list[int]], name: str) -> dict[str, list[int]]:
    return {k.removeprefix(f"{name}/"): v for k, v in shapes.items() if k.startswith(f"{name}/")}


def _from_step_0(opt_state: Any) -> Any:
    """The optimizer's state with the schedule at its beginning; the moments and their counts stay."""
    is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)  # noqa: E731
    return jax.tree.map(
        lambda x: x._replace(count=jnp.zeros_like(x.count)) if is_schedule(x) else x, opt_state, is_leaf=is_schedule
    )
