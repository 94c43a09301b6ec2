"""Attention over prompt, pages and stage: the forms for a TPU or GPU against the one for a CPU, and their bits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling import kernel, paged_attention
from ropd_jax.sampling import pages as paging
from ropd_jax.sampling.kernel import Reads, page_sums
from ropd_jax.sampling.kv import KV, NOTHING, Pages, Stored, View
from ropd_jax.sampling.paged_attention import exact_sums
from ropd_jax.types import UserError
from tests.helpers import TINY

B, K, Q, H, S, T, P, M = 3, 2, 2, 8, 4, 6, 2, 7
DEPTH = [2, 0, 3]  # pages of each row
PLACES = ([4, 1], [], [0, 6, 2])  # pages 3 and 5 are free
OTHERS = ([2, 6], [], [5, 3, 1])


def cache(places, dtype):
    """(prompt, pages, stage, view) of three rows of one prompt, whose pages are at these places of the pool."""
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


def attend(places, dtype, platform, monkeypatch, window=None, softcap=0.0):
    monkeypatch.setattr(paged_attention, "platform", lambda: platform)
    monkeypatch.setattr(paged_attention, "PROMPT_BLOCKS", (4, 2))  # of 6 positions
    prompt, pages, stage, view = cache(places, dtype)
    q_BNH, position_B, slot_B, window = queries(dtype, window)
    o_BNH = paged_attention.attend(
        q_BNH, prompt, pages, stage, view, position_B, slot_B, window, scale=0.0, softcap=softcap
    )
    return np.asarray(o_BNH, np.float32)


def queries(dtype, window):
    q_BNH = jnp.asarray(np.random.default_rng(1).standard_normal((B, K * Q, H)), dtype)
    slot_B = jnp.asarray([1, 3, 0], jnp.int32)
    position_B = 5 + jnp.asarray(DEPTH, jnp.int32) * S + slot_B
    return q_BNH, position_B, slot_B, None if window is None else jnp.asarray(window, jnp.int32)


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


@pytest.mark.parametrize("paged", [False, True])
def test_a_cache_refuses_heads_that_do_not_divide_over_the_mesh(paged):
    one_head = dataclasses.replace(TINY, num_kv_heads=1)
    sizes = dict(prompts=2, prompt_len=8, rows=2, pages=2, page=4, dtype="float32")
    words = r"num_heads=4, num_kv_heads=1: expected multiples of the mesh's tp=2; use a mesh with tp=1"
    with jax.set_mesh(mesh_lib.make_mesh(2, 2, jax.devices()[:4])), pytest.raises(UserError, match=words):
        paging.make_cache(one_head, **sizes, paged=paged)


# --------------------------------------------------------------------------------------- the kernel, interpreted


def through_kernel(places, dtype, monkeypatch, window=None, softcap=0.0):
    """The result of `attend` for the same cache; free pages contain NaN."""
    monkeypatch.setattr(paging, "PROMPT_PAGE", 4)
    monkeypatch.setattr(paging, "TILE", 2)
    monkeypatch.setattr(kernel, "POSITIONS", 8)  # blocks of two pages
    prompt, pages, stage, view = cache(places, dtype)
    free_M = np.asarray(view.first_M) < 0
    pages = jax.tree.map(lambda x: jnp.where(free_M[:, None, None, None], jnp.nan, x), pages)
    prompt, pages = paging._in_pages(back(prompt), 2, 4), Pages(*back(pages))
    q_BNH, position_B, slot_B, window = queries(dtype, window)
    done_B = jnp.zeros((B,), bool)

    @jax.jit
    def run(q_BNH, prompt, pages, stage, view, window):
        args = q_BNH, prompt, pages, stage, view, position_B, slot_B, done_B, window
        return paged_attention.attend_paged(*args, scale=0.0, softcap=softcap, interpret=True)

    return np.asarray(run(q_BNH, prompt, pages, stage, view, window), np.float32)


def back(layer):
    """Keys in the kernel's layout: not transposed."""
    return KV(Stored(layer.k.x.swapaxes(2, 3), layer.k.scale), layer.v)


