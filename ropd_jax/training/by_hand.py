"""One step by hand, for notebooks and scripts: judge groups, then take one update.

    student = ropd.load_student("tiny")
    groups = ropd.sample(student, ["2 + 3 ="], n=8)
    judgements = ropd.judge(teacher, groups)
    student, metrics = ropd.update(student, groups, judgements, lr=1e-4)

`train` does the same for every step of a run, with one optimizer for all steps, with overlap and checkpoints.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ropd_jax import configs
from ropd_jax.core.advantages import Advantages
from ropd_jax.methods import Method, load_method
from ropd_jax.methods.base import without_overlong
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.teacher import Teacher
from ropd_jax.training.collect import judge_by
from ropd_jax.training.scoring import told_of
from ropd_jax.training.setup import update_config
from ropd_jax.training.update import (
    State,
    has_gradient,
    make_update,
    needs_initial,
    on_mesh,
    step_parts,
)
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.utils.every import Every
from ropd_jax.utils.logs import show_logs
from ropd_jax.weights.student import Student

log = logging.getLogger(__name__)
REPORT_EVERY_S = 5.0


def judge(
    teacher: Teacher,
    groups: Sequence[RolloutGroup],
    method: str | type[Method] | Method | None = None,
    *,
    cfg: ConfigDict | None = None,
) -> list[Judgement]:
    """The teacher's judgement of each group. All groups are judged at the same time.

    If the teacher fails to answer a request, its rollouts are unscored: their reward is None, with a cause.

    Args:
        teacher: from `make_teacher`.
        groups: all with the same number of rollouts.
        method: overrides ``cfg.method``: a name, the path of a .py file, a subclass of `Method`, or an instance of one,
            which brings its own config.
        cfg: the method's settings; None is `configs.default`.

    Raises:
        ConfigurationError: the teacher cannot work (a wrong key, an unknown model). The other requests are
            cancelled.
        UserError: an unknown method, or groups of different lengths.
    """
    show_logs()
    if not groups:
        return []
    built = _method(method, groups, cfg)
    futures = [teacher.blocking.submit(judge_by(built, teacher, group)) for group in groups]
    report = Every(REPORT_EVERY_S)
    try:
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            future.result()  # the first failure, while the other groups are still being judged
            if report():
                log.info("judged %d of %d groups", done, len(groups))
    finally:
        for future in futures:
            future.cancel()  # has no effect on finished ones
    return [future.result() for future in futures]


def update(
    student: Student,
    groups: Sequence[RolloutGroup],
    judgements: Sequence[Judgement],
    *,
    method: str | type[Method] | Method | None = None,
    cfg: ConfigDict | None = None,
    lr: float | None = None,
) -> tuple[Student, dict[str, float]]:
    """(the student after one optimizer step on the judged groups, the metrics of the update).

    All weights are trained, on one device, by a new optimizer with a constant learning rate. The student that is passed
    in is not modified, and the new weights are placed where the old ones are. Further calls with batches of the same
    shape compile nothing, unless the method has its own loss.

    Args:
        groups: all with the same number of rollouts, sampled at ``cfg.sampling.temperature``.
        judgements: one for each group.
        method: as for `judge`.
        cfg: loss, optimizer and method settings, as for a run; None is `configs.default`.
        lr: the learning rate; None is ``cfg.optim.lr``.

    Raises:
        UserError: groups of different lengths, another number of judgements, or no group with a gradient.
    """
    show_logs()
    if len(groups) != len(judgements):
        raise UserError(f"{len(groups)} groups, {len(judgements)} judgements; expected one judgement for each group")
    built = _method(method, groups, cfg)
    how = update_config(built.cfg)
    mesh = mesh_lib.make_mesh(1, 1, jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        params = mesh_lib.put(jax.device_get(student.params), mesh, mesh_lib.RULES.storage(student.params))
        params = jax.tree.map(jnp.copy, params)  # the update donates its buffers, which can be the caller's
        built.check_student(student, mesh)
        trained, judgements, metrics = built.revise(built.setup(student, mesh), groups, judgements, student.tokenizer)
        rows = [s for g, j in zip(groups, judgements, strict=True) for s in built.sequences(g, j, student.tokenizer)]
        advantages = built.step_advantages(groups, judgements, step=0)
        if built.cfg.loss.overlong == "mask":
            advantages = without_overlong(advantages, groups, rows)
        length = max(len(row.prompt_T) + len(row.completion_T) for row in rows)
        flat_B = Advantages(*(np.asarray(x).reshape(-1) for x in advantages))
        how = dataclasses.replace(how, optim=dataclasses.replace(how.optim, row_len=0, shared_prompts=False))
        batch = step_parts(rows, flat_B, built, mesh, how.optim, length)
        if not has_gradient(batch, how.loss):
            raise UserError(
                "no group has a gradient: the rewards within each are equal, or too few are scored; sample more "
                "rollouts, or look at the causes in judgement.causes"
            )
        optim = dataclasses.replace(
            how.optim, schedule="constant", warmup_steps=0, lr=how.optim.lr if lr is None else lr
        )
        tx = optim.make(1)
        state = State(params, jax.jit(tx.init)(params), trained)
        initial = jax.tree.map(jnp.copy, params) if needs_initial(how.loss, built) else None
        begin = time.monotonic()
        told = told_of(how, student.cfg, mesh, built, None, length, built.cfg.context.max_tokens)
        notes, known = told(state.params, rows, flat_B) if told else ({}, {})
        metrics |= known
        state, measured = make_update(how, student.cfg, built, tx)(
            state, initial, *on_mesh(batch, built, state.method, mesh, notes)
        )
        metrics |= {name: float(value) for name, value in measured.items()}
    metrics["time/update_s"] = time.monotonic() - begin
    return dataclasses.replace(student, params=_placed_like(student.params, state.params)), metrics


def _placed_like(old: dict, new: dict) -> dict:
    """The new weights, placed like the old ones: in host memory, or on their devices."""
    return jax.tree.map(
        lambda a, b: jax.device_put(b, a.sharding) if isinstance(a, jax.Array) else np.asarray(b), old, new
    )


def _method(
    method: str | type[Method] | Method | None, groups: Sequence[RolloutGroup], cfg: ConfigDict | None
) -> Method:
    """A method whose config fits the groups."""
    sizes = {len(group.rollouts) for group in groups}
    if len(sizes) != 1:
        raise UserError(f"groups of {sorted(sizes)} rollouts; expected at least one group, all of one size")
    if isinstance(method, Method):
        return method
    cfg = configs.default() if cfg is None else cfg.copy_and_resolve_references()
    cfg.sampling.rollouts = sizes.pop()
    cfg.data.prompts_per_step = len(groups)
    if isinstance(method, str):
        cfg.method = method
    return load_method(method or cfg.method, cfg)
