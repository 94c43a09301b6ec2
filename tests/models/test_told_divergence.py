"""Divergence of a policy from itself told another prompt: by hand, against whole logits, on meshes, by chunk."""

from __future__ import annotations

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.divergence import jensen_shannon, told_divergence
from ropd_jax.parallel import mesh as mesh_lib
from tests.helpers import TINY, trees_max_diff

TEACHER, POLICY = [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]
REVERSE = 0.2 * np.log(1 / 3) + 0.5 * np.log(5)  # 0.2 log 0.2/0.6 + 0.3 log 1 + 0.5 log 0.5/0.1 = 0.584997


def three_words():
    """(config, parameters) of a head whose logits are the first three of four hidden numbers."""
    cfg = dataclasses.replace(TINY, vocab_size=3, d_model=4, norm_eps=0.0)
    params = transformer.init_params(cfg, 0)
    params["embed"]["table_VD"] = jnp.eye(3, 4)
    return cfg, params


def hidden_of(probabilities):
    """[1, 1, 4] of mean square 1, which the norm leaves as it is; its first three are log-probs up to a constant."""
    z = np.log(probabilities) - np.mean(np.log(probabilities))
    return jnp.asarray([[[*z, np.sqrt(4 - (z**2).sum())]]], jnp.float32)


@pytest.mark.parametrize(("beta", "top_k", "want"), [
    (1.0, 0, REVERSE),
    (0.0, 0, 0.6 * np.log(3) + 0.1 * np.log(1 / 5)),
    (0.5, 0, 0.5 * (0.6 * np.log(1.5) + 0.1 * np.log(1 / 3)) + 0.5 * (0.2 * np.log(0.5) + 0.5 * np.log(5 / 3))),
    (0.0, 1, 0.6 * np.log(3) + 0.4 * np.log(0.4 / 0.8)),  # classes a and not a
    (1.0, 1, 0.2 * np.log(1 / 3) + 0.8 * np.log(2)),
    (0.0, 2, 0.6 * np.log(3) + 0.1 * np.log(1 / 5)),  # the others are one token
])  # fmt: skip
def test_three_words_by_hand(beta, top_k, want):
    cfg, params = three_words()
    got = told_divergence(cfg, params, hidden_of(POLICY), hidden_of(TEACHER), beta=beta, top_k=top_k)
    assert float(got[0, 0]) == pytest.approx(want, rel=2e-5)
    same = told_divergence(cfg, params, hidden_of(TEACHER), hidden_of(TEACHER), beta=beta, top_k=top_k)
    assert float(same[0, 0]) == pytest.approx(0.0, abs=1e-6)


def test_the_gradient_is_the_policys_only():
    cfg, params = three_words()
    x, told_x = hidden_of(POLICY), hidden_of(TEACHER)

    def loss(params, told_x):
        return told_divergence(cfg, params, x, told_x, beta=1.0).sum()

    grads, told = jax.grad(loss, argnums=(0, 1))(params, told_x)
    by_logit = [q * (np.log(q / p) - REVERSE) for q, p in zip(POLICY, TEACHER, strict=True)]  # d KL / d logit
    np.testing.assert_allclose(grads["embed"]["table_VD"], np.outer(by_logit, x[0, 0]), rtol=2e-4, atol=1e-6)
    assert not np.asarray(told).any()


def some(T=11):
    rng = np.random.default_rng(0)
    x, told_x = (jnp.asarray(rng.normal(size=(8, T, 32)), jnp.float32) for _ in range(2))
    wanted = jnp.asarray(rng.random((8, T)) < 0.5).at[3].set(False)
    return transformer.init_params(TINY, 0), x, told_x, wanted


def dense(params, x, told_x, wanted, *, beta, top_k=0):
    """From whole logits, the last class by 1 - sum."""
    mine, others = (jax.nn.softmax(transformer.logits(TINY, params, h) / 0.7) for h in (x, told_x))
    others = jax.lax.stop_gradient(others)
    if top_k:
        ids = jnp.argsort(-others, axis=-1)[..., :top_k]
        picked = [jnp.take_along_axis(p, ids, axis=-1) for p in (mine, others)]
        mine, others = (jnp.concatenate([p, 1 - p.sum(-1, keepdims=True)], axis=-1) for p in picked)
    return jnp.where(wanted, jensen_shannon(jnp.log(mine), jnp.log(others), beta), 0.0)


