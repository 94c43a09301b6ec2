"""The student under test: which weights, and why these.

A name, a file, a run or a `Student` becomes a `Subject`. A run's checkpoint is chosen by a rule that is fixed before
anything is measured (`choose_step`), never by a result on a benchmark.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ropd_jax import configs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError
from ropd_jax.weights.student import Student, load_checkpoint
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.policy import kept_steps, load_policy, run_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

RULES = ("last", "heldout")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A student under test, not loaded yet.

    Attributes:
        name: the run's directory or the checkpoint's name; ``in memory`` for a `Student`.
        checkpoint: what `choose_step` returned for a run; None for anything else.
        thinking: the mode of the chat template; None is the template's own default.
        dtype: of compute and KV cache.
        mesh: makes the device mesh.
        load: loads the weights onto that mesh.
    """

    name: str
    checkpoint: dict[str, Any] | None
    thinking: bool | None
    dtype: str
    mesh: Callable[[], jax.sharding.Mesh]
    load: Callable[[jax.sharding.Mesh], Student]


def subject_of(
    student: Student | str | os.PathLike[str], *, pick: str = "last", thinking: bool | None = None, dtype: str = ""
) -> Subject:
    """The subject; nothing is loaded.

    Args:
        student: a `Student`, a run's directory, or a checkpoint by any name that `load_student` accepts.
        pick: which checkpoint of a run, see `choose_step`.
        thinking, dtype: None and "" mean the run's own, or the default.

    Raises:
        UserError: unknown ``pick``, or a run without a suitable checkpoint.
    """
    if pick not in RULES:
        raise UserError(f"--pick={pick} is unknown; expected {' or '.join(RULES)}")
    if isinstance(student, Student):
        return _in_memory(student, thinking, dtype or "float32")
    what = os.fspath(student)
    run = run_config(what)
    if run is None:
        own = configs.default()

        def load(mesh: jax.sharding.Mesh) -> Student:
            template = own.student.chat_template
            return load_checkpoint(what, chat_template=template, enable_thinking=thinking, mesh=mesh)

        return Subject(what, None, thinking, dtype or "float32", _mesh_of(own.mesh), load)

    chosen = choose_step(what, run.data, pick)
    mode = run.student.enable_thinking if thinking is None else thinking

    def load_run(mesh: jax.sharding.Mesh) -> Student:
        return load_policy(what, chosen["step"], thinking=mode, mesh=mesh)

    return Subject(what, chosen, mode, dtype or run.student.dtype, _mesh_of(run.mesh), load_run)


def choose_step(run: str | os.PathLike[str], data: ConfigDict, rule: str) -> dict[str, Any]:
    """The checkpoint of a run and the reason, for the result. It is never chosen on a benchmark.

    Args:
        data: the section ``data`` of the run's config; it names the held-out set.
        rule: ``last``, the newest one; or ``heldout``, of those that are kept the one with the best ``eval/accuracy``
            on the run's own held-out set, and of equal ones the earliest.

    Raises:
        UserError: no checkpoint, or none with a held-out accuracy.
    """
    steps = kept_steps(run)
    if not steps:
        raise UserError(f"{run} has no checkpoint yet; expected a run that has saved one")
    if rule == "last":
        return {"step": steps[-1], "rule": "last", "why": f"the newest of the {len(steps)} kept"}
    accuracy = read_metrics(run).get("eval/accuracy", ((), ()))
    measured = dict(zip(*accuracy, strict=True))
    known = {s: a for s in steps if (a := measured.get(s)) is not None}
    if not known:
        raise UserError(
            f"{run}: no kept checkpoint (steps {', '.join(map(str, steps))}) has a held-out accuracy; "
            "expected --pick last, or a run with eval.every equal to checkpoint.every"
        )
    best = max(known, key=lambda s: (known[s], -s))
    name = data.heldout_path or f"{data.source}:{data.task} (seed={data.heldout_seed})"
    why = f"best accuracy ({known[best]:.4f}) on the held-out set {name} of steps {', '.join(map(str, known))}"
    return {"step": best, "rule": "heldout", "why": why}


def weights_sha(student: Student) -> str:
    """Hash of a student's weights, 16 hex digits: answers of other weights are not continued."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(student.params):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def _in_memory(student: Student, thinking: bool | None, dtype: str) -> Subject:
    """A loaded student: it stays on the mesh that it is on, or is put on one of all devices."""
    leaf = jax.tree.leaves(student.params)[0]
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, jax.sharding.NamedSharding):
        mesh = leaf.sharding.mesh
        assert isinstance(mesh, jax.sharding.Mesh)  # an abstract one has no arrays
        return Subject("in memory", None, thinking, dtype, lambda: mesh, lambda mesh: student)

    def load(mesh: jax.sharding.Mesh) -> Student:
        params = jax.device_get(student.params)
        mesh_lib.check_divides(student.cfg, mesh)
        return dataclasses.replace(student, params=mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params)))

    return Subject("in memory", None, thinking, dtype, _mesh_of(configs.default().mesh), load)


def _mesh_of(mesh: ConfigDict) -> Callable[[], jax.sharding.Mesh]:
    fsdp, tp = mesh.fsdp, mesh.tp
    return lambda: mesh_lib.make_mesh(fsdp, tp)
