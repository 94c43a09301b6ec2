"""The optimizer: schedule by hand, and AdamW's first step."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core.optim import make_optimizer

COMMON = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=0.0)


def step_sizes(n, **kw):
    """Size of each step under a constant gradient: AdamW then moves by exactly the learning rate."""
    tx = make_optimizer(**(COMMON | kw))
    params = {"w": jnp.zeros(())}
    state, sizes = tx.init(params), []
    for _ in range(n):
        updates, state = tx.update({"w": jnp.float32(3.0)}, state, params)
        sizes.append(-float(updates["w"]))
    return sizes


def test_warmup_is_linear_and_the_first_step_moves():
    got = step_sizes(6, lr=1.0, schedule="constant", warmup_steps=4, total_steps=6)
    np.testing.assert_allclose(got, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-5)


def test_cosine_falls_to_zero_at_the_end():
    got = step_sizes(5, lr=1.0, schedule="cosine", warmup_steps=0, total_steps=4)
    np.testing.assert_allclose(got, [(1 + np.cos(np.pi * i / 4)) / 2 for i in range(5)], atol=1e-5)


def test_gradient_is_clipped_by_its_global_norm():
    tx = make_optimizer(
        **(COMMON | dict(clip_norm=1.0, eps=1.0)), lr=1.0, schedule="constant", warmup_steps=0, total_steps=1
    )
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    updates, _ = tx.update({"a": jnp.float32(30.0), "b": jnp.float32(40.0)}, tx.init(params), params)
    np.testing.assert_allclose([-updates["a"], -updates["b"]], [0.6 / 1.6, 0.8 / 1.8], rtol=1e-5)  # g / (|g| + eps)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"'linear'.*constant, cosine"):
        make_optimizer(**COMMON, lr=1.0, schedule="linear", warmup_steps=0, total_steps=1)