def chunked(params, x, told_x, wanted, *, beta, top_k=0, chunk=4):
    return told_divergence(
        TINY, params, x, told_x, beta=beta, top_k=top_k, temperature=0.7, chunk=chunk, wanted_BT=wanted
    )


def value_and_grad(f, params, x, *rest, **how):
    def total(params, x):
        found_BT = f(params, x, *rest, **how)
        return jnp.sum(found_BT * jnp.cos(jnp.arange(found_BT.shape[1], dtype=jnp.float32))[None]), found_BT

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, x)


FULL, TOP_K = dict(beta=0.5), dict(beta=1.0, top_k=40)


@pytest.mark.parametrize(("shape", "how"), [
    (None, FULL), (None, TOP_K), ((1, 1, 1), FULL), ((2, 2, 1), FULL), ((4, 2, 1), FULL), ((4, 2, 1), TOP_K),
    ((2, 1, 4), TOP_K), ((1, 2, 1), TOP_K),
])  # fmt: skip
def test_every_mesh_gives_what_whole_logits_give(shape, how):
    params, x, told_x, wanted = some(T=12)
    (_, want), want_grads = value_and_grad(dense, params, x, told_x, wanted, **how)
    if shape is None:
        (_, got), grads = value_and_grad(chunked, params, x, told_x, wanted, **how)
    else:
        mesh = mesh_lib.make_mesh(*shape[:2], jax.devices()[: np.prod(shape)], cp=shape[2])
        with jax.set_mesh(mesh):
            by_token = jax.NamedSharding(mesh, mesh_lib.RULES.spec("BT"))
            placed = [jax.device_put(a, by_token) for a in (x, told_x, wanted)]
            params = mesh_lib.put(params, mesh, mesh_lib.RULES.storage(params))
            (_, got), grads = value_and_grad(chunked, params, *placed, **how)
    np.testing.assert_allclose(jax.device_get(got), want, atol=1e-5)
    assert trees_max_diff(jax.device_get(grads), jax.device_get(want_grads)) < 1e-5


def test_every_token_as_a_class_of_its_own_is_the_whole_vocabulary():
    params, *rest = some()
    for beta in (0.0, 0.5, 1.0):
        (_, whole), whole_grads = value_and_grad(chunked, params, *rest, beta=beta)
        (_, classes), grads = value_and_grad(chunked, params, *rest, beta=beta, top_k=TINY.vocab_size)
        np.testing.assert_allclose(classes, whole, atol=1e-5)
        assert trees_max_diff(grads, whole_grads) < 1e-5


@pytest.mark.parametrize("how", [dict(beta=0.0), dict(beta=0.5, top_k=5)])
def test_the_size_of_a_chunk_changes_nothing(how):
    params, *rest = some()
    found = [chunked(params, *rest, chunk=chunk, **how) for chunk in (1, 3, 11, 64)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=2e-6)


def test_fewer_classes_never_make_the_divergence_larger():
    params, *rest = some()
    found = [np.asarray(chunked(params, *rest, beta=0.5, top_k=k)) for k in (1, 4, 16, 64)]
    for fewer, more in itertools.pairwise(found):
        assert (fewer <= more + 1e-6).all() and (fewer >= -1e-6).all()


def test_a_last_class_below_the_resolution_of_one_keeps_its_digits():
    cfg, params = three_words()
    q, p = ([1 - 2 * tail, tail, tail] for tail in (5e-6, 5e-10))  # in float32, 1 - (1 - 1e-9) is 0
    x, told_x = (hidden_of(np.power(each, 0.1)) for each in (q, p))
    got = told_divergence(cfg, params, x, told_x, beta=1.0, top_k=1, temperature=0.1)
    want = (1 - 1e-5) * np.log((1 - 1e-5) / (1 - 1e-9)) + 1e-5 * np.log(1e-5 / 1e-9)
    assert float(got[0, 0]) == pytest.approx(want, rel=5e-3)


def test_no_array_of_positions_times_vocabulary_exists_forward_or_backward():
    params, x, told_x, wanted = some(T=55)

    def loss(params):
        return chunked(params, x[:1], told_x[:1], wanted[:1], beta=0.5, chunk=5).sum()

    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    sizes = [int(np.prod([int(d) for d in dims.split(",")])) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    assert sizes.count(5 * TINY.vocab_size) > 0 and 55 * TINY.vocab_size not in sizes
