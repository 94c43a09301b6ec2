"""Divergences over the vocabulary against naive float64, and that no [B, T, V] exists."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.divergence import jensen_shannon, normed_hidden, top_k_overlap, vocabulary_divergence
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.parallel import mesh as mesh_lib
from tests.helpers import TINY, trees_max_diff

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def naive(student_V, teacher_V, beta):
    """The generalised JSD of one pair of logits, in float64, term by term."""
    q, p = (np.exp(x - np.logaddexp.reduce(x)) for x in (student_V.astype(np.float64), teacher_V.astype(np.float64)))
    if beta == 0.0:
        return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    if beta == 1.0:
        return sum(b * np.log(b / a) for a, b in zip(p, q, strict=True))
    m = beta * p + (1 - beta) * q
    return beta * (p * np.log(p / m)).sum() + (1 - beta) * (q * np.log(q / m)).sum()


@pytest.mark.parametrize("beta", BETAS)
def test_divergence_and_its_gradient_are_those_of_naive_float64(beta):
    rng = np.random.default_rng(0)
    student, teacher = 2 * rng.normal(size=(2, 9)), 2 * rng.normal(size=(2, 9))

    def total(student):
        pair = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32)) for x in (student, teacher))
        return jensen_shannon(*pair, beta).sum()

    got, grad = jax.value_and_grad(total)(jnp.asarray(student, jnp.float32))
    assert float(got) == pytest.approx(sum(naive(s, t, beta) for s, t in zip(student, teacher, strict=True)), rel=1e-5)
    want, h = np.zeros_like(student), 1e-5
    for i in np.ndindex(student.shape):
        up, down = student.copy(), student.copy()
        up[i] += h
        down[i] -= h
        want[i] = (naive(up[i[0]], teacher[i[0]], beta) - naive(down[i[0]], teacher[i[0]], beta)) / (2 * h)
    np.testing.assert_allclose(grad, want, atol=2e-6)
    assert float(jensen_shannon(jax.nn.log_softmax(teacher[0]), jax.nn.log_softmax(teacher[0]), beta)) == (
        pytest.approx(0.0, abs=1e-6)
    )


def test_reverse_kl_weighs_by_the_student_and_beta_is_bounded():
    student, teacher = jnp.log(jnp.float32([0.5, 0.5])), jnp.log(jnp.float32([0.9, 0.1]))
    assert float(jensen_shannon(student, teacher, 1.0)) == pytest.approx(
        0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(5), 1e-5
    )
    with pytest.raises(ValueError, match=r"beta=1.5; expected 0 .* to 1"):
        jensen_shannon(student, teacher, 1.5)


def pair(T=11):
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, TINY.vocab_size, (8, T)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (8, T))
    return (transformer.init_params(TINY, 0), transformer.init_params(TINY, 1)), tokens, positions


def divergence(student, teacher, tokens, positions, **kw):
    x, y = (transformer.hidden(TINY, p, tokens, positions, jnp.ones_like(tokens)) for p in (student, teacher))
    table = mesh_lib.RULES.gather({"table_VD": teacher["embed"]["table_VD"]})["table_VD"]
    return vocabulary_divergence(TINY, student, x, TINY, table, normed_hidden(TINY, teacher, y), **kw)


def test_chunks_and_temperature_give_what_whole_logits_give():
    (student, teacher), tokens, positions = pair()
    got = divergence(student, teacher, tokens, positions, beta=0.5, temperature=0.7, chunk=4)
    whole = [
        np.asarray(transformer.logits(TINY, p, transformer.hidden(TINY, p, tokens, positions, jnp.ones_like(tokens))))
        for p in (student, teacher)
    ]
    want = [[naive(whole[0][b, t] / 0.7, whole[1][b, t] / 0.7, 0.5) for t in range(11)] for b in range(8)]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_id_that_only_one_of_the_two_has_is_in_neither():
    (student, teacher), tokens, positions = pair()
    mine, others = (dataclasses.replace(TINY, unused=u) for u in (((60, 64),), ((2, 3), (62, 64))))
    x, y = (transformer.hidden(TINY, p, tokens, positions, jnp.ones_like(tokens)) for p in (student, teacher))
    used_V = np.setdiff1d(np.arange(64), [2, 60, 61, 62, 63])
    whole = [np.asarray(transformer.logits(TINY, p, h))[..., used_V] for p, h in ((student, x), (teacher, y))]
    want = [[naive(whole[0][b, t], whole[1][b, t], 0.0) for t in range(11)] for b in range(8)]
    table, hidden = teacher["embed"]["table_VD"], normed_hidden(TINY, teacher, y)
    got = vocabulary_divergence(mine, student, x, others, table, hidden, beta=0.0, chunk=4)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_top_k_overlap_is_that_of_the_sets_from_whole_logits():
    (student, teacher), tokens, positions = pair()
    x, y = (transformer.hidden(TINY, p, tokens, positions, jnp.ones_like(tokens)) for p in (student, teacher))
    overlap, mass = top_k_overlap(TINY, student, x, TINY, teacher, y, k=9, chunk=4)
    mine, others = (np.asarray(transformer.logits(TINY, p, h), np.float64) for p, h in ((student, x), (teacher, y)))
    for b, t in np.ndindex(8, 11):
        top, top_others = (set(np.argsort(-z[b, t])[:9].tolist()) for z in (mine, others))
        p_V = np.exp(mine[b, t] - np.logaddexp.reduce(mine[b, t]))
        assert float(overlap[b, t]) == pytest.approx(len(top & top_others) / 9)
        assert float(mass[b, t]) == pytest.approx(sum(p_V[i] for i in top & top_others), abs=1e-5)
    same, whole = top_k_overlap(TINY, student, x, TINY, student, x, k=TINY.vocab_size)
    np.testing.assert_allclose([same, whole], 1.0, atol=1e-5)


def test_sharded_divergence_and_gradient_equal_unsharded():
    (student, teacher), tokens, positions = pair()

    def loss(student, teacher):
        return divergence(student, teacher, tokens, positions, beta=1.0, chunk=4).mean()

    value, grad = jax.jit(jax.value_and_grad(loss))(student, teacher)
    mesh = mesh_lib.make_mesh(4, 2)
    with jax.set_mesh(mesh):
        tokens, positions = (
            jax.device_put(x, jax.NamedSharding(mesh, mesh_lib.RULES.spec("BT"))) for x in (tokens, positions)
        )
        placed = [mesh_lib.put(p, mesh, mesh_lib.RULES.storage(p)) for p in (student, teacher)]
        value_s, grad_s = jax.jit(jax.value_and_grad(loss))(*placed)
    assert float(value_s) == pytest.approx(float(value), rel=1e-5)
    assert trees_max_diff(jax.device_get(grad), jax.device_get(grad_s)) < 1e-5


def test_no_array_of_positions_times_vocabulary_exists_forward_or_backward():
    (student, teacher), tokens, positions = pair(T=55)

    def loss(student):
        return divergence(student, teacher, tokens[:1], positions[:1], beta=0.5, chunk=5).sum()

    text = jax.jit(jax.grad(loss)).lower(student).compile().as_text()
    sizes = [int(np.prod([int(d) for d in dims.split(",")])) for dims in re.findall(r"f32\[([\d,]+)\]", text)]
    inside = sizes.count(5 * TINY.vocab_size)
    assert inside > 0 and not [n for n in sizes if n == 55 * TINY.vocab_size]


def test_entropy_has_a_gradient_only_where_a_bonus_asks_for_one():
    (params, _), tokens, positions = pair(T=7)
    x = transformer.hidden(TINY, params, tokens, positions, jnp.ones_like(tokens))

    def chunked(x, grad):
        return token_logprobs(TINY, params, x, tokens, chunk=3, temperature=0.8, entropy_grad=grad)[1].sum()

    def naive_entropy(x):
        logp = jax.nn.log_softmax(transformer.logits(TINY, params, x) / 0.8)
        return -jnp.sum(jnp.exp(logp) * logp)

    value, grad = jax.value_and_grad(naive_entropy)(x)
    got, got_grad = jax.value_and_grad(chunked)(x, True)
    assert float(got) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(got_grad, grad, atol=1e-6)
    assert float(jnp.abs(jax.grad(chunked)(x, False)).max()) == 0.0
