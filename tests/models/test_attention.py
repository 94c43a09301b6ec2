"""Every attention kernel computes the same as a naive one in float32, in value and gradient, packed rows included."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ropd_jax.core.batches import first_fit
from ropd_jax.models import attention as lib
from ropd_jax.models import splash
from ropd_jax.models.attention import self_attention
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError

CASES = {  # T, window of a local layer (0: a global one), soft cap
    "one block": (96, 0, 0.0),
    "many blocks, filled up": (300, 0, 0.0),
    "sliding window": (300, 40, 0.0),
    "soft cap": (260, 0, 3.0),
    "soft cap and window": (260, 129, 3.0),
}
KERNELS = {
    "short": lib._short,
    "xla": lib._xla,
    "splash": functools.partial(lib._splash, interpret=True),  # the TPU kernel, interpreted on the CPU
    "cudnn": functools.partial(lib._cudnn, implementation="xla"),  # the call that cuDNN gets, computed by XLA
}


def inputs(T, *, B=2, N=4, K=2, H=16, seed=0):
    rng = np.random.default_rng(seed)
    q, do = (rng.normal(size=(B, T, N, H)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(B, T, K, H)).astype(np.float32) for _ in range(2))
    segments = np.zeros((B, T), np.int32)
    for b in range(B):  # several sequences per row, then padding
        ends = np.sort(rng.choice(np.arange(1, T - 3), 4 + b, replace=False))
        for s, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            segments[b, start:end] = s
    return q, k, v, segments, do


def reference(q, k, v, segments, window, softcap):
    """The plainest form: one head at a time, the whole score matrix, the mask from its definition."""
    T, N, K = q.shape[1], q.shape[2], k.shape[2]
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    seen = (segments[:, :, None] == segments[:, None, :]) & (s <= t) & ((t - s < window) if window else True)
    heads = []
    for n in range(N):
        score = jnp.einsum("bth,bsh->bts", q[:, :, n], k[:, :, n * K // N]) / q.shape[-1] ** 0.5
        score = softcap * jnp.tanh(score / softcap) if softcap else score
        p = jax.nn.softmax(jnp.where(seen, score, -jnp.inf), axis=-1)
        heads.append(jnp.einsum("bts,bsh->bth", p, v[:, :, n * K // N]))
    return jnp.stack(heads, axis=2)


def value_and_grads(f, q, k, v, do):
    out, vjp = jax.vjp(f, q, k, v)
    return out, *vjp(jnp.asarray(do))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_equals_naive_in_value_and_gradient(kernel, case):
    T, window, softcap = CASES[case]
    if kernel == "cudnn" and softcap:
        pytest.skip("cuDNN has no soft cap: it is refused, see below")
    q, k, v, segments, do = inputs(T)
    do[segments == 0] = 0.0  # the gradient of padding does not count
    pattern = lib.Pattern(16**-0.5, softcap, window)

    def ours(q, k, v):
        return KERNELS[kernel](q, k, v, jnp.asarray(segments), jnp.asarray(bool(window)), pattern=pattern)

    got = jax.jit(lambda *xs: value_and_grads(ours, *xs))(q, k, v, do)
    want = jax.jit(lambda *xs: value_and_grads(lambda q, k, v: reference(q, k, v, segments, window, softcap), *xs))(
        q, k, v, do
    )
    for name, a, b in zip(("o", "dq", "dk", "dv"), got, want, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a[segments > 0], b[segments > 0], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kernel", ["naive", *KERNELS])
def test_a_window_applies_to_local_layers_only(kernel):
    q, k, v, segments, _ = inputs(130, B=1)
    run = (KERNELS | {"naive": lib._naive})[kernel]
    pattern = lib.Pattern(16**-0.5, 0.0, 7)
    for local in (True, False):
        got = jax.jit(functools.partial(run, pattern=pattern))(q, k, v, jnp.asarray(segments), jnp.asarray(local))
        want = reference(q, k, v, segments, 7 if local else 0, 0.0)
        np.testing.assert_allclose(got[segments > 0], want[segments > 0], atol=1e-5)


@pytest.mark.parametrize("impl", ["short", "xla"])
def test_blocks_in_bfloat16_are_near(impl):
    q, k, v, segments, _ = inputs(300)
    got = self_attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), jnp.asarray(segments), impl=impl)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), reference(q, k, v, segments, 0, 0.0), atol=0.05)


@pytest.mark.parametrize("impl", ["short", "xla", "naive"])
def test_attention_on_a_mesh_equals_one_device(impl):
    q, k, v, segments, do = inputs(300, B=4)

    def f(q, k, v, segments, do):
        return value_and_grads(lambda q, k, v: self_attention(q, k, v, segments, impl=impl), q, k, v, do)

    want = jax.jit(f)(q, k, v, segments, do)
    mesh = mesh_lib.make_mesh(4, 2)
    with jax.set_mesh(mesh):
        dims = ("BTNH", "BTKH", "BTKH", "BT", "BTNH")
        placed = [
            jax.device_put(x, jax.NamedSharding(mesh, mesh_lib.out(d)))
            for x, d in zip((q, k, v, segments, do), dims, strict=True)
        ]
        got = jax.jit(f)(*placed)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("impl", ["auto", *lib.KERNELS])
def test_every_kernel_refuses_heads_that_do_not_divide_over_the_mesh(impl):
    q, k, v, segments, _ = inputs(16, N=4, K=1)
    words = r"num_heads=4, num_kv_heads=1: expected multiples of the mesh's tp=2; use a mesh with tp=1"
    with jax.set_mesh(mesh_lib.make_mesh(2, 2, jax.devices()[:4])), pytest.raises(UserError, match=words):
        jax.eval_shape(functools.partial(self_attention, impl=impl), q, k, v, segments)


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("kernel", ["naive", "xla", "splash", "cudnn"])
def test_queries_of_a_part_of_a_row_get_what_they_get_in_the_whole_row(kernel, window):
    q, k, v, segments, do = inputs(512, B=2)
    do[segments == 0] = 0.0
    pattern = lib.Pattern(0.25, 0.0, window)
    run = functools.partial((KERNELS | {"naive": lib._naive})[kernel], pattern=pattern)

    def part(at, q, k, v, do):
        return value_and_grads(
            lambda *qkv: run(*qkv, jnp.asarray(segments), jnp.asarray(bool(window)), at=at), q, k, v, do
        )

    parts = [jax.jit(part)(at, q[:, at : at + 256], k, v, do[:, at : at + 256]) for at in (0, 256)]
    got = [np.concatenate([a, b], axis=1) for a, b in zip(*(p[:2] for p in parts), strict=True)]
    got += [a + b for a, b in zip(*(p[2:] for p in parts), strict=True)]  # keys get a gradient from each part
    want = value_and_grads(lambda q, k, v: reference(q, k, v, segments, window, 0.0), q, k, v, do)
    for name, a, b in zip(("o", "dq", "dk", "dv"), got, want, strict=True):
        np.testing.assert_allclose(a[segments > 0], b[segments > 0], atol=1e-5, rtol=1e-5, err_msg=name)


def test_no_score_matrix_of_a_whole_row_exists():
    T = 1024
    q, k, v, segments, do = inputs(T, B=1, N=2, K=1, H=8)
    compiled = (
        jax.jit(lambda *xs: value_and_grads(lambda q, k, v: self_attention(q, k, v, segments, impl="xla"), *xs))
        .lower(q, k, v, do)
        .compile()
    )
    assert f"{T},{T}" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * T * T  # half of one head's scores in float32


def test_key_blocks_of_other_sequences_are_not_visited():
    """Counted: the pairs of blocks that the loops of one packed row run through."""
    segments = np.repeat(np.arange(1, 9, dtype=np.int32), 128)[None]
    first = np.asarray(lib.first_seen(segments, False, 0)).reshape(8, 128)
    visited = sum(i + 1 - first[i].min() // 128 for i in range(8))
    assert visited == 8  # of the 36 below the diagonal


def packed(sequences, length, seed):
    """Segments of rows of this length that hold sequences of log-normal lengths, 3,600 in the mean, 8,342 at most."""
    rng = np.random.default_rng(seed)
    sizes = [150 + min(8192, int(n)) for n in rng.lognormal(np.log(3600) - 0.32, 0.8, sequences)]
    places = first_fit([min(n, length) for n in sizes], length)
    segments = np.zeros((len(places), length), np.int32)
    for row, place in zip(segments, places, strict=True):
        ids = np.repeat(np.arange(1, len(place) + 1, dtype=np.int32), [min(sizes[i], length) for i in place])
        row[: len(ids)] = ids
    return segments


def seen_pairs(segments_T, window=0):
    """[T, T] of a row, from the definition; padding sees itself."""
    t, s = np.arange(len(segments_T))[:, None], np.arange(len(segments_T))[None]
    seen = (segments_T[:, None] == segments_T[None]) & (s <= t) & ((t - s < window) if window else True)
    return seen & ((segments_T > 0)[:, None] | (t == s))


@pytest.mark.parametrize("window", [0, 700])
def test_splash_computes_the_pairs_of_blocks_that_hold_a_visible_pair_and_no_others(window):
    block, computed, needed = 512, 0, 0
    for row in packed(8, 5120, seed=1):
        first = lib.first_seen(jnp.asarray(row)[None], bool(window), window)[0]
        plan = splash.schedule(jnp.asarray(row), first, block)
        n = len(row) // block
        holds = seen_pairs(row, window).reshape(n, block, n, block).any(axis=(1, 3))
        np.testing.assert_array_equal(plan.runs_QS, holds)
        computed, needed = computed + int(plan.runs_QS.sum()), needed + holds.sum()
        i, j = np.nonzero(np.asarray(plan.runs_QS))
        np.testing.assert_array_equal(plan.keys_QS[i, j], j)
        np.testing.assert_array_equal(plan.queries_QS[i, j], i)
        fetched = np.asarray(plan.keys_QS)  # a row of the grid fetches each block that it needs once, and no other
        assert all(set(fetched[i]) == set(np.nonzero(holds[i])[0]) for i in range(n))
        assert all(set(np.asarray(plan.queries_QS)[:, j]) == set(np.nonzero(holds[:, j])[0]) for j in range(n))
    assert computed == needed


def test_rows_of_answers_of_mean_3600_cost_the_pairs_of_blocks_that_they_need():
    segments, block = packed(128, 10_240, seed=0), 512
    rows, n = len(segments), 10_240 // block
    first = np.asarray(lib.first_seen(jnp.asarray(segments), False, 0))
    plans = jax.vmap(lambda s, f: splash.schedule(s, f, block))(jnp.asarray(segments), jnp.asarray(first))
    lowest = np.where(segments > 0, first, np.arange(10_240)).reshape(rows, n, block).min(axis=2) // block
    needed = (np.arange(n) - lowest + 1).sum()
    assert plans.runs_QS.sum() == needed
    assert 1.7 < rows * n * (n + 1) / 2 / needed < 1.8  # over the whole lower triangle


def test_the_kernel_does_not_touch_blocks_of_other_sequences():
    q, k, v, _, do = inputs(384, B=1)
    segments = np.repeat(np.array([1, 2, 2], np.int32), 128)[None]
    v[:, :128] = np.nan  # 0 x NaN would be NaN where the block is computed and masked
    pattern = lib.Pattern(0.25, 0.0, 0)

    def f(q, k, v):
        return lib._splash(q, k, v, jnp.asarray(segments), jnp.asarray(False), pattern=pattern, interpret=True)

    for x in jax.jit(lambda *xs: value_and_grads(f, *xs))(q, k, v, do):
        assert np.isfinite(x[:, 128:]).all()


def test_first_token_seen_by_hand():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0]], np.int32)
    np.testing.assert_array_equal(lib.first_seen(segments, False, 0), [[0, 0, 0, 3, 3, 5, 5]])
    np.testing.assert_array_equal(lib.first_seen(segments, True, 2), [[0, 0, 1, 3, 3, 5, 5]])
    np.testing.assert_array_equal(lib.first_seen(segments, False, 2), [[0, 0, 0, 3, 3, 5, 5]])


def test_choice_of_kernel():
    choose = functools.partial(lib.choose, rows=8)
    f32, bf16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
    assert choose("auto", "tpu", 64, f32, 0.0) == "splash"
    assert choose("auto", "gpu", 4096, bf16, 0.0) == "cudnn"
    assert choose("auto", "gpu", 4096, f32, 0.0) == "xla"  # cuDNN has no float32
    assert choose("auto", "gpu", 4096, bf16, 50.0) == "xla"  # and no soft cap
    assert choose("auto", "cpu", 4096, f32, 0.0) == "xla"
    assert choose("auto", "cpu", 256, f32, 0.0) == "short"
    assert choose("auto", "cpu", 257, f32, 0.0) == "xla"
    assert lib.choose("auto", "cpu", 512, f32, 0.0, rows=2) == "short"
    assert choose("xla", "tpu", 64, f32, 0.0) == "xla"
    with pytest.raises(UserError, match=r"optim.attention='flash'.*splash"):
        choose("flash", "cpu", 64, f32, 0.0)
    assert choose("auto", "cpu", 64, f32, 0.0, cp=2) == "xla"
    with pytest.raises(UserError, match=r"'short' does not support mesh.cp=2"):
        choose("short", "cpu", 64, f32, 0.0, cp=2)
    with pytest.raises(UserError, match=r"'cudnn' with dtype float32"):
        choose("cudnn", "gpu", 64, f32, 0.0)
