"""Students by name or by run: the config of a run, its checkpoints, and the weights of one of them."""

from __future__ import annotations

import dataclasses
import os

import jax
from ml_collections import ConfigDict

from ropd_jax.models import transformer
from ropd_jax.models.lora import Lora, adapter_shapes, attach, freeze
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError
from ropd_jax.utils.logs import show_logs
from ropd_jax.utils.paths import as_path
from ropd_jax.weights.student import Student, load_checkpoint
from ropd_jax.workdir.checkpoint import saved_params
from ropd_jax.workdir.config import stored_config
from ropd_jax.workdir.kept import kept_steps


def run_config(what: str | os.PathLike[str]) -> ConfigDict | None:
    """The config of a run's directory; None if the directory is not a run."""
    path = as_path(what)
    if not (path / "checkpoints").is_dir() or not (path / "config.json").is_file():
        return None
    return stored_config(path)


def load_policy(
    run: str | os.PathLike[str],
    step: int | None = None,
    *,
    thinking: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Student:
    """The student of a run after a step. Adapters are attached to the frozen weights.

    Args:
        step: one of `kept_steps`; None is the newest. 0 is the checkpoint that the run started from.
        thinking: passed to the chat template; None keeps its default.
        mesh: placement of the weights; None is host memory.

    Raises:
        UserError: not a run, no checkpoint after that step, or another student; see `student.load_checkpoint`.
    """
    cfg = run_config(run)
    if cfg is None:
        raise UserError(f"{run} is not a run; expected a directory with config.json and checkpoints/")
    lora = Lora.from_config(cfg.student.lora)
    kept = kept_steps(run)
    if step is None and not kept:
        raise UserError(f"{run} has no checkpoint yet; wait for the first, or use step=0: its initial student")
    step = kept[-1] if step is None else step
    student = load_checkpoint(
        cfg.student.checkpoint,
        chat_template=cfg.student.chat_template,
        enable_thinking=thinking,
        mesh=mesh,
        dtype=lora.load_dtype,
    )
    if not step and 0 not in kept:
        return student
    shapes = adapter_shapes(student.cfg, lora) if lora.rank else transformer.param_shapes(student.cfg)
    _, params = saved_params(as_path(run) / "checkpoints", step, shapes)
    if mesh is not None:
        params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
    base = freeze(student.params, lora.base_dtype) if lora.rank else None
    return dataclasses.replace(student, params=attach(lora, base, params))


def load_student(
    name_or_run: str | os.PathLike[str], step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> Student:
    """A student by name, or the student of a run.

    Args:
        name_or_run: ``tiny`` (shipped), ``smollm2``, a .gguf file, a Hugging Face directory, an id of the Hub, or the
            directory of a run.
        step: number of finished steps of a run's checkpoint; None is the newest, 0 the student that it started from.
        mesh: placement of the weights (`ropd_jax.parallel.mesh.make_mesh`); None is host memory.

    Raises:
        UserError: not found, unreadable, or a ``step`` without a run.
    """
    show_logs()
    cfg = run_config(name_or_run)
    if cfg is not None:
        return load_policy(name_or_run, step, thinking=cfg.student.enable_thinking, mesh=mesh)
    if step is not None:
        raise UserError(f"step={step} selects a checkpoint of a run, but {name_or_run} is not a run; remove it")
    return load_checkpoint(os.fspath(name_or_run), mesh=mesh)
