"""Token losses and their aggregation against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core.losses import (
    AGGREGATIONS,
    kl_estimate,
    policy_loss,
    segment_mean,
    segment_sum,
    sequence_logp,
    token_weights,
    truncated_is_loss,
)
from ropd_jax.core.masked import masked_mean, masked_std, masked_sum

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
LOSS = jnp.asarray([[1.0, 2.0, 6.0, 99.0], [5.0, 99.0, 99.0, 99.0], [99.0] * 4])


@pytest.mark.parametrize(
    ("aggregation", "want"),
    [
        ("token_mean", 14 / 4),
        ("seq_mean", (3 + 5) / 2),
        ("seq_mean_token_sum", (9 + 5) / 2),
        ("seq_mean_token_sum_norm", (9 + 5) / 2 / 10),
    ],
)
def test_aggregation_by_hand(aggregation, want):
    weights = token_weights(MASK, aggregation, max_tokens=10)
    assert float(masked_sum(weights * LOSS, MASK)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_sequences_that_share_a_row_weigh_what_they_weigh_alone(aggregation):
    mask = np.array([[0, 1, 1, 1, 0, 1, 0, 0]], bool)
    length = np.array([[0, 3, 3, 3, 0, 1, 0, 0]], np.int32)
    loss = jnp.asarray([[99.0, 1.0, 2.0, 6.0, 99.0, 5.0, 99.0, 99.0]])
    got = masked_sum(token_weights(mask, aggregation, length) * loss, mask)
    assert float(got) == pytest.approx(float(masked_sum(token_weights(MASK, aggregation) * LOSS, MASK)), rel=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_batch_without_tokens_weighs_nothing(aggregation):
    assert float(jnp.abs(token_weights(np.zeros((2, 3), bool), aggregation)).sum()) == 0.0


def test_unknown_aggregation_is_named():
    with pytest.raises(ValueError, match="batch_mean"):
        token_weights(MASK, "batch_mean")


@pytest.mark.parametrize(
    ("ratio", "advantage", "want", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.56, True),  # 1.28 * 2
        (0.5, 2.0, -1.0, False),  # the minimum is the unclipped one
        (0.5, -2.0, 1.6, True),  # 0.8 * 2
        (1.5, -2.0, 3.0, False),
        (9.0, -2.0, 6.0, True),  # dual clip 3
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, want, clipped):
    loss, is_clipped = policy_loss(
        jnp.log(jnp.float32([[ratio]])),
        jnp.zeros((1, 1)),
        jnp.float32([[advantage]]),
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=3.0,
    )
    assert float(loss[0, 0]) == pytest.approx(want, rel=1e-5) and bool(is_clipped[0, 0]) is clipped


def test_clipped_token_has_no_gradient_and_on_policy_gradient_is_the_advantage():
    def f(logp, old):
        return policy_loss(logp, old, jnp.float32([[2.0]]), clip_low=0.2, clip_high=0.28)[0].sum()

    assert float(jax.grad(f)(jnp.log(jnp.float32([[1.5]])), jnp.zeros((1, 1)))[0, 0]) == 0.0
    assert float(jax.grad(f)(jnp.zeros((1, 1)), jnp.zeros((1, 1)))[0, 0]) == pytest.approx(-2.0)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("k1", [0.0, -0.5, 0.5]),
        ("k2", [0.0, 0.125, 0.125]),
        ("k3", [0.0, np.exp(0.5) - 1.5, np.exp(-0.5) - 0.5]),
    ],
)
def test_kl_estimates_by_hand(kind, want):
    got = kl_estimate(jnp.zeros(3), jnp.float32([0.0, 0.5, -0.5]), kind)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_k1_and_k3_have_the_kl_as_mean_and_k2_and_k3_pull_towards_the_reference():
    logits, q = jnp.log(jnp.float32([0.7, 0.2, 0.1])), np.array([0.5, 0.3, 0.2])
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    kl = float((p * np.log(p / q)).sum())
    for kind in ("k1", "k3"):
        assert float((p * np.asarray(kl_estimate(jnp.log(p), jnp.log(q), kind))).sum()) == pytest.approx(kl, abs=1e-6)

    def mean_of_losses(logits, kind):  # tokens are sampled: p weighs them, and has no gradient
        return jnp.sum(jnp.float32(p) * kl_estimate(jax.nn.log_softmax(logits), jnp.float32(np.log(q)), kind))

    want = p * (np.log(p / q) - kl)  # d KL / d logits
    np.testing.assert_allclose(jax.grad(mean_of_losses)(logits, "k1"), 0.0, atol=1e-6)
    np.testing.assert_allclose(jax.grad(mean_of_losses)(logits, "k2"), want, atol=1e-6)
    assert float(jnp.vdot(jax.grad(mean_of_losses)(logits, "k3"), jnp.float32(want))) > 0


def test_truncated_importance_weights_by_hand():
    def total(logp):
        loss, capped = truncated_is_loss(logp, jnp.zeros((1, 3)), jnp.float32([[2.0, 2.0, -1.0]]), cap=2.0)
        return loss.sum(), capped

    logp = jnp.log(jnp.float32([[1.5, 4.0, 4.0]]))
    (_, capped), grad = jax.value_and_grad(total, has_aux=True)(logp)
    np.testing.assert_allclose(grad, [[-3.0, -4.0, 2.0]], rtol=1e-5)  # -min(ratio, 2) * A
    np.testing.assert_array_equal(capped, [[False, True, True]])


SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 3]], np.int32)


def test_segment_sums_are_those_of_a_loop_over_packed_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=SEGMENTS.shape).astype(np.float32)
    mask = (rng.random(SEGMENTS.shape) < 0.7) & (SEGMENTS > 0)
    x = np.where(mask, x, np.nan)
    for row in range(2):
        for t in range(SEGMENTS.shape[1]):
            own = x[row][mask[row] & (SEGMENTS[row] == SEGMENTS[row, t])].astype(np.float64)
            assert float(segment_sum(jnp.asarray(x), mask, SEGMENTS)[row, t]) == pytest.approx(own.sum(), abs=1e-6)
            mean = own.mean() if own.size else 0.0
            assert float(segment_mean(jnp.asarray(x), mask, SEGMENTS)[row, t]) == pytest.approx(mean, abs=1e-6)


def test_gspo_equals_the_sequence_loss_written_out_packed_or_not():
    """Loss and gradient of mean_i -min(s_i A_i, clip(s_i) A_i), s_i = exp(mean_t delta), against plain sequences."""
    rng = np.random.default_rng(1)
    lengths, advantages = (3, 2, 5), (1.0, -1.0, 0.5)
    deltas = [0.1 * rng.normal(size=n) for n in lengths]
    deltas[0] += 0.3  # beyond the clip, and with it without a gradient
    value, grads = 0.0, []
    for d, a in zip(deltas, advantages, strict=True):
        s = np.exp(d.mean())
        clipped = np.clip(s, 0.9, 1.1) * a
        value += -min(s * a, clipped) / 3
        grads.append(np.full(len(d), -s * a / len(d) / 3 if s * a <= clipped else 0.0))

    mask, segments = np.zeros((2, 8), bool), np.zeros((2, 8), np.int32)
    logp, adv = np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float32)
    want = np.zeros((2, 8))
    for i, (row, at) in enumerate([(0, 1), (0, 5), (1, 2)]):  # a prompt token before each, two sequences in row 0
        n = lengths[i]
        segments[row, at - 1 : at + n] = 1 + (at > 4)
        mask[row, at : at + n], logp[row, at : at + n], adv[row, at : at + n] = True, deltas[i], advantages[i]
        want[row, at : at + n] = grads[i]
    count = np.where(mask, np.asarray(segment_sum(jnp.ones((2, 8)), mask, segments)), 1.0)

    def loss(logp):
        now, old = sequence_logp(logp, jnp.zeros((2, 8)), mask, segments)
        per_token = policy_loss(now, old, jnp.asarray(adv), clip_low=0.1, clip_high=0.1)[0]
        return masked_sum(per_token / jnp.float32(count) / 3, mask)

    got, grad = jax.value_and_grad(loss)(jnp.asarray(logp))
    assert float(got) == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(grad, want, atol=1e-6)


def test_masked_values_never_reach_a_reduction():
    x = jnp.float32([1.0, 3.0, jnp.nan, jnp.inf])
    mask = np.array([1, 1, 0, 0], bool)
    assert float(masked_mean(x, mask)) == 2.0
    assert float(masked_std(x, mask)) == pytest.approx(2**0.5)
    assert float(jax.grad(lambda v: masked_sum(v, mask))(x)[2]) == 0.0
