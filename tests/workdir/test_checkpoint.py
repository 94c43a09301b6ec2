"""What is saved on one mesh and goes on on another."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import optax
import pytest

from ropd_jax import configs
from ropd_jax.models import transformer
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.setup import read_config
from ropd_jax.training.update import State
from ropd_jax.types import UserError
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.config import claim
from tests.helpers import TINY, trees_max_diff


def placed(mesh, tx, seed):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), transformer.param_shapes(TINY))
    params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
    return State(params, jax.jit(tx.init)(params))


def test_a_state_saved_on_8x1_is_restored_on_4x2_bit_for_bit(tmp_path):
    cfg = configs.default()
    cfg.optim.moments = "int8"  # bytes and their scales, besides float32
    tx = read_config(cfg).optim.make(cfg.steps)
    first, other = mesh_lib.make_mesh(8, 1), mesh_lib.make_mesh(4, 2)
    with jax.set_mesh(first):
        state = placed(first, tx, seed=0)
        _, opt_state = jax.jit(tx.update)(state.params, state.opt_state, state.params)  # moments that are not 0
        state = state._replace(opt_state=opt_state)
        with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
            checkpoints.save(3, state, {"seconds": 1.5})
    with jax.set_mesh(other), contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        like = placed(other, tx, seed=1)
        restored, host = checkpoints.restore(3, like)
    assert host == {"seconds": 1.5}
    assert trees_max_diff(restored, state) == 0.0
    for there, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert there.sharding.is_equivalent_to(wanted.sharding, there.ndim) and there.dtype == wanted.dtype
    q_LDNH = restored.params["layers"]["attn"]["q_DNH"].addressable_data(0)
    assert q_LDNH.shape[1:3] == (TINY.d_model // 4, TINY.num_heads // 2)


def test_an_optimizer_state_of_optax_adamw_as_earlier_versions_saved_it_is_restored(tmp_path):
    cfg = configs.default()
    schedule = optax.join_schedules(
        [optax.linear_schedule(1e-8, 1e-6, 99), optax.cosine_decay_schedule(1e-6, 9)], [100]
    )
    with jax.numpy_dtype_promotion("standard"):
        old = optax.chain(optax.identity(), optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.1))
        tx = read_config(cfg).optim.make(cfg.steps)
        mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
        with jax.set_mesh(mesh), contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
            state = placed(mesh, old, seed=0)
            _, opt_state = jax.jit(old.update)(state.params, state.opt_state, state.params)
            checkpoints.save(3, state._replace(opt_state=opt_state), {})
            restored, _ = checkpoints.restore(3, placed(mesh, tx, seed=1))
    assert trees_max_diff(restored, state._replace(opt_state=opt_state)) == 0.0
    assert jax.tree.structure(restored.opt_state) == jax.tree.structure(opt_state)


def test_a_run_may_go_on_on_another_mesh_and_not_with_another_student(tmp_path):
    claim(tmp_path / "run", {"mesh": {"fsdp": 8, "tp": 1}, "optim": {"xla_options": ""}})
    claim(tmp_path / "run", {"mesh": {"fsdp": 4, "tp": 2}, "optim": {"xla_options": "xla_tpu_a=1"}})
    with pytest.raises(UserError, match="student: absent there, other now"):
        claim(tmp_path / "run", {"mesh": {"fsdp": 4, "tp": 2}, "optim": {"xla_options": ""}, "student": "other"})
