"""Attention over prompt, pages and stage: the form for a TPU or GPU against the one for a CPU, and its bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.sampling import pages as paging
from ropd_jax.sampling.pages import KV, Stored, View, exact_sums

B, K, Q, H, S, T, P, M = 3, 2, 2, 8, 4, 6, 2, 7
DEPTH = [2, 0, 3]  # pages of each row
PLACES = ([4, 1], [], [0, 6, 2])  # pages 3 and 5 are free
OTHERS = ([2, 6], [], [5, 3, 1])


def cache(places, dtype):
    """(prompt, pages, stage, view) of three rows of one prompt, whose pages lie at these places of the pool."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32) * 3

    own = {(b, d): (draw(K, H, S), draw(K, S, H)) for b in range(B) for d in range(DEPTH[b])}
    prompt, stage = (draw(P, K, H, T), draw(P, K, T, H)), (draw(B, K, S, H), draw(B, K, S, H))
    k_M, v_M = np.full((M, K, H, S), 9.0, np.float32), np.full((M, K, S, H), -9.0, np.float32)
    owner_M, first_M, table_BD = np.zeros(M, np.int32), np.full(M, -1, np.int32), np.zeros((B, 4), np.int32)
    for (b, d), (k, v) in own.items():
        m = places[b][d]
        k_M[m], v_M[m], owner_M[m], first_M[m], table_BD[b, d] = k, v, b, 5 + d * S, m
    view = View(
        np.array([[0, 1], [2, 0]], np.int32), np.array([0, 1, 2], np.int32), np.array([5, 5], np.int32),
        owner_M, first_M, table_BD, np.array(DEPTH, np.int32),
    )  # fmt: skip
    layers = (KV(*(Stored(jnp.asarray(x, dtype), None) for x in kv)) for kv in (prompt, (k_M, v_M), stage))
    return *layers, jax.tree.map(jnp.asarray, view)


def attend(places, dtype, platform, monkeypatch, window=None):
    monkeypatch.setattr(paging, "platform", lambda: platform)
    monkeypatch.setattr(paging, "PROMPT_BLOCKS", (4, 2))  # of 6 positions
    prompt, pages, stage, view = cache(places, dtype)
    q_BNH = jnp.asarray(np.random.default_rng(1).standard_normal((B, K * Q, H)), dtype)
    slot_B = jnp.asarray([1, 3, 0], jnp.int32)
    position_B = 5 + jnp.asarray(DEPTH, jnp.int32) * S + slot_B
    window = None if window is None else jnp.asarray(window, jnp.int32)
    o_BNH = paging.attend(q_BNH, prompt, pages, stage, view, position_B, slot_B, window, scale=0.0, softcap=0.0)
    return np.asarray(o_BNH, np.float32)


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 2e-6), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("window", [None, 7, 3])
def test_all_pages_at_once_give_what_one_after_another_give(dtype, gap, window, monkeypatch):
    at_once = attend(PLACES, dtype, "tpu", monkeypatch, window)
    one_by_one = attend(PLACES, dtype, "cpu", monkeypatch, window)
    np.testing.assert_allclose(at_once, one_by_one, atol=gap * np.abs(one_by_one).max())


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_places_of_the_pages_change_no_bit(platform, monkeypatch):
    for dtype in ("float32", "bfloat16"):
        here, there = (attend(places, dtype, platform, monkeypatch) for places in (PLACES, OTHERS))
        np.testing.assert_array_equal(here, there)


def test_sums_of_digits_are_exact_in_any_order_and_near_the_true_ones():
    rng = np.random.default_rng(2)
    x_MXJ = (rng.standard_normal((500, 2, 3)) * np.exp(4 * rng.standard_normal((500, 2, 1)))).astype(np.float32)
    x_MXJ[:7] = 0.0
    owner_M = rng.integers(0, 4, 500)  # row 3 of these owns none
    owner_M[owner_M == 3] = 9
    own_BM = owner_M[None] == np.arange(4)[:, None]
    order = rng.permutation(500)
    for parts, gap in ((3, 2.0**-23), (2, 2.0**-15)):
        sums, again = (
            np.asarray(
                exact_sums(
                    jnp.asarray(own_BM[:, at]), jnp.asarray((owner_M[at] < 4)[:, None] * np.ones((1, 2), np.float32)),
                    jnp.asarray(x_MXJ[at]), jnp.asarray(np.abs(x_MXJ[at]).max(-1)), parts, size, 500 // size,
                )
            )
            for at, size in ((np.arange(500), 500), (order, 50))
        )  # fmt: skip
        np.testing.assert_array_equal(sums, again)
        for b in range(4):
            mine = x_MXJ[own_BM[b]].astype(np.float64)
            top = np.abs(mine).max(axis=(0, 2), initial=0.0)[:, None]
            assert (np.abs(sums[b] - mine.sum(0)) <= gap * top * max(1, len(mine) ** 0.5)).all()
    assert (sums[3] == 0).all()
