"""The optimizer: schedule by hand, and AdamW's first step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ropd_jax import configs
from ropd_jax.core.optim import make_optimizer
from tests.helpers import trees_max_diff

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


PARAMS = {  # as the student's, GAD's head and an adapter are named
    "final_norm": {"scale_D": jnp.full((4,), 2.0)},
    "layers": {
        "attn": {"q_DNH": jnp.full((2, 4, 1, 4), 2.0), "q_bias_NH": jnp.full((2, 1, 4), 2.0)},
        "mlp": {"gate_DF": {"a_DR": jnp.full((2, 4, 1), 2.0), "b_RF": jnp.full((2, 1, 4), 2.0)}},
        "attn_norm": {"scale_D": jnp.full((2, 4), 2.0)},
    },
}
KEPT = ("scale_D", "q_bias_NH")
HOW = dict(lr=0.1, schedule="constant", warmup_steps=0, total_steps=1)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", ["matrices", "all"])
def test_decay_shrinks_matrices_and_adapters_but_no_norm_scale_and_no_bias(mask, moments):
    tx = make_optimizer(**(COMMON | HOW | dict(weight_decay=0.5)), moments=moments, decay_mask=mask)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    for path, u in jax.tree_util.tree_leaves_with_path(updates):
        decays = mask == "all" or path[-1].key not in KEPT
        np.testing.assert_allclose(u, -0.1 * 0.5 * 2.0 if decays else 0.0, atol=1e-7)


def test_the_default_mask_is_that_of_the_config():
    default, matrices = (make_optimizer(**(COMMON | HOW | dict(weight_decay=0.5)), **kw)
                         for kw in ({}, {"decay_mask": configs.default().optim.decay_mask}))  # fmt: skip
    a, b = (tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0] for tx in (default, matrices))
    assert trees_max_diff(a, b) == 0.0


def test_with_all_it_is_optax_adamw_and_the_state_has_its_form_with_either_mask():
    with jax.numpy_dtype_promotion("standard"):
        adamw = optax.adamw(optax.constant_schedule(0.1), b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.5)
        theirs = optax.chain(optax.identity(), adamw)
        old = theirs.init(PARAMS)
        want, _ = theirs.update(PARAMS, old, PARAMS)
    for mask in ("matrices", "all"):
        tx = make_optimizer(**(COMMON | HOW | dict(weight_decay=0.5)), decay_mask=mask)
        assert jax.tree.structure(tx.init(PARAMS)) == jax.tree.structure(old)
        got, _ = tx.update(PARAMS, old, PARAMS)  # a state of an earlier checkpoint
    assert trees_max_diff(got, want) == 0.0


def test_unknown_mask_is_named():
    with pytest.raises(ValueError, match=r"decay_mask='norms'; expected one of matrices, all"):
        make_optimizer(**COMMON, lr=1.0, schedule="constant", warmup_steps=0, total_steps=1, decay_mask="norms")


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match=r"'linear'.*constant, cosine"):
        make_optimizer(**COMMON, lr=1.0, schedule="linear", warmup_steps=0, total_steps=1)
