"""The student of a run: the run's config, the checkpoints that are kept, and the weights after one of them."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import jax
from ml_collections import ConfigDict

from ropd_jax.models import transformer
from ropd_jax.models.lora import Lora, adapter_shapes, attach, freeze
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.weights.student import Student, load_student
from ropd_jax.workdir.checkpoint import saved_params
from ropd_jax.workdir.config import stored_config


def run_config(what: str | os.PathLike[str]) -> ConfigDict | None:
    """The config of a run's directory, None if it is none."""
    path = pathlib.Path(what).expanduser()
    if not (path / "checkpoints").is_dir() or not (path / "config.json").is_file():
        return None
    return stored_config(path)


def kept_steps(run: str | os.PathLike[str]) -> list[int]:
    """Finished steps of the checkpoints that a run has kept, ascending."""
    return sorted(int(p.name) for p in (pathlib.Path(run).expanduser() / "checkpoints").iterdir() if p.name.isdigit())


def load_policy(
    run: str | os.PathLike[str],
    cfg: ConfigDict,
    step: int,
    *,
    thinking: bool | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Student:
    """A run's student after a step; of a run with adapters they stand beside the frozen weights.

    Args:
        cfg: `run_config`.
        step: one of `kept_steps`, or 0: the checkpoint that the run started from.
        thinking: of the chat template; None leaves its own default.
        mesh: where the weights go, None for host memory.

    Raises:
        UserError: no checkpoint after that step, or one of another student; see `student.load_student`.
    """
    lora = Lora.from_config(cfg.student.lora)
    student = load_student(
        cfg.student.checkpoint,
        chat_template=cfg.student.chat_template,
        enable_thinking=thinking,
        mesh=mesh,
        dtype=lora.load_dtype,
    )
    if not step and 0 not in kept_steps(run):
        return student
    shapes = adapter_shapes(student.cfg, lora) if lora.rank else transformer.param_shapes(student.cfg)
    _, params = saved_params(pathlib.Path(run).expanduser() / "checkpoints", step, shapes)
    if mesh is not None:
        params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
    base = freeze(student.params, lora.base_dtype) if lora.rank else None
    return dataclasses.replace(student, params=attach(lora, base, params))
