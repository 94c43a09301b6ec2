"""Exact attention in blocks, in plain JAX: the path of the CPU, and of any device that has no kernel for it.

`flash` is for long rows, `short` for short ones.

A query at index t sees the keys from ``first_T[t]`` to t. One number is enough: the segments of a packed row are next
to each other, so the segment of a query is a range; causality ends it at t; a sliding window moves its beginning. A row
that packs sequences of 3 and 4 tokens and one token of padding:

    t         0 1 2 3 4 5 6 7
    segment   1 1 1 2 2 2 2 0
    first_T   0 0 0 3 3 3 3 7        with a window of 2:  0 0 1 3 3 4 5 7

Scores exist for one block of queries and one of keys at a time, with a running maximum and sum (online softmax). Key
blocks that no query of a block can see are not visited, so a packed row costs about as much as its sequences do.
The backward pass recomputes the scores from the saved log-sum-exp. Rows run one after the other: each has its own
ranges, and the matmuls of one row fill the cores of a CPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ropd_jax.core.batches import SHARED

NEVER = -1e30  # a score that is not seen; finite, so that the difference of two is a number


class Shape(NamedTuple):
    """Static numbers: ``scale`` on Q K^T, ``softcap`` (0 is none), queries and keys of a block."""

    scale: float
    softcap: float
    block: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def flash(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, first_BT: jax.Array, at: jax.Array | int, shape: Shape
) -> jax.Array:
    """Softmax attention of every query over the keys ``first_BT`` to its own index; softmax in float32.

    Args:
        q_BTNH: head n belongs to key/value head n // (N/K).
        first_BT: int32, at most a query's own index.
        at: the index of the first query: 0, or where these queries are part of a row, whose keys are all there.

    Returns:
        o_BTNH in the dtype of ``q_BTNH``.
    """
    return _forward(q_BTNH, k_BSKH, v_BSKH, first_BT, at, shape)[0]


def _forward(q_BTNH, k_BSKH, v_BSKH, first_BT, at, shape: Shape):
    B, T, N, H = q_BTNH.shape
    q, k, v, first = _blocks(q_BTNH, k_BSKH, v_BSKH, first_BT, at, shape.block)
    o, lse = jax.lax.map(lambda row: _row_forward(shape, at, *row), (q, k, v, first))
    o_BTNH = o.transpose(0, 1, 4, 2, 3, 5).reshape(B, -1, N, H)[:, :T]
    o_BTNH, lse = checkpoint_name(o_BTNH, "attention"), checkpoint_name(lse, "attention")  # see transformer.REMAT
    return o_BTNH, (q_BTNH, k_BSKH, v_BSKH, first_BT, at, o_BTNH, lse)


def _backward(shape: Shape, saved, do_BTNH):
    q_BTNH, k_BSKH, v_BSKH, first_BT, at, o_BTNH, lse = saved
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q, k, v, first = _blocks(q_BTNH, k_BSKH, v_BSKH, first_BT, at, shape.block)
    do = _query_blocks(do_BTNH, K, shape.block)
    delta_BTN1 = jnp.sum(do_BTNH.astype(jnp.float32) * o_BTNH.astype(jnp.float32), axis=-1, keepdims=True)
    delta = _query_blocks(delta_BTN1, K, shape.block)[..., 0]
    dq, dk, dv = jax.lax.map(lambda row: _row_backward(shape, at, *row), (q, k, v, first, do, delta, lse))
    dq_BTNH = dq.transpose(0, 1, 4, 2, 3, 5).reshape(B, -1, N, H)[:, :T]
    dk_BSKH, dv_BSKH = (x.transpose(0, 1, 3, 2, 4).reshape(B, -1, K, H)[:, :S] for x in (dk, dv))
    return dq_BTNH.astype(q_BTNH.dtype), dk_BSKH.astype(k_BSKH.dtype), dv_BSKH.astype(v_BSKH.dtype), None, None


flash.defvjp(_forward, _backward)


def _query_blocks(x_BTNH, K: int, block: int):
    """[B, T, N, H] -> [B, blocks, K, G, t, H], padded with zeros: 10 tokens in blocks of 4 become 3 blocks."""
    B, T, N, H = x_BTNH.shape
    x_BTNH = jnp.pad(x_BTNH, ((0, 0), (0, -T % block), (0, 0), (0, 0)))
    return x_BTNH.reshape(B, -1, block, K, N // K, H).transpose(0, 1, 3, 4, 2, 5)


def _blocks(q_BTNH, k_BSKH, v_BSKH, first_BT, at, block: int):
    """Queries as `_query_blocks`, keys and values as [B, blocks, K, s, H], ranges as [B, blocks, t]."""
    (B, S, K, H), T = k_BSKH.shape, q_BTNH.shape[1]
    pad = -T % block
    keys = [
        jnp.pad(x, ((0, 0), (0, -S % block), (0, 0), (0, 0))).reshape(B, -1, block, K, H).transpose(0, 1, 3, 2, 4)
        for x in (k_BSKH, v_BSKH)
    ]
    beyond_BT = jnp.broadcast_to(at + jnp.arange(T, T + pad, dtype=jnp.int32)[None], (B, pad))  # each sees itself only
    first = jnp.concatenate([first_BT, beyond_BT], axis=1).reshape(B, -1, block)
    return _query_blocks(q_BTNH, K, block), *keys, first


def _scores(q, k, first_t, at, i, j, shape: Shape):
    """(scores [K, G, t, s], slope) of one pair of blocks, as `_bent_scores`."""
    within = jnp.arange(shape.block, dtype=jnp.int32)
    t, key = (at + i * shape.block + within)[:, None], (j * shape.block + within)[None]
    seen = (key <= t) & (key >= first_t[:, None])
    return _bent_scores("KGtH,KsH->KGts", q, k, seen[None, None], shape)


def _bent_scores(contract: str, q, k, seen, shape: Shape):
    """(scores in float32 with NEVER where not seen, d score / d scaled product, or None without a soft cap)."""
    s = jnp.einsum(contract, q, k, preferred_element_type=jnp.float32) * shape.scale
    slope = None
    if shape.softcap:
        bent = jnp.tanh(s / shape.softcap)
        s, slope = shape.softcap * bent, 1.0 - jnp.square(bent)
    return jnp.where(seen, s, jnp.float32(NEVER)), slope


def _at(x, i):
    return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _key_blocks(shape: Shape, at, i, first_t, k):
    """(the first block of keys that a block of queries sees, the one after the last)."""
    end = (at + (i + 1) * shape.block - 1) // shape.block + 1
    return jnp.min(first_t) // shape.block, jnp.minimum(end, len(k))


def _row_forward(shape: Shape, at, q, k, v, first):
    """(o [blocks, K, G, t, H], log-sum-exp [blocks, K, G, t]) of one row."""

    def queries(xs):
        i, q_i, first_t = xs

        def keys(j, carry):
            top, total, o = carry
            s, _ = _scores(q_i, _at(k, j), first_t, at, i, j, shape)
            new_top = jnp.maximum(top, jnp.max(s, axis=-1))
            # what was summed relative to the old maximum is scaled to the new one: top 1 -> 3 gives e^-2
            p, shrink = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            v_j = _at(v, j)
            more = jnp.einsum("KGts,KsH->KGtH", p.astype(v_j.dtype), v_j, preferred_element_type=jnp.float32)
            return new_top, total * shrink + jnp.sum(p, axis=-1), o * shrink[..., None] + more

        nothing = jnp.zeros(q_i.shape, jnp.float32)
        carry = (jnp.full(q_i.shape[:-1], NEVER, jnp.float32), nothing[..., 0], nothing)
        begin, end = _key_blocks(shape, at, i, first_t, k)
        top, total, o = jax.lax.fori_loop(begin, end, keys, carry)
        return (o / total[..., None]).astype(q_i.dtype), top + jnp.log(total)

    return jax.lax.map(queries, (jnp.arange(len(q), dtype=jnp.int32), q, first))


def _row_backward(shape: Shape, at, q, k, v, first, do, delta, lse):
    """(dq, dk, dv) of one row in float32, laid out as the inputs."""

    def queries(carry, xs):
        i, q_i, first_t, do_i, delta_t, lse_t = xs

        def keys(j, carry):
            dk, dv, dq_i = carry
            k_j, v_j = _at(k, j), _at(v, j)
            s, slope = _scores(q_i, k_j, first_t, at, i, j, shape)
            p = jnp.exp(s - lse_t[..., None])
            dp = jnp.einsum("KGtH,KsH->KGts", do_i, v_j, preferred_element_type=jnp.float32)
            ds = p * (dp - delta_t[..., None]) * shape.scale  # softmax backward; delta = sum of do * o
            ds = (ds if slope is None else ds * slope).astype(k_j.dtype)
            dq_i = dq_i + jnp.einsum("KGts,KsH->KGtH", ds, k_j, preferred_element_type=jnp.float32)
            dk_j = jnp.einsum("KGts,KGtH->KsH", ds, q_i, preferred_element_type=jnp.float32)
            dv_j = jnp.einsum("KGts,KGtH->KsH", p.astype(do_i.dtype), do_i, preferred_element_type=jnp.float32)
            dk = jax.lax.dynamic_update_index_in_dim(dk, _at(dk, j) + dk_j, j, 0)
            dv = jax.lax.dynamic_update_index_in_dim(dv, _at(dv, j) + dv_j, j, 0)
            return dk, dv, dq_i

        nothing = jnp.zeros(q_i.shape, jnp.float32)
        begin, end = _key_blocks(shape, at, i, first_t, k)
        dk, dv, dq_i = jax.lax.fori_loop(begin, end, keys, (*carry, nothing))
        return (dk, dv), dq_i

    nothing = jnp.zeros(k.shape, jnp.float32)
    xs = (jnp.arange(len(q), dtype=jnp.int32), q, first, do, delta, lse)
    (dk, dv), dq = jax.lax.scan(queries, (nothing, nothing), xs)
    return dq, dk, dv


# ------------------------------------------------------------------------------------------------------- short rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def short(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    first_BT: jax.Array,
    segments_BT: jax.Array | None,
    shape: Shape,
) -> jax.Array:
    """The same as `flash`, as a staircase: a block of queries meets all keys up to its own end, for all rows at once.

    With blocks of 64, queries 0-63 meet keys 0-63, queries 64-127 meet keys 0-127, and so on. These are few large
    matmuls instead of many small ones in a loop: on a CPU twice as fast up to 512 positions, where no block would be
    skipped. The scores of one block of queries and all keys exist at a time.

    With ``segments_BT`` a query also sees the prompt that its segment shares with others (`sees`).
    """
    return _short_forward(q_BTNH, k_BTKH, v_BTKH, first_BT, segments_BT, shape)[0]


def sees(
    query_t: jax.Array,
    key_s: jax.Array,
    first_Bt: jax.Array,
    segments: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """bool [B, t, s]: whether a query sees a key. Indices ``query_t`` and ``key_s`` count from the row's beginning.

    Args:
        segments: those of the queries [B, t] and of the keys [B, s], in rows with shared prompts
            (`core.batches.make_batch`): a query of segment n also sees segment ``n - n % SHARED``.
    """
    past_1ts = key_s[None, None] <= query_t[None, :, None]
    seen_Bts = past_1ts & (key_s[None, None] >= first_Bt[..., None])
    if segments is None:
        return seen_Bts
    own_Bt, others_Bs = segments
    return seen_Bts | (past_1ts & (others_Bs[:, None] == (own_Bt - own_Bt % SHARED)[..., None]))


def _short_forward(q_BTNH, k_BTKH, v_BTKH, first_BT, segments_BT, shape: Shape):
    B, T, N, H = q_BTNH.shape
    q, k, v = _heads_first(q_BTNH, k_BTKH, v_BTKH)
    found = []
    for at in _steps(T, shape.block):
        s, _ = _step_scores(q, k, first_BT, segments_BT, at, shape)
        top = jnp.max(s, axis=-1, keepdims=True)
        p = jnp.exp(s - top)
        total = jnp.sum(p, axis=-1, keepdims=True)
        o = jnp.einsum("BKGts,BKsH->BKGtH", p.astype(v.dtype), v[:, :, : at.stop], preferred_element_type=jnp.float32)
        found.append((o / total, (top + jnp.log(total))[..., 0]))
    o, lse = (jnp.concatenate(x, axis=3) for x in zip(*found, strict=True))
    o_BTNH = o.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)
    o_BTNH, lse = checkpoint_name(o_BTNH, "attention"), checkpoint_name(lse, "attention")  # see transformer.REMAT
    return o_BTNH, (q_BTNH, k_BTKH, v_BTKH, first_BT, segments_BT, o_BTNH, lse)


def _short_backward(shape: Shape, saved, do_BTNH):
    q_BTNH, k_BTKH, v_BTKH, first_BT, segments_BT, o_BTNH, lse = saved
    B, T, N, H = q_BTNH.shape
    q, k, v = _heads_first(q_BTNH, k_BTKH, v_BTKH)
    delta_BTN1 = jnp.sum(do_BTNH.astype(jnp.float32) * o_BTNH.astype(jnp.float32), axis=-1, keepdims=True)
    do, delta = (_grouped(x, k_BTKH.shape[2]) for x in (do_BTNH, delta_BTN1))
    dk, dv, dq = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32), []
    for at in _steps(T, shape.block):
        q_t, k_s, v_s, do_t = q[:, :, :, at], k[:, :, : at.stop], v[:, :, : at.stop], do[:, :, :, at]
        s, slope = _step_scores(q, k, first_BT, segments_BT, at, shape)
        p = jnp.exp(s - lse[:, :, :, at, None])
        dp = jnp.einsum("BKGtH,BKsH->BKGts", do_t, v_s, preferred_element_type=jnp.float32)
        ds = p * (dp - delta[:, :, :, at]) * shape.scale
        ds = (ds if slope is None else ds * slope).astype(k.dtype)
        dq.append(jnp.einsum("BKGts,BKsH->BKGtH", ds, k_s, preferred_element_type=jnp.float32))
        more_k = jnp.einsum("BKGts,BKGtH->BKsH", ds, q_t, preferred_element_type=jnp.float32)
        more_v = jnp.einsum("BKGts,BKGtH->BKsH", p.astype(do.dtype), do_t, preferred_element_type=jnp.float32)
        dk, dv = dk.at[:, :, : at.stop].add(more_k), dv.at[:, :, : at.stop].add(more_v)
    dq_BTNH = jnp.concatenate(dq, axis=3).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    dk_BTKH, dv_BTKH = dk.swapaxes(1, 2), dv.swapaxes(1, 2)
    return dq_BTNH.astype(q_BTNH.dtype), dk_BTKH.astype(k_BTKH.dtype), dv_BTKH.astype(v_BTKH.dtype), None, None


short.defvjp(_short_forward, _short_backward)


def _steps(T: int, block: int) -> list[slice]:
    """The blocks of queries: 150 positions in blocks of 64 are 0:64, 64:128, 128:150."""
    return [slice(t, min(t + block, T)) for t in range(0, T, block)]


def _grouped(x_BTNH: jax.Array, K: int) -> jax.Array:
    """[B, T, N, H] -> [B, K, G, T, H]."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _heads_first(q_BTNH, k_BTKH, v_BTKH):
    return _grouped(q_BTNH, k_BTKH.shape[2]), k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)


def _step_scores(q, k, first_BT, segments_BT, at: slice, shape: Shape):
    """(scores [B, K, G, t, s], slope) of a block of queries and all keys up to its end, as `_bent_scores`."""
    key_s, query_t = (jnp.arange(a, b, dtype=jnp.int32) for a, b in ((0, at.stop), (at.start, at.stop)))
    segments = None if segments_BT is None else (segments_BT[:, at], segments_BT[:, : at.stop])
    seen_Bts = sees(query_t, key_s, first_BT[:, at], segments)
    return _bent_scores("BKGtH,BKsH->BKGts", q[:, :, :, at], k[:, :, : at.stop], seen_Bts[:, None, None], shape)
