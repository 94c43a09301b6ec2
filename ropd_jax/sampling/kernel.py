"""A Pallas kernel for TPUs: the partial softmax of each row, over only the pages in its own table.

Pages stay in the chip's memory (HBM). The kernel copies the pages of a row to the core's fast memory (VMEM), a block of
several pages at a time and one block ahead of the arithmetic, also from one row to the next:

    copy      row 0: pages 7 2 9 4 | row 0: page 1, stage | row 2: pages 5 0 8 3 | ...        row 1 has ended
    compute                          row 0: pages 7 2 9 4 | row 0: page 1, stage | ...

So each token reads only what its row sees, rounded up to pages: no free page, no row that has ended, and in a layer
with a window no page before it. Blocks are added in the order of the sequence, so no bit of a row depends on the
places of its pages or on other rows.

JAX has two such kernels (`jax.experimental.pallas.ops.tpu`). This one has what the sampler needs: it returns
maximum and sum, so that the prompt is read once for all its G rollouts and added later; pages of an int8 cache
have their scales; windows can differ for each query; float32 stays float32.

On a CPU the same program runs interpreted, which the tests use.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ropd_jax.sampling.kv import KV, NOTHING, Pages

POSITIONS = 512  # positions in a block
LANES = 128


class Reads(NamedTuple):
    """The pages that each row reads, all int32.

    Attributes:
        table_RD: its pages in order; entries beyond ``length_R`` are arbitrary.
        length_R: number of positions of a row, counted from slot 0 of its first page; 0 reads nothing.
        low_RX: the first position that each query sees; None is 0 for all.
    """

    table_RD: jax.Array
    length_R: jax.Array
    low_RX: jax.Array | None


def page_sums(
    q_RKXH: jax.Array, pages: Pages, stage: KV | None, reads: Reads, *, scale: float, softcap: float, interpret: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(m_RKX, l_RKX, o_RKXH) in float32, as in `paged_attention.partial_softmax`; a row without positions has
    `NOTHING`, 0, 0.

    Args:
        q_RKXH: X queries of each key/value head.
        pages: k and v [M, K, S, H].
        stage: k and v [R, K, S, H]: the last page of each row; None if it is in ``pages`` like the others.
        scale: factor of the scores. softcap: 0 for none.
        interpret: run without a TPU.
    """
    R, K, X, H = q_RKXH.shape
    S = pages.k.x.shape[2]
    tile = 8 * 4 // q_RKXH.dtype.itemsize  # rows of a tile of the core's registers
    pad = -X % tile
    q_RKXH = jnp.pad(q_RKXH, ((0, 0), (0, 0), (0, pad), (0, 0)))
    in_block = max(1, min(POSITIONS // S, reads.table_RD.shape[1] + (stage is not None)))

    end_R = (reads.length_R + S - 1) // S
    begin_R = jnp.zeros_like(end_R)
    arrays, specs = [q_RKXH], [_block_of_row(K, X + pad, H)]
    if reads.low_RX is not None:
        begin_R = jnp.clip(jnp.min(reads.low_RX, axis=1), 0, None) // S
        low_RXH = jnp.pad(reads.low_RX, ((0, 0), (0, pad)))[..., None]
        arrays.append(jnp.broadcast_to(low_RXH, (R, X + pad, LANES)))
        specs.append(pl.BlockSpec((None, X + pad, LANES), lambda r, *_: (r, 0, 0)))
    rows_R = jnp.arange(R, dtype=jnp.int32)
    # for each row, the first row from it on that reads anything
    next_R = jax.lax.cummin(jnp.where(begin_R < end_R, rows_R, R), reverse=True)
    scalars = (reads.table_RD.reshape(-1), reads.length_R, begin_R, end_R, jnp.append(next_R, jnp.int32(R)))

    sources = jax.tree.leaves((pages, stage))
    each = len(jax.tree.leaves(pages))  # k, v and, for int8, their scales
    buffers = [pltpu.VMEM((2, in_block, *x.shape[1:]), x.dtype) for x in sources[:each]]
    body = functools.partial(
        _kernel, S=S, depth=reads.table_RD.shape[1], in_block=in_block, each=each, staged=stage is not None,
        windowed=reads.low_RX is not None, scale=scale, softcap=softcap,
    )  # fmt: skip
    o_RKXH, m_RKXL, l_RKXL = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(R,),
            in_specs=specs + [pl.BlockSpec(memory_space=pl.ANY)] * len(sources),
            out_specs=[_block_of_row(K, X + pad, n) for n in (H, LANES, LANES)],
            scratch_shapes=[*buffers, pltpu.SemaphoreType.DMA((2,)), pltpu.SMEM((1,), jnp.int32)],
        ),
        out_shape=[jax.ShapeDtypeStruct((R, K, X + pad, n), jnp.float32) for n in (H, LANES, LANES)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="page_sums",
    )(*scalars, *arrays, *sources)
    return m_RKXL[:, :, :X, 0], l_RKXL[:, :, :X, 0], o_RKXH[:, :, :X]


def _block_of_row(K: int, X: int, n: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, K, X, n), lambda r, *_: (r, 0, 0, 0))


