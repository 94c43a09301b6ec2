"""Adam's moments in fewer bytes: what is stored, how large its error can be, and that it still descends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core import moments
from ropd_jax.core.moments import compact_adam
from ropd_jax.core.optim import make_optimizer
from ropd_jax.parallel import mesh as mesh_lib
from tests.helpers import trees_max_diff

SETTINGS = dict(lr=0.05, schedule="constant", warmup_steps=0, total_steps=1, b1=0.9, b2=0.99, eps=1e-8,
                weight_decay=0.01, clip_norm=1.0)  # fmt: skip
SHAPES = {"q_DNH": (8, 4, 16), "up_DF": (128, 256), "scale_D": (8,), "bias": ()}


def tree(seed, spread=1.0):
    rng = np.random.default_rng(seed)
    drawn = {k: rng.normal(size=s) * np.exp(spread * rng.normal(size=s)) for k, s in SHAPES.items()}
    return {k: jnp.asarray(x, jnp.float32) for k, x in drawn.items()}


def test_eight_bits_are_within_a_step_and_no_second_moment_becomes_zero():
    x = tree(0, spread=3.0)["up_DF"]

    def in_blocks(y):
        return np.abs(np.asarray(y)).reshape(128, 2, 128)

    step = in_blocks(x).max(-1, keepdims=True) / 127
    assert (in_blocks(moments.read_signed(moments.store_signed(x, 5)) - x) <= step * 1.001).all()
    root = jnp.sqrt(moments.read_square(moments.store_square(jnp.square(x), 5)))
    assert (in_blocks(root - jnp.abs(x)) <= step * 1.001).all() and float(root.min()) > 0
    assert float(moments.read_square(moments.store_square(jnp.zeros((4, 8)), 5)).max()) == 0.0


def test_eight_bits_keep_the_mean_over_the_steps():
    """A decay of half a percent is kept, where rounding to nearest would have no effect."""
    x = jnp.asarray(np.linspace(-1, 1, 128), jnp.float32)
    mean = np.mean([moments.read_signed(moments.store_signed(x, i)) for i in range(300)], axis=0)
    np.testing.assert_allclose(mean, x, atol=0.02 / 127)
    y = jnp.concatenate([jnp.ones(1), jnp.full(127, 0.4)])
    for i in range(100):
        y = moments.read_signed(moments.store_signed(jnp.concatenate([jnp.ones(1), y[1:] * 0.995]), i))
    np.testing.assert_allclose(y[1:].mean(), 0.4 * 0.995**100, rtol=0.01)


@pytest.mark.parametrize("form, bytes_each", [("float32", 8), ("bfloat16", 4), ("int8", 2), ("factored", 2)])
def test_bytes_of_the_state(form, bytes_each):
    tx = make_optimizer(**SETTINGS, moments=form)
    params = {"up_DF": jnp.zeros((512, 1024))}
    state = jax.eval_shape(tx.init, params)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert bytes_each <= size / params["up_DF"].size <= bytes_each + 8 / 128 + 0.01


@pytest.mark.parametrize("form, near", [("bfloat16", 0.01), ("int8", 0.15)])
def test_steps_are_near_those_of_adamw(form, near):
    """Same gradients for both; the distance is relative to the distance travelled."""
    params = tree(1)
    found = {}
    for name in ("float32", form):
        tx = make_optimizer(**SETTINGS, moments=name)
        step = jax.jit(tx.update)
        p, state = params, tx.init(params)
        for i in range(20):
            grads = jax.tree.map(lambda a, b: a + 0.5 * b, tree(2), tree(3 + i))
            updates, state = step(grads, state, p)
            p = jax.tree.map(jnp.add, p, updates)
        found[name] = p
    for k in ("q_DNH", "up_DF"):
        way = jnp.linalg.norm(found["float32"][k] - params[k])
        assert float(jnp.linalg.norm(found[form][k] - found["float32"][k]) / way) < near


@pytest.mark.parametrize("form", moments.MOMENTS)
def test_every_form_descends(form):
    target = tree(4)
    tx = make_optimizer(**(SETTINGS | dict(weight_decay=0.0, clip_norm=0.0)), moments=form)

    def loss(p):
        return sum(jnp.mean(jnp.square(p[k] - target[k])) for k in p)

    @jax.jit
    def step(p, state):
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return jax.tree.map(jnp.add, p, updates), state

    p = jax.tree.map(jnp.zeros_like, target)
    state, start = tx.init(p), float(loss(p))
    for _ in range(60):
        p, state = step(p, state)
    assert float(loss(p)) < 0.6 * start


@pytest.mark.parametrize("form", moments.MOMENTS)
def test_sharded_step_equals_unsharded_and_keeps_the_shardings(form):
    params, grads = ({k: tree(s)[k] for k in ("q_DNH", "up_DF")} for s in (5, 6))
    tx = make_optimizer(**SETTINGS, moments=form)

    def two(params, state, grads):
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return params, state

    want, _ = jax.jit(two)(params, tx.init(params), grads)
    mesh = mesh_lib.make_mesh(4, 2)
    with jax.set_mesh(mesh):
        params, grads = (mesh_lib.put(t, mesh, mesh_lib.RULES.storage(t)) for t in (params, grads))
        state = jax.jit(tx.init)(params)
        got, after = jax.jit(two)(params, state, grads)
    assert trees_max_diff(got, want) < (2e-3 if form == "factored" else 1e-5)  # bfloat16 can round either way
    if form != "factored":
        assert jax.tree.map(lambda x: x.sharding, after) == jax.tree.map(lambda x: x.sharding, state)


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match=r"'int4'.*float32, bfloat16, int8, factored"):
        compact_adam("int4", b1=0.9, b2=0.99, eps=1e-8)
