"""Token losses and their aggregation against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core.losses import AGGREGATIONS, kl_k3, policy_loss, token_weights
from ropd_jax.core.masked import masked_mean, masked_std, masked_sum

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
LOSS = jnp.asarray([[1.0, 2.0, 6.0, 99.0], [5.0, 99.0, 99.0, 99.0], [99.0] * 4])


@pytest.mark.parametrize(
    ("aggregation", "want"),
    [("token_mean", 14 / 4), ("seq_mean", (3 + 5) / 2), ("seq_mean_token_sum", (9 + 5) / 2)],
)
def test_aggregation_by_hand(aggregation, want):
    assert float(masked_sum(token_weights(MASK, aggregation) * LOSS, MASK)) == pytest.approx(want, rel=1e-6)


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


def test_k3_by_hand_and_its_mean_is_the_kl():
    d = jnp.float32([0.0, 0.5, -0.5])
    np.testing.assert_allclose(kl_k3(jnp.zeros(3), d), [0, np.exp(0.5) - 1.5, np.exp(-0.5) - 0.5], rtol=1e-5)
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    k3 = np.asarray(kl_k3(jnp.float32(np.log(p)), jnp.float32(np.log(q))))
    assert float((p * k3).sum()) == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-6)


def test_masked_values_never_reach_a_reduction():
    x = jnp.float32([1.0, 3.0, jnp.nan, jnp.inf])
    mask = np.array([1, 1, 0, 0], bool)
    assert float(masked_mean(x, mask)) == 2.0
    assert float(masked_std(x, mask)) == pytest.approx(2**0.5)
    assert float(jax.grad(lambda v: masked_sum(v, mask))(x)[2]) == 0.0
