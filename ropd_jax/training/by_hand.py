"""One step by hand, for notebooks and scripts: judge groups, then take one update.

    student = ropd.load_student("tiny")
    groups = ropd.sample(student, ["2 + 3 ="], n=8)
    judgements = ropd.judge(teacher, groups)
    student, metrics = ropd.update(student, groups, judgements, lr=1e-4)

`train` does the same for every step of a run, with one optimizer for all of them, overlap and checkpoints.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax import configs
from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import make_batch, split_parts
from ropd_jax.core.optim import make_optimizer
from ropd_jax.methods import Method, load_method
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.teacher import Teacher
from ropd_jax.training.collect import judge_by
from ropd_jax.training.setup import update_config
from ropd_jax.training.update import State, make_update, on_mesh
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.utils.logs import show_logs
from ropd_jax.weights.student import Student
from ropd_jax.workdir.progress import Progress


def judge(
    teacher: Teacher, groups: Sequence[RolloutGroup], method: str | type[Method] | Method = "ropd"
) -> list[Judgement]:
    """The teacher's judgement of each group, all of them side by side.

    Args:
        teacher: of `training.setup.make_teacher`.
        method: a name, the path of a .py file, a subclass of `Method`, or a method that is built already.

    Raises:
        ConfigurationError: the teacher cannot work at all (a wrong key, an unknown model).
        UserError: an unknown method.
    """
    show_logs()
    built = _method(method, groups)
    futures = [teacher.blocking.submit(judge_by(built, teacher, group)) for group in groups]
    with Progress(len(groups)) as progress:
        for done, _ in enumerate(concurrent.futures.as_completed(futures), 1):
            progress.report(f"judged {done}/{len(groups)} groups")
    return [future.result() for future in futures]


def update(
    student: Student,
    groups: Sequence[RolloutGroup],
    judgements: Sequence[Judgement],
    *,
    method: str | type[Method] | Method = "ropd",
    lr: float = 1e-6,
) -> tuple[Student, dict[str, float]]:
    """(the student after one optimizer step on the judged groups, the metrics of the update).

    The optimizer is a fresh AdamW at a constant ``lr``; everything else is as `configs.default` has it. The student
    that is passed in stays as it is.

    Args:
        groups: of one length G of rollouts each. judgements: one for each group.

    Raises:
        UserError: groups of different lengths, another number of judgements, or no group with a gradient.
    """
    if len(groups) != len(judgements):
        raise UserError(f"{len(groups)} groups, {len(judgements)} judgements; expected one judgement for each group")
    built = _method(method, groups)
    how = update_config(built.cfg)
    reward_PG, valid_PG = built.rewards(groups, judgements)
    advantages = built.advantages(reward_PG, valid_PG, step=0)
    rows = [s for g, j in zip(groups, judgements, strict=True) for s in built.sequences(g, j, student.tokenizer)]
    length = max(len(row.prompt_T) + len(row.completion_T) for row in rows)
    flat_B = Advantages(*(np.asarray(x).reshape(-1) for x in advantages))
    batch = split_parts(make_batch(rows, *flat_B, length), 0)
    if not batch.informative_BT.any():
        raise UserError("no group has a gradient: the rewards of each are all equal, or none is scored")
    optim = how.optim
    tx = make_optimizer(
        lr=lr, schedule="constant", warmup_steps=0, total_steps=1, b1=optim.b1, b2=optim.b2, eps=optim.eps,
        weight_decay=optim.weight_decay, clip_norm=optim.clip_norm,
    )  # fmt: skip
    mesh = mesh_lib.make_mesh(1, 1)
    with jax.set_mesh(mesh):
        params = mesh_lib.put(jax.device_get(student.params), mesh, mesh_lib.RULES.storage(student.params))
        state = State(params, jax.jit(tx.init)(params), built.setup(student, mesh))
        program = make_update(how, student.cfg, built, tx)
        begin = time.monotonic()
        state, metrics = program(state, None, *on_mesh(batch, built, state.method, mesh))
        found: dict[str, Any] = {name: float(value) for name, value in metrics.items()}
    found["time/update_s"] = time.monotonic() - begin
    return dataclasses.replace(student, params=state.params), found


def _method(method: str | type[Method] | Method, groups: Sequence[RolloutGroup]) -> Method:
    """A method whose config fits the groups."""
    if isinstance(method, Method):
        return method
    sizes = {len(group.rollouts) for group in groups}
    if len(sizes) != 1:
        raise UserError(f"groups of {sorted(sizes)} rollouts; expected at least one group, all of the same length")
    cfg = configs.default()
    cfg.sampling.rollouts = sizes.pop()
    cfg.data.prompts_per_step = len(groups)
    if isinstance(method, str):
        cfg.method = method
    return load_method(method, cfg)