def _kernel(
    table_ref, length_ref, begin_ref, end_ref, next_ref, q_ref, *refs, S: int, depth: int, in_block: int, each: int,
    staged: bool, windowed: bool, scale: float, softcap: float,
):  # fmt: skip
    """One row. ``refs``: low positions, sources, stages, outputs, buffers, semaphores, the current buffer."""
    low_ref, refs = (refs[0], refs[1:]) if windowed else (None, refs)
    sources, refs = refs[:each], refs[each:]
    stages, refs = (refs[:each], refs[each:]) if staged else ((), refs)
    (o_ref, m_ref, l_ref), buffers, (arrived, now_ref) = refs[:3], refs[3 : 3 + each], refs[3 + each :]
    k_buf, v_buf = buffers[0], buffers[each // 2]
    k_scale, v_scale = (buffers[1], buffers[3]) if each == 4 else (None, None)
    r, R = pl.program_id(0), pl.num_programs(0)
    K, X, H = q_ref.shape

    def copies(row, block, to, do) -> None:
        """Start or await the copies of the pages in a block."""
        for j in range(in_block):
            d = begin_ref[row] + block * in_block + j
            end = end_ref[row]

            def from_pool(j=j, d=d):
                page = table_ref[row * depth + d]
                for x, buffer in zip(sources, buffers, strict=True):
                    do(pltpu.make_async_copy(x.at[page], buffer.at[to, j], arrived.at[to]))

            def from_stage(j=j):
                for x, buffer in zip(stages, buffers, strict=True):
                    do(pltpu.make_async_copy(x.at[row], buffer.at[to, j], arrived.at[to]))

            pl.when(d < end - int(staged))(from_pool)
            if staged:
                pl.when(d == end - 1)(from_stage)

    def start(copy) -> None:
        copy.start()

    def wait(copy) -> None:
        copy.wait()

    @pl.when(r == 0)
    def _():
        for buffer in buffers[each // 2 :]:  # unfilled parts are multiplied by 0, so they must be finite
            buffer[...] = jnp.zeros_like(buffer)
        now_ref[0] = 0
        first = next_ref[0]
        pl.when(first < R)(lambda: copies(first, 0, 0, start))

    begin, end, length = begin_ref[r], end_ref[r], length_ref[r]
    blocks = (jnp.maximum(end - begin, 0) + in_block - 1) // in_block

    def one(block, sums):
        now = now_ref[0]
        last = block + 1 == blocks
        following = jnp.where(last, next_ref[r + 1], r)
        pl.when(following < R)(lambda: copies(following, jnp.where(last, 0, block + 1), 1 - now, start))
        copies(r, block, now, wait)
        now_ref[0] = 1 - now
        at_XS = (begin + block * in_block) * S + jax.lax.broadcasted_iota(jnp.int32, (X, S), 1)
        seen = []
        for j in range(in_block):
            seen_XS = at_XS + j * S < length
            if low_ref is not None:
                seen_XS &= at_XS + j * S >= low_ref[:, :1]
            seen.append(seen_XS)
        return tuple(add(h, now, seen, *sums[h]) for h in range(K))

    def add(h: int, now, seen, m_X1, l_X1, o_XH):
        scores = []
        for j in range(in_block):
            k_SH = k_buf[now, j, h].astype(q_ref.dtype)
            s_XS = _dot(q_ref[h], k_SH, 1, 1)
            if k_scale is not None:
                s_XS = s_XS * k_scale[now, j, h : h + 1]
            s_XS = s_XS * scale
            if softcap:
                s_XS = softcap * jnp.tanh(s_XS / softcap)
            scores.append(jnp.where(seen[j], s_XS, NOTHING))
        top_XS = functools.reduce(jnp.maximum, scores)
        new_X1 = jnp.maximum(m_X1, jnp.max(top_XS, axis=1, keepdims=True))
        old_X1 = jnp.exp(m_X1 - new_X1)
        sum_XS, o_XH = jnp.zeros((X, S), jnp.float32), old_X1 * o_XH
        for j in range(in_block):
            p_XS = jnp.where(seen[j], jnp.exp(scores[j] - new_X1), 0.0)
            sum_XS += p_XS
            if v_scale is not None:
                p_XS = p_XS * v_scale[now, j, h : h + 1]
            o_XH += _dot(p_XS.astype(q_ref.dtype), v_buf[now, j, h].astype(q_ref.dtype), 1, 0)
        return new_X1, old_X1 * l_X1 + jnp.sum(sum_XS, axis=1, keepdims=True), o_XH

    none = jnp.full((X, 1), NOTHING, jnp.float32), jnp.zeros((X, 1), jnp.float32), jnp.zeros((X, H), jnp.float32)
    for h, (m_X1, l_X1, o_XH) in enumerate(jax.lax.fori_loop(0, blocks, one, (none,) * K)):
        o_ref[h] = o_XH
        m_ref[h] = jnp.broadcast_to(m_X1, (X, LANES))
        l_ref[h] = jnp.broadcast_to(l_X1, (X, LANES))


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
