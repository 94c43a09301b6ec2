"""LOPD and ExOPD: advantages by hand, a teacher on its own mesh, tokenizers that must agree."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, make_batch, split_parts
from ropd_jax.methods import Tokens, load_method
from ropd_jax.methods.lopd import check_tokenizers
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import programs
from ropd_jax.text.pieces import piece_tokenizer
from ropd_jax.train import train
from ropd_jax.training.setup import read_config
from ropd_jax.training.update import needs_initial
from ropd_jax.types import UserError
from ropd_jax.weights.hf import save_hf
from ropd_jax.weights.student import load_checkpoint
from tests.runs.test_train import tiny_config

OLD, TEACHER, REF = [-1.0, -2.0, -0.5], [-0.4, -3.0, -0.5], [-0.8, -2.5, -1.5]


def by_hand(method, logp):
    rows = [TokenSequence(np.array([3], np.int32), np.array([4, 5, 1], np.int32), np.float32(OLD))]
    batch = make_batch(rows, np.ones(1, np.float32), np.ones(1, bool), np.ones(1, bool), 4)
    ref = jnp.float32([REF])
    tokens = Tokens(batch, logp, jnp.zeros_like(logp), ref, {"teacher": jnp.float32([TEACHER])})
    loss, metrics = method.loss(tokens)
    return loss.sum(), (loss, metrics)


def config(**changes):
    return tiny_config(**({"method": "lopd", "lopd__checkpoint": "tiny"} | changes))


def test_sampled_advantage_is_the_teachers_log_prob_minus_the_students():
    method = load_method("lopd", config())
    grad, (_, metrics) = jax.grad(lambda x: by_hand(method, x), has_aux=True)(jnp.float32([OLD]))
    np.testing.assert_allclose(grad, [[-0.6, 1.0, 0.0]], atol=1e-6)  # -(log pi_T - log pi_S), on policy
    np.testing.assert_allclose(metrics["teacher_gap"], [[-0.6, 1.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.25, 2.0])
def test_exopd_by_hand_and_one_is_lopd(scale):
    method = load_method("exopd", config(exopd__scale=scale))
    assert needs_initial(read_config(method.cfg).loss, method)
    grad = jax.grad(lambda x: by_hand(method, x)[0])(jnp.float32([OLD]))
    s, t, r = (np.array(x) for x in (OLD, TEACHER, REF))
    np.testing.assert_allclose(-grad[0], -((s - r) - scale * (t - r)), atol=1e-6)
    if scale == 1.0:
        lopd = load_method("lopd", config())
        np.testing.assert_array_equal(grad, jax.grad(lambda x: by_hand(lopd, x)[0])(jnp.float32([OLD])))


def teacher_like_the_student(path, *, noise=0.0):
    tiny = load_checkpoint("tiny")
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + noise * rng.normal(size=x.shape).astype(x.dtype), jax.device_get(tiny.params))
    save_hf(path, tiny.cfg, params)
    tiny.tokenizer.save(path)
    return tiny, str(path)


def batch_of(student, n=6):
    rng = np.random.default_rng(2)
    rows = [
        TokenSequence(rng.integers(2, 90, 4).astype(np.int32), c := rng.integers(2, 90, k + 2).astype(np.int32),
                 np.full(c.shape, -4.0, np.float32))
        for k in range(n)
    ]  # fmt: skip
    ones = Advantages(np.ones(n, np.float32), np.ones(n, bool), np.ones(n, bool))
    return split_parts(make_batch(rows, *ones, 12), 2, multiple=2)


def test_a_teacher_on_its_own_mesh_says_what_it_says_on_the_students(tmp_path):
    tiny, path = teacher_like_the_student(tmp_path, noise=0.02)
    mesh = mesh_lib.make_mesh(2, 1)
    said = {}
    for name, own in {"same": {}, "three": dict(lopd__fsdp=3)}.items():
        for mode in ("sampled", "full"):
            method = load_method("lopd", config(lopd__checkpoint=path, lopd__mode=mode, **own))
            with jax.set_mesh(mesh):
                method.setup(tiny, mesh)
                notes = method.extras((), batch_of(tiny))
            said[name, mode] = np.asarray(notes.tokens["teacher"])
    assert said["same", "sampled"].shape == (3, 2, 11) and said["same", "full"].shape == (3, 2, 11, 96)
    for mode in ("sampled", "full"):
        np.testing.assert_allclose(said["three", mode], said["same", mode], atol=2e-5)  # 2 rows a part: padded


def metrics_of(workdir):
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in rows if "update/grad_norm" in row)


def test_a_student_that_is_its_own_teacher_learns_nothing(tmp_path):
    train(config(steps=1, lopd__mode="full", lopd__beta=0.5), tmp_path)
    found = metrics_of(tmp_path)
    assert abs(found["update/divergence"]) < 1e-5 and found["update/grad_norm"] < 1e-3


def test_another_teacher_moves_the_student(tmp_path):
    _, path = teacher_like_the_student(tmp_path / "teacher", noise=0.05)
    train(config(method="exopd", steps=1, lopd__checkpoint=path), tmp_path / "run")
    found = metrics_of(tmp_path / "run")
    assert found["update/teacher_gap"] > 0.01 and found["update/grad_norm"] > 0.01


def pieces(*more):
    return piece_tokenizer(["<pad>", "<eos>", "a", "b", *more], eos="<eos>", pad="<pad>")


def test_tokenizers_that_differ_are_named_with_the_place():
    def check(mine, others):
        check_tokenizers(*(dataclasses.replace(load_checkpoint("tiny"), tokenizer=t) for t in (mine, others)))

    check(pieces("c"), pieces("c"))
    check(pieces("c"), pieces("c", "d"))  # the teacher may know more
    with pytest.raises(
        UserError, match=r"id 4 is 'c' for the student, 'd' for the teacher; .*choose one of its family"
    ):
        check(pieces("c"), pieces("d"))
    with pytest.raises(UserError, match=r"the student has 6 ids, the teacher 5; id 5 \('d'\) is not the teacher's"):
        check(pieces("c", "d"), pieces("c"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(lopd__checkpoint=""), "set lopd.checkpoint"),
        (dict(lopd__mode="both"), "lopd.mode='both'"),
        (dict(lopd__beta=2.0), r"lopd.beta=2.0"),
        (dict(method="exopd", lopd__mode="full"), "'full' with method=exopd"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, said):
    cfg = config(**changes)
    with pytest.raises(UserError, match=said):
        load_method(cfg.method, cfg)


@pytest.mark.parametrize(("method", "mode"), [("lopd", "full"), ("exopd", "sampled")])
def test_the_update_can_be_planned_from_shapes_alone(method, mode):
    """The planned program reads what `extras` will give: shapes, types and shardings of the real notes."""
    cfg, mesh, tiny = config(method=method, lopd__mode=mode), mesh_lib.make_mesh(2, 1), load_checkpoint("tiny")
    with jax.set_mesh(mesh):
        programs.update_programs(cfg, tiny.cfg, mesh)[0].lower()
        planned = programs.method_of(cfg, tiny.cfg, mesh)[0].abstract_extras(programs.batch_of(cfg, mesh))
        real = load_method(method, cfg)
        real.setup(tiny, mesh)
        batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), programs.batch_of(cfg, mesh))
        notes = real.extras((), batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), planned) == jax.tree.map(lambda x: (x.shape, x.dtype), notes)
