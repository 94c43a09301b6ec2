"""The student under test: which weights, and why they were chosen.

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
from ropd_jax.data.mixture import sources_of
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError
from ropd_jax.weights.student import Student, find, load_checkpoint
from ropd_jax.weights.tokenizer import load_tokenizer
from ropd_jax.workdir.kept import kept_steps
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.policy import load_policy, run_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

RULES = ("last", "heldout")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A student under test, not loaded yet.

    Attributes:
        name: the run's directory or the checkpoint's name; ``in memory`` for a `Student`.
        checkpoint: what `choose_step` returned for a run; None for anything else.
        thinking: the mode of the chat template; None is the template's own default.
        dtype: for compute, and for the matrices in memory.
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
    student: Student | str | os.PathLike[str],
    *,
    pick: str = "last",
    thinking: bool | None = None,
    dtype: str = "",
    chat_template: str = "",
    fsdp: int | None = None,
    tp: int | None = None,
) -> Subject:
    """The subject. Nothing is loaded.

    Args:
        student: a `Student`, a run's directory, or a checkpoint by any name that `load_student` accepts.
        pick: which checkpoint of a run, see `choose_step`.
        thinking, dtype, chat_template, fsdp, tp: None and "" mean the run's own, or the default.

    Raises:
        UserError: unknown ``pick`` or ``dtype``, a run without a suitable checkpoint, or settings that cannot be
            applied to a loaded `Student`.
    """
    if pick not in RULES:
        raise UserError(f"--pick={pick} is unknown; expected {' or '.join(RULES)}")
    if dtype not in ("", *DTYPES):
        raise UserError(f"--dtype={dtype} is unknown; expected {' or '.join(DTYPES)}")
    if isinstance(student, Student):
        if thinking is not None or chat_template:
            raise UserError(
                f"thinking={thinking}, chat_template={chat_template!r}: a loaded student already has its chat "
                "template; pass its name instead"
            )
        return _in_memory(student, dtype or "float32", fsdp, tp)
    what = os.fspath(student)
    run = run_config(what)
    own = run or configs.default()
    mode = own.student.enable_thinking if thinking is None else thinking
    kind, template = dtype or own.student.dtype, chat_template or own.student.chat_template
    its_fsdp, its_tp = own.mesh.sample_fsdp or own.mesh.fsdp, own.mesh.sample_tp or own.mesh.tp
    mesh = _mesh_of(its_fsdp if fsdp is None else fsdp, its_tp if tp is None else tp)
    chosen = None if run is None else choose_step(what, run.data, pick)

    def load(mesh: jax.sharding.Mesh) -> Student:
        if run is None:
            return load_checkpoint(
                what, chat_template=template, enable_thinking=mode, mesh=mesh, dtype=kind, vectors="float32"
            )
        assert chosen is not None
        narrow = kind != "float32" and not run.student.lora.rank
        loaded = load_policy(what, chosen["step"], thinking=mode, mesh=None if narrow else mesh)
        if narrow:  # cast in host memory: a chip may not have room for float32
            mesh_lib.check_divides(loaded.cfg, mesh)
            params = narrowed(loaded.params, kind)
            loaded = dataclasses.replace(loaded, params=mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params)))
        if chat_template:
            tokenizer = load_tokenizer(find(run.student.checkpoint), chat_template=chat_template, enable_thinking=mode)
            loaded = dataclasses.replace(loaded, tokenizer=tokenizer)
        return loaded

    return Subject(what, chosen, mode, kind, mesh, load)


def narrowed(params: Any, dtype: str) -> Any:
    """Host parameters with the matrices cast to ``dtype``, in which they are used. Vectors (norms) keep their dtype."""

    def cast(path, x):
        return x if len(mesh_lib.dims_of(path, x).replace("L", "")) < 2 else x.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def choose_step(run: str | os.PathLike[str], data: ConfigDict, rule: str) -> dict[str, Any]:
    """A run's checkpoint and the reason for choosing it, as stored in the result. Benchmarks never decide the choice.

    Args:
        data: the section ``data`` of the run's config; it names the held-out set.
        rule: ``last``, the newest one; or ``heldout``, the kept one with the best ``eval/accuracy`` on the run's own
            held-out set, and on a tie the earliest.

    Raises:
        UserError: there is no checkpoint, or none has a held-out accuracy.
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
    sources = sources_of(data)
    one = f"{data.source}:{data.task} (seed={data.heldout_seed})"
    name = f"of {', '.join(s.name for s in sources)}" if len(sources) > 1 else data.heldout_path or one
    why = f"best accuracy ({known[best]:.4f}) on the held-out set {name} of steps {', '.join(map(str, known))}"
    return {"step": best, "rule": "heldout", "why": why}


def weights_sha(student: Student) -> str:
    """Hash of a student's weights, 16 hex digits: an evaluation does not continue with the answers of other weights."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(student.params):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def _in_memory(student: Student, dtype: str, fsdp: int | None, tp: int | None) -> Subject:
    """A loaded student: it stays on its mesh, or is put on a mesh of all devices."""
    leaf = jax.tree.leaves(student.params)[0]
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, jax.sharding.NamedSharding):
        mesh = leaf.sharding.mesh
        assert isinstance(mesh, jax.sharding.Mesh)  # an abstract one has no arrays
        if (fsdp, tp) != (None, None):
            raise UserError(f"fsdp={fsdp}, tp={tp}: the student is already on a mesh; load it onto that mesh")
        return Subject("in memory", None, None, dtype, lambda: mesh, lambda mesh: student)

    def load(mesh: jax.sharding.Mesh) -> Student:
        params = jax.device_get(student.params)
        mesh_lib.check_divides(student.cfg, mesh)
        return dataclasses.replace(student, params=mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params)))

    made = _mesh_of(-1 if fsdp is None else fsdp, 1 if tp is None else tp)
    return Subject("in memory", None, None, dtype, made, load)


def _mesh_of(fsdp: int, tp: int) -> Callable[[], jax.sharding.Mesh]:
    return lambda: mesh_lib.make_mesh(fsdp, tp)