@pytest.mark.parametrize(
    ("dtype", "gap", "window", "softcap"),
    [("float32", 1e-5, None, 0.0), ("bfloat16", 1e-2, None, 0.0), ("float32", 1e-5, 7, 2.0), ("float32", 1e-5, 3, 0.0)],
)
def test_the_kernel_gives_what_plain_attention_gives(dtype, gap, window, softcap, monkeypatch):
    found = through_kernel(PLACES, dtype, monkeypatch, window, softcap)
    want = attend(PLACES, dtype, "cpu", monkeypatch, window, softcap)
    np.testing.assert_allclose(found, want, atol=gap * np.abs(want).max())


def test_the_places_of_the_pages_change_no_bit_in_the_kernel(monkeypatch):
    here, there = (through_kernel(places, "bfloat16", monkeypatch) for places in (PLACES, OTHERS))
    np.testing.assert_array_equal(here, there)


def test_the_kernel_reads_int8_and_skips_rows_without_positions(monkeypatch):
    monkeypatch.setattr(kernel, "POSITIONS", 8)
    rng = np.random.default_rng(3)
    k_MKSH, v_MKSH = (jnp.asarray(rng.standard_normal((M, K, S, H)), jnp.float32) for _ in range(2))
    k, v = (paging.encode(x, jnp.int8) for x in (k_MKSH, v_MKSH))
    q_RKXH = jnp.asarray(rng.standard_normal((3, K, Q, H)), jnp.float32)
    reads = Reads(jnp.asarray([[4, 1, 6], [9999, 0, 0], [2, 3, 9999]]), jnp.asarray([11, 0, 5]), None)
    run = jax.jit(lambda pages: page_sums(q_RKXH, pages, None, reads, scale=1.0, softcap=0.0, interpret=True))
    m_RKX, l_RKX, o_RKXH = map(np.asarray, run(Pages(k, v)))
    assert (m_RKX[1] == NOTHING).all() and not l_RKX[1].any() and not o_RKXH[1].any()
    for r, at, n in ((0, [4, 1, 6], 11), (2, [2, 3], 5)):
        whole = (np.asarray(x.x) * np.asarray(x.scale)[..., None] for x in (k, v))
        keys, values = (x[at].swapaxes(0, 1).reshape(K, -1, H)[:, :n] for x in whole)
        s_KXS = np.einsum("KXH,KSH->KXS", q_RKXH[r], keys)
        p_KXS = np.exp(s_KXS - s_KXS.max(-1, keepdims=True))
        np.testing.assert_allclose(m_RKX[r], s_KXS.max(-1), rtol=1e-5)
        np.testing.assert_allclose(l_RKX[r], p_KXS.sum(-1), rtol=1e-5)
        np.testing.assert_allclose(o_RKXH[r], np.einsum("KXS,KSH->KXH", p_KXS, values), atol=1e-5)


def test_where_the_kernel_cannot_run_it_is_refused_by_name_or_not_chosen(monkeypatch):
    wide = dataclasses.replace(TINY, head_dim=128)
    cases = ("gpu", wide, 64, "TPUs"), ("tpu", TINY, 64, "head_dim"), ("tpu", wide, 24, "chunk")
    for where, cfg, page, word in cases:
        monkeypatch.setattr(paging, "platform", lambda where=where: where)
        assert not paging.uses_kernel("auto", cfg, page)
        with pytest.raises(UserError, match=f"{word}.*sampling.attention=xla"):
            paging.uses_kernel("paged", cfg, page)
    assert paging.uses_kernel("auto", wide, 64) and not paging.uses_kernel("xla", wide, 64)  # on a TPU
    monkeypatch.setattr(paging, "platform", lambda: "cpu")
    assert not paging.uses_kernel("auto", wide, 64) and paging.uses_kernel("paged", TINY, 24)
