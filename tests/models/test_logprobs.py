"""Log-probs of only the wanted positions: the same numbers and gradients, at the cost of the chunks they fill."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import logprobs, transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib

CFG = ModelConfig(vocab_size=48, num_layers=1, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
                  rope_theta=1e4, norm_eps=1e-5, tied=True, max_seq_len=64)  # fmt: skip
B, T, CHUNK = 3, 13, 4
RNG = np.random.default_rng(0)
X_BTD = RNG.normal(size=(B, T, 16)).astype(np.float32)
WANTED_BT = np.stack([np.arange(T) % 5 == 1, np.arange(T) > 8, np.zeros(T, bool)])
CT = RNG.normal(size=(2, B, T)).astype(np.float32)


def value_and_grads(cfg, params, x_BTD, targets_BT, read_BT, wanted_BT, entropy_grad):
    def loss(params, x_BTD):
        logp_BT, entropy_BT = token_logprobs(
            cfg, params, x_BTD, targets_BT, temperature=0.8, chunk=CHUNK, entropy_grad=entropy_grad, wanted_BT=wanted_BT
        )
        return jnp.sum(jnp.where(read_BT, CT[0] * logp_BT + CT[1] * entropy_BT, 0.0))

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x_BTD)


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("changes", [{}, {"vocab_size": 53}, {"final_softcap": 3.0}, {"tied": False},
                                     {"unused": ((3, 5), (40, 48))}], ids=str)  # fmt: skip
def test_wanted_positions_have_the_numbers_and_gradients_of_all(changes, entropy_grad, monkeypatch):
    monkeypatch.setattr(logprobs, "LEAST_WORDS", 2)  # 48 words in 16 slices; 53 is a prime
    cfg = dataclasses.replace(CFG, **changes)
    params = transformer.init_params(cfg, 0)
    targets_BT = np.random.default_rng(1).integers(5, min(40, cfg.vocab_size), (B, T)).astype(np.int32)
    args = cfg, params, X_BTD, targets_BT, WANTED_BT
    want, got = (value_and_grads(*args, w, entropy_grad) for w in (None, WANTED_BT))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)


def test_a_mesh_of_one_device_changes_nothing():
    params = transformer.init_params(CFG, 0)
    targets_BT = np.zeros((B, T), np.int32)
    plain = value_and_grads(CFG, params, X_BTD, targets_BT, WANTED_BT, WANTED_BT, True)
    mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        x, targets, wanted = (
            jax.device_put(a, jax.NamedSharding(mesh, mesh_lib.RULES.spec("BT")))
            for a in (X_BTD, targets_BT, WANTED_BT)
        )
        placed = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
        meshed = value_and_grads(CFG, placed, x, targets, wanted, wanted, True)
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(plain), jax.device_get(meshed)))


def test_chunks_behind_the_last_wanted_position_are_not_computed():
    logp_BT, _ = token_logprobs(
        CFG, transformer.init_params(CFG, 0), X_BTD, np.ones((B, T), np.int32), chunk=CHUNK, wanted_BT=WANTED_BT
    )
    assert (np.asarray(logp_BT) == 0.0).sum() == B * (T - CHUNK)  # at most 4 positions of a row are wanted: one chunk
    assert (np.asarray(logp_BT)[WANTED_BT] < 0.0).all()


@pytest.mark.parametrize("mesh", [None, (2, 2), (1, 2)], ids=str)
def test_unused_ids_have_no_probability_and_their_rows_no_gradient(mesh):
    cfg = dataclasses.replace(CFG, vocab_size=64, num_kv_heads=2, tied=False, unused=((3, 5), (50, 64)))
    used_V = np.setdiff1d(np.arange(64), [3, 4, *range(50, 64)])
    params = transformer.init_params(cfg, 0)
    params["head"]["table_VD"] *= jnp.where(jnp.isin(jnp.arange(64), used_V), 1.0, 3.0)[:, None]  # tempting rows
    x_BTD, targets_BT = X_BTD[:2], np.random.default_rng(1).choice(used_V, (2, T)).astype(np.int32)
    all_BT = np.ones((2, T), bool)

    def loss(params, x_BTD, targets_BT, wanted_BT):
        logp_BT, entropy_BT = token_logprobs(cfg, params, x_BTD, targets_BT, chunk=CHUNK, entropy_grad=True,
                                             wanted_BT=wanted_BT)  # fmt: skip
        return jnp.sum(logp_BT + 0.1 * entropy_BT), (logp_BT, entropy_BT)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    if mesh is None:
        (_, got), grads = run(params, x_BTD, targets_BT, all_BT)
    else:
        with jax.set_mesh(on := mesh_lib.make_mesh(*mesh)):
            spec = jax.NamedSharding(on, mesh_lib.RULES.spec("BT"))
            rows = (jax.device_put(x, spec) for x in (x_BTD, targets_BT, all_BT))
            (_, got), grads = run(mesh_lib.put(params, on, mesh_lib.RULES.storage(params)), *rows)
    norm, table_VD = transformer.head(cfg, params)
    z_BTU = np.einsum("BTD,VD->BTV", norm(jnp.asarray(x_BTD)), table_VD)[..., used_V].astype(np.float64)
    logp_BTU = z_BTU - np.log(np.exp(z_BTU).sum(-1, keepdims=True))
    at_BT1 = np.searchsorted(used_V, targets_BT)[..., None]
    np.testing.assert_allclose(got[0], np.take_along_axis(logp_BTU, at_BT1, -1)[..., 0], atol=2e-5)
    np.testing.assert_allclose(got[1], -(np.exp(logp_BTU) * logp_BTU).sum(-1), atol=2e-5)
    grad_VD = np.asarray(grads["head"]["table_VD"])
    assert (np.delete(grad_VD, used_V, axis=0) == 0.0).all() and (np.abs(grad_VD[used_V]).max(axis=1) > 0).all()


def test_a_target_that_is_no_token_has_ratio_0():
    cfg = dataclasses.replace(CFG, unused=((40, 48),))
    logp_BT, _ = token_logprobs(cfg, transformer.init_params(cfg, 0), X_BTD, np.full((B, T), 41, np.int32), chunk=CHUNK)
    assert np.isfinite(logp_BT).all() and (np.exp(logp_BT) == 0.0).all()
