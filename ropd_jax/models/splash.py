"""Splash attention, JAX's TPU kernel, on packed rows: pairs of blocks that hold no visible pair of tokens are skipped.

Left to itself the kernel skips what a mask empties that is known when it is compiled: the upper triangle. What other
sequences of a row hold it computes, then masks: 2.1 x the needed blocks for answers of mean 3.6k in rows of 10,240.
The grid visits all pairs of blocks, and two arrays in scalar memory say which are computed and which block of keys (in
the backward pass: of queries) is fetched for each. They need not be constants, so `schedule` makes them from each row's
segments. A row of 8 blocks with sequences of 3 and 4 blocks and one of padding, x computed, < > fetched, not computed:

    keys      0 1 2 3 4 5 6 7          each pair that is not computed names the next block that is, or the last one
    queries 0 x < < < < < < <          that was, so that nothing is fetched for it
            1 x x < < < < < <
            2 x x x < < < < <
            3 > > > x < < < <
            4 > > > x x < < <
            5 > > > x x x < <
            6 > > > x x x x <
            7 > > > > > > > x          padding: a query needs some key, so its own block
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 512  # queries and keys of a block


class Schedule(NamedTuple):
    """What the kernel does at each pair of blocks of one row.

    Attributes:
        runs_QS: bool, whether queries Q meet keys S.
        keys_QS: int32, the block of keys that is in fast memory (forward, and for the gradient of queries).
        queries_QS: int32, the block of queries that is (for the gradient of keys and values).
    """

    runs_QS: jax.Array
    keys_QS: jax.Array
    queries_QS: jax.Array


def schedule(segments_T: jax.Array, first_T: jax.Array, block: int) -> Schedule:
    """The pairs of blocks of a row that hold a pair of tokens one of which sees the other.

    Args:
        segments_T: 0 is padding, which sees what is in its own block.
        first_T: the first token that each one sees (`attention.first_seen`); it never decreases. T divides by ``block``.
    """
    index_T = jnp.arange(len(segments_T), dtype=jnp.int32)
    first_T = jnp.where(segments_T == 0, index_T, first_T)
    lowest_Q = jnp.min(first_T.reshape(-1, block), axis=1) // block
    block_Q = jnp.arange(len(lowest_Q), dtype=jnp.int32)
    lowest_Q1, block_Q1, block_1S = lowest_Q[:, None], block_Q[:, None], block_Q[None]
    last_1S = jnp.sum(lowest_Q1 <= block_1S, axis=0, dtype=jnp.int32)[None] - 1  # queries S to this one see keys S
    runs_QS = (lowest_Q1 <= block_1S) & (block_1S <= block_Q1)
    return Schedule(runs_QS, jnp.clip(block_1S, lowest_Q1, block_Q1), jnp.clip(block_Q1, block_1S, last_1S))


def splash(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    first_BT: jax.Array,
    local: jax.Array,
    *,
    scale: float,
    softcap: float,
    window: int,
    interpret: bool = False,
) -> jax.Array:
    """o_BTNH, as `attention.self_attention` says; what padding gets is of no use.

    Args:
        first_BT: as in `schedule`, windows included.
        local: bool scalar, whether ``window`` applies; it can be traced.
        interpret: run the kernel's Python on any device, for tests.
    """
    T = q_BTNH.shape[1]
    pad = -T % 128
    block = math.gcd(T + pad, BLOCK)

    def padded(x):
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)

    q_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)  # the kernel has no scale of its own
    segments_BT, first_BT = (jnp.pad(x, ((0, 0), (0, pad))) for x in (segments_BT, first_BT))
    inputs = (padded(q_BTNH), padded(k_BTKH), padded(v_BTKH), segments_BT, first_BT)
    row = functools.partial(_row, block=block, softcap=softcap, interpret=interpret)
    whole = functools.partial(_rows, functools.partial(row, sees=_causal))
    if not window:
        return whole(inputs).swapaxes(1, 2)[:, :T]
    near = functools.partial(_rows, functools.partial(row, sees=_causal_within(window)))
    return jax.lax.cond(local, near, whole, inputs).swapaxes(1, 2)[:, :T]


def _rows(row, inputs):
    """Row by row: each has its own schedule."""
    if len(inputs[0]) == 1:
        return row(*(x[0] for x in inputs))[None]
    return jax.lax.map(lambda xs: row(*xs), inputs)


def _row(q_NTH, k_KTH, v_KTH, segments_T, first_T, *, block: int, softcap: float, interpret: bool, sees):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

    plan, index_T = schedule(segments_T, first_T, block), jnp.arange(len(segments_T), dtype=jnp.int32)
    runs_1QS = plan.runs_QS.astype(jnp.int32)[None]
    forward, backward = (
        masks.MaskInfo(fetched[None], None, runs_1QS, None, index_T)  # type: ignore[arg-type]  # says NumPy, takes both
        for fetched in (plan.keys_QS, plan.queries_QS)
    )
    sizes = kernel.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    attend = kernel.SplashAttentionKernel(
        forward,
        forward,
        backward,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=softcap or None,
        residual_checkpoint_name="attention",  # see transformer.REMAT
        mask_function=sees,
        interpret=interpret,
    )
    return attend(q_NTH, k_KTH, v_KTH, kernel.SegmentIds(segments_T, segments_T))


def _causal(t, s):
    return s <= t


@functools.cache
def _causal_within(window: int):
    """One function for each window: it is part of what a program is found by."""

    def sees(t, s):
        return (s <= t) & (t - s < window)

    return sees
