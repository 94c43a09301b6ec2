"""Splash attention, JAX's TPU kernel, on packed rows: pairs of blocks without a visible pair of tokens are skipped.

By itself the kernel skips only what is masked at compile time: the upper triangle. Blocks of other sequences in a row
are computed, then masked: 2.1 x the needed blocks for answers of mean 3.6k in rows of 10,240. The grid visits all pairs
of blocks, and two arrays in scalar memory determine which are computed, and which block of keys (in the backward pass:
of queries) is fetched for each. They can be dynamic, so `schedule` computes them from each row's segments. A row of 8
blocks with sequences of 3 and 4 blocks and one of padding, x computed, < > fetched, not computed:

    keys      0 1 2 3 4 5 6 7          each pair that is not computed names the next block that is, or the last one
    queries 0 x < < < < < < <          that was, so that nothing is fetched for it
            1 x x < < < < < <
            2 x x x < < < < <
            3 > > > x < < < <
            4 > > > x x < < <
            5 > > > x x x < <
            6 > > > x x x x <
            7 > > > > > > > x          padding: a query needs some key, so it uses its own block
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ropd_jax.types import UserError

BLOCK = 512  # queries and keys of a block


class Schedule(NamedTuple):
    """The kernel's work for each pair of blocks of one row.

    Attributes:
        runs_QS: bool, whether queries Q are multiplied with keys S.
        keys_QS: int32, the block of keys that is in fast memory (forward, and for the gradient of queries).
        queries_QS: int32, the block of queries in fast memory (for the gradient of keys and values).
    """

    runs_QS: jax.Array
    keys_QS: jax.Array
    queries_QS: jax.Array


def schedule(segments_T: jax.Array, first_T: jax.Array, block: int, *, at: jax.Array | int = 0, keys: int = 0):
    """The `Schedule` of a row: the pairs of blocks with a pair of tokens of which one sees the other.

    Args:
        segments_T: of the queries; 0 is padding, which sees its own block.
        first_T: the first token that each one sees (`attention.first_seen`); it never decreases. ``block`` divides T.
        at: index in the row of the first query, if these are a part of it; a multiple of ``block``.
        keys: number of keys of the row; 0 is T.
    """
    index_T = jnp.arange(len(segments_T), dtype=jnp.int32) + at
    first_T = jnp.where(segments_T == 0, index_T, first_T)
    lowest_Q1 = jnp.min(first_T.reshape(-1, block), axis=1)[:, None] // block
    queries_Q1 = jnp.arange(len(lowest_Q1), dtype=jnp.int32)[:, None]
    keys_1S = jnp.arange((keys or len(segments_T)) // block, dtype=jnp.int32)[None]
    own_Q1 = queries_Q1 + at // block  # the block of keys with the same positions as these queries
    begin_1S = jnp.sum(own_Q1 < keys_1S, axis=0, dtype=jnp.int32)[None]  # queries from this block ...
    end_1S = jnp.sum(lowest_Q1 <= keys_1S, axis=0, dtype=jnp.int32)[None] - 1  # ... to this one see keys S
    last = len(lowest_Q1) - 1
    return Schedule(
        (lowest_Q1 <= keys_1S) & (keys_1S <= own_Q1),
        jnp.clip(keys_1S, lowest_Q1, own_Q1),
        jnp.clip(jnp.clip(queries_Q1, begin_1S, end_1S), 0, last),  # keys that no query sees: any value
    )


def splash(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BS: jax.Array,
    first_BT: jax.Array,
    local: jax.Array,
    *,
    at: jax.Array | int = 0,
    scale: float,
    softcap: float,
    window: int,
    interpret: bool = False,
) -> jax.Array:
    """o_BTNH, see `attention.self_attention`; the values at padding are meaningless.

    Args:
        first_BT: as in `schedule`, windows included.
        at: the index of the first query, if the queries are a part of a row and the keys are complete.
        local: bool scalar, whether ``window`` applies; it can be traced.
        interpret: run the kernel's Python on any device, for tests.
    """
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    if T != S and T % 128:
        raise UserError(
            f"a row of {S} tokens in parts of {T}: splash attention needs parts of a multiple of 128; set "
            "optim.row_len to a multiple of 128 x mesh.cp, or optim.attention='xla'"
        )
    pad = -T % 128  # of all keys if T is S, else 0
    block = math.gcd(T + pad, BLOCK)

    def padded(x):
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2)

    q_BTNH = (q_BTNH.astype(jnp.float32) * scale).astype(q_BTNH.dtype)  # the kernel has no scale parameter
    segments_BS, first_BT = (jnp.pad(x, ((0, 0), (0, pad))) for x in (segments_BS, first_BT))
    inputs = (padded(q_BTNH), padded(k_BSKH), padded(v_BSKH), segments_BS, first_BT)
    row = functools.partial(_row, at=at, block=block, softcap=softcap, interpret=interpret)
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


def _row(q_NTH, k_KSH, v_KSH, segments_S, first_T, *, at, block: int, softcap: float, interpret: bool, sees):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

    T, S = len(first_T), len(segments_S)
    index_T, segments_T = at + jnp.arange(T, dtype=jnp.int32), jax.lax.dynamic_slice_in_dim(segments_S, at, T)
    plan = schedule(segments_T, first_T, block, at=at, keys=S)
    runs_1QS = plan.runs_QS.astype(jnp.int32)[None]
    forward, backward = (
        masks.MaskInfo(fetched[None], None, runs_1QS, None, index_T) for fetched in (plan.keys_QS, plan.queries_QS)
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
    return attend(q_NTH, k_KSH, v_KSH, kernel.SegmentIds(segments_T, segments_S))


def _causal(t, s):
    return s <= t


@functools.cache
def _causal_within(window: int):
    """One function per window, because the function is part of the compilation cache key."""

    def sees(t, s):
        return (s <= t) & (t - s < window)

    return sees
