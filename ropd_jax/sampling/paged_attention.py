"""Attention of one layer over the paged cache: each row over its prompt, its pages and its stage, on one device.

`attend` is plain JAX, `attend_paged` calls the kernel for TPUs (`sampling.kernel`). Both compute partial softmaxes and
add those of each row. `sampling.pages` describes the cache, and calls them for each device of a mesh.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ropd_jax.parallel.mesh import platform
from ropd_jax.sampling.kernel import Reads, page_sums
from ropd_jax.sampling.kv import KV, NOTHING, Pages, Stored, View, rows

BLOCK = 128  # pages that are processed together, except on CPU
PROMPT_BLOCKS = 256, 128  # positions of the prompt slots, likewise: the first that divides them, else all


def partial_softmax(q_BKQH, k: Stored, v: Stored, seen, *, keys_turned: bool, scale: float, softcap: float):
    """(m_BKQ, l_BKQ, o_BKQH) in float32: maximum of the scores, sum of exp(score - m), sum of exp(score - m) v.

    Attention over several sets of slots is sum_i e^(m_i - max m) o_i / sum_i e^(m_i - max m) l_i. Scores 1, 3 in one
    set and 2 in another give m = 3, l = 1 + e^-2 and m = 2, l = 1; together l = (1 + e^-2) + e^-1 * 1, which is the sum
    of e^(1-3), e^(3-3) and e^(2-3).

    Args:
        q_BKQH: Q queries per key/value head.
        seen: bool, broadcastable to [B, K, Q, S]; None is all.
    """
    keys = "BKHS" if keys_turned else "BKSH"
    s_BKQS = jnp.einsum(f"BKQH,{keys}->BKQS", q_BKQH, k.x.astype(q_BKQH.dtype), preferred_element_type=jnp.float32)
    if k.scale is not None:
        s_BKQS = s_BKQS * k.scale[:, :, None]
    s_BKQS = s_BKQS * scale
    if softcap:
        s_BKQS = softcap * jnp.tanh(s_BKQS / softcap)
    if seen is not None:
        s_BKQS = jnp.where(seen, s_BKQS, NOTHING)
    m_BKQ = jnp.max(s_BKQS, axis=-1)
    p_BKQS = jnp.exp(s_BKQS - m_BKQ[..., None])
    if seen is not None:
        p_BKQS = jnp.where(seen, p_BKQS, 0.0)
    l_BKQ = jnp.sum(p_BKQS, axis=-1)
    if v.scale is not None:
        p_BKQS = p_BKQS * v.scale[:, :, None]
    o_BKQH = jnp.einsum(
        "BKQS,BKSH->BKQH", p_BKQS.astype(q_BKQH.dtype), v.x.astype(q_BKQH.dtype), preferred_element_type=jnp.float32
    )
    return m_BKQ, l_BKQ, o_BKQH


def attend(
    q_BNH: jax.Array,
    prompt: KV,
    pages: KV,
    stage: KV,
    view: View,
    position_B: jax.Array,
    slot_B: jax.Array,
    window: jax.Array | None,
    *,
    scale: float,
    softcap: float,
) -> jax.Array:
    """o_BNH in the dtype of the queries: each row's attention over its prompt, its pages and its stage.

    The row of the example in `sampling.pages` has four partial softmaxes, added in this order:

        prompt     one product per prompt slot, with the queries of its G rollouts side by side (X = G * Q)
        pages      one product per page of the pool, with the query of its owner; the row picks 7, then 2
        stage      one product per row, of which slots 0 and 1 are seen

    With a window of 8, position 14 sees 7 to 14: nothing of the prompt, slots 2 and 3 of page 7, all of page 2, slots 0
    and 1 of the stage.

    Args:
        position_B: of the query in the sequence of its row.
        slot_B: the newest slot of each stage.
        window: number of positions that a query sees, including its own; None is all.
    """
    B, N, H = q_BNH.shape
    K = stage.k.x.shape[1]
    Q = N // K
    q_BKQH = q_BNH.reshape(B, K, Q, H)
    part = functools.partial(partial_softmax, scale=scale or H**-0.5, softcap=softcap)

    prompt_m, prompt_l, prompt_o = _over_prompts(part, q_BKQH, prompt, view, position_B, window)

    # stage: both indices count from the start of the stage, so their difference is the difference of positions
    slots_1S = jnp.arange(stage.k.x.shape[2], dtype=jnp.int32)[None]
    seen_BS = (slots_1S <= slot_B[:, None]) & _near(window, slot_B[:, None], slots_1S)
    stage_m, stage_l, stage_o = part(q_BKQH, *stage, seen_BS[:, None, None], keys_turned=False)

    def of_pages(pages: KV, owner_M, first_M):
        seen = None
        if window is not None:
            seen = _near(window, rows(position_B, owner_M)[:, None], first_M[:, None] + slots_1S)[:, None, None]
        return part(rows(q_BKQH, owner_M), *pages, seen, keys_turned=True)

    sums = (prompt_m, prompt_l, prompt_o), (stage_m, stage_l, stage_o)
    if reads_blocks():
        l_BKQ, o_BKQH = _add_up_blocks(view, *sums, of_pages, pages, q_BNH.dtype)
    else:  # the whole pool, including free pages, whose sums no row picks
        l_BKQ, o_BKQH = _add_up_one_by_one(view, *sums, of_pages(pages, view.owner_M, view.first_M))
    return (o_BKQH / l_BKQ[..., None]).reshape(B, N, H).astype(q_BNH.dtype)


def attend_paged(
    q_BNH: jax.Array,
    prompt: Pages,
    pages: Pages,
    stage: KV,
    view: View,
    position_B: jax.Array,
    slot_B: jax.Array,
    done_B: jax.Array,
    window: jax.Array | None,
    *,
    scale: float,
    softcap: float,
    interpret: bool,
) -> jax.Array:
    """`attend` with the kernel: two calls, each of which reads only the pages that it needs.

    The row of the example in `sampling.pages` has two partial softmaxes:

        prompt     pages of the prompt, read once for the queries of its G rollouts (X = G * Q)
        row        page 7, page 2, the stage, of which slots 0 and 1 are seen

    The stage stays separate from the pool, so that the loop over tokens only reads the pool and the compiler has no
    reason to copy it. A row that has ended reads nothing of its own and gets arbitrary values.
    """
    B, N, H = q_BNH.shape
    K, S = stage.k.x.shape[1:3]
    P = len(view.row_PG)
    n = len(prompt.v.x) // P
    sums = functools.partial(page_sums, scale=scale or H**-0.5, softcap=softcap, interpret=interpret)
    q_BKQH = q_BNH.reshape(B, K, N // K, H)

    length_B = jnp.where(done_B, 0, view.depth_B * S + slot_B + 1)
    base_B = position_B - view.depth_B * S - slot_B  # the position of slot 0 of a row's first page
    low_B = None if window is None else position_B - window + 1
    low_BQ = None if low_B is None else jnp.repeat((low_B - base_B)[:, None], N // K, axis=1)
    own_m, own_l, own_o = sums(q_BKQH, pages, stage, Reads(view.table_BD, length_B, low_BQ))

    rows_R = view.row_PG.reshape(-1)
    low_PX = None if low_B is None else jnp.repeat(rows(low_B, rows_R), N // K).reshape(P, -1)
    table_PD = jnp.arange(P * n, dtype=jnp.int32).reshape(P, n)
    of_prompts = sums(by_prompt(q_BKQH, view), prompt, None, Reads(table_PD, view.prompt_len_P, low_PX))
    prompt_m, prompt_l, prompt_o = (by_row(x, view) for x in of_prompts)

    m_BKQ = jnp.maximum(own_m, prompt_m)
    w_own, w_prompt = jnp.exp(own_m - m_BKQ), jnp.exp(prompt_m - m_BKQ)
    l_BKQ = w_prompt * prompt_l + w_own * own_l
    o_BKQH = w_prompt[..., None] * prompt_o + w_own[..., None] * own_o
    o_BKQH = o_BKQH / jnp.where(l_BKQ > 0, l_BKQ, 1.0)[..., None]
    return o_BKQH.reshape(B, N, H).astype(q_BNH.dtype)


def reads_blocks() -> bool:
    """Whether attention reads blocks of pages up to the last one in use (`Slots.compact`), or all pages."""
    return platform() != "cpu"


def block_of(pages: int) -> int:
    """Number of pages of a pool of this size that are read together: 128, or the largest power of two that divides the
    size, or all if that is below 16."""
    block = math.gcd(pages, BLOCK)
    return block if block >= 16 else pages


# From a row's prompt, pages and stage, each (m, l, o) of `partial_softmax`, the two functions below compute
# (l_BKQ, o_BKQH) of all its slots. The bits depend only on the row's own sums, not on the places of its pages or on
# other rows.


def _add_up_one_by_one(view: View, prompt, stage, pages) -> tuple[jax.Array, jax.Array]:
    """In the order of the sequence, one page of all rows at a time: for a CPU, where gathers are cheap."""
    (prompt_m, prompt_l, prompt_o), (page_m, page_l, page_o), (stage_m, stage_l, stage_o) = prompt, pages, stage
    own_BD = jnp.arange(view.table_BD.shape[1], dtype=jnp.int32)[None] < view.depth_B[:, None]
    m_BDKQ = jnp.where(own_BD[..., None, None], rows(page_m, view.table_BD), NOTHING)
    m_BKQ = jnp.maximum(jnp.maximum(prompt_m, stage_m), jnp.max(m_BDKQ, axis=1))
    w_prompt, w_stage = jnp.exp(prompt_m - m_BKQ), jnp.exp(stage_m - m_BKQ)
    w_BDKQ = jnp.where(own_BD[..., None, None], jnp.exp(m_BDKQ - m_BKQ[:, None]), 0.0)

    def add(d, sums):
        l_BKQ, o_BKQH = sums
        at_B = jax.lax.dynamic_index_in_dim(view.table_BD, d, 1, keepdims=False)
        w_BKQ = jax.lax.dynamic_index_in_dim(w_BDKQ, d, 1, keepdims=False)
        return l_BKQ + w_BKQ * rows(page_l, at_B), o_BKQH + w_BKQ[..., None] * rows(page_o, at_B)

    l_BKQ, o_BKQH = w_prompt * prompt_l, w_prompt[..., None] * prompt_o
    l_BKQ, o_BKQH = jax.lax.fori_loop(0, jnp.max(view.depth_B), add, (l_BKQ, o_BKQH))
    return l_BKQ + w_stage * stage_l, o_BKQH + w_stage[..., None] * stage_o


def _add_up_blocks(view: View, prompt, stage, of_pages: Callable, pages: KV, dtype) -> tuple[jax.Array, jax.Array]:
    """A block of pages at a time, up to the last one in use, with the matrix of owners: for a TPU or GPU, where
    gathers of single pages are slow.

    1. ``of_pages`` of each block gives partial softmaxes (X = K * Q).
    2. The maximum of each row follows, and from it the weight of each page.
    3. A product with the matrix of owners adds up the pages of each row (`exact_sums`).
    """
    (prompt_m, prompt_l, prompt_o), (stage_m, stage_l, stage_o) = prompt, stage
    B, K, Q, H = prompt_o.shape
    M, X = len(view.first_M), K * Q
    size = block_of(M)
    last = jnp.max(jnp.where(view.first_M >= 0, jnp.arange(1, M + 1, dtype=jnp.int32), 0))
    blocks = (last + size - 1) // size

    def one(i, found):
        cut = jax.tree.map(lambda x: _block(x, i, size), (pages, view.owner_M, view.first_M))
        m_XX, l_XX, o_XXH = (x.reshape(size, X, *x.shape[3:]) for x in of_pages(*cut))
        new = m_XX, l_XX, o_XXH, jnp.max(jnp.abs(o_XXH), axis=-1)
        return tuple(jax.lax.dynamic_update_slice_in_dim(f, x, i * size, 0) for f, x in zip(found, new, strict=True))

    empty = tuple(jnp.zeros((M, X, *tail), jnp.float32) for tail in ((), (), (H,), ()))
    m_MX, l_MX, o_MXH, top_MX = jax.lax.fori_loop(0, blocks, one, empty)

    own_BM = (view.owner_M[None] == jnp.arange(B, dtype=jnp.int32)[:, None]) & (view.first_M >= 0)[None]
    m_BX = jnp.maximum(jnp.maximum(prompt_m, stage_m).reshape(B, X), _of_rows(own_BM, m_MX))
    w_MX = jnp.where(jnp.any(own_BM, axis=0)[:, None], jnp.exp(m_MX - _of_pages(own_BM, m_BX)), 0.0)
    digits = 3 if dtype == jnp.float32 else 2
    sum_o = exact_sums(own_BM, w_MX, o_MXH, top_MX, digits, size, blocks).reshape(B, K, Q, H)
    sum_l = exact_sums(own_BM, w_MX, l_MX[..., None], l_MX, digits, M, 1).reshape(B, K, Q)
    m_BKQ = m_BX.reshape(B, K, Q)
    w_prompt, w_stage = jnp.exp(prompt_m - m_BKQ), jnp.exp(stage_m - m_BKQ)
    l_BKQ = w_prompt * prompt_l + sum_l + w_stage * stage_l
    return l_BKQ, w_prompt[..., None] * prompt_o + sum_o + w_stage[..., None] * stage_o


def exact_sums(
    own_BM: jax.Array, w_MX: jax.Array, x_MXJ: jax.Array, top_MX: jax.Array, digits: int, size: int, blocks
) -> jax.Array:
    """Weighted sums_BXJ of the pages of each row, whose bits do not depend on the order of additions in a product.

    For each row and X the weighted numbers are divided by a power of two that is larger than all of them, and written
    with ``digits`` digits in base 256, rounded: whole numbers of at most 256. These are exact in bfloat16, and their
    sums are exact in float32, up to 65,536 pages. The error per page is at most 2^(-8 * digits) times the power of two.

    With two digits, 0.75 and -0.3 (power 1) are 192 + 0/256 and -77 + 51/256 over 256: the sums 115 and 51 give
    0.44999.

    Args:
        own_BM: bool, which pages belong to a row.
        w_MX: weights, from 0 to 1; 0 if no row owns the page.
        top_MX: the largest |x| of each.
        size, blocks: pages per block and number of blocks; pages after them are not read.
    """
    B, J = len(own_BM), x_MXJ.shape[-1]
    power_BX = _power_of_two(jnp.maximum(_of_rows(own_BM, w_MX * top_MX), 1e-30))
    w_MX = w_MX * (256.0 / jnp.maximum(_of_pages(own_BM, power_BX), 1e-30))
    own_BM = own_BM.astype(jnp.bfloat16)

    def one(i, sums):
        rest_XXJ = _block(w_MX, i, size)[..., None] * _block(x_MXJ, i, size)
        found = []
        for n in range(digits):
            digit_XXJ = jnp.round(rest_XXJ)
            own_BX = jax.lax.dynamic_slice_in_dim(own_BM, i * size, size, 1)
            product = functools.partial(jnp.einsum, "BM,MXJ->BXJ", preferred_element_type=jnp.float32)
            found.append(sums[n] + product(own_BX, digit_XXJ.astype(jnp.bfloat16)))
            rest_XXJ = (rest_XXJ - digit_XXJ) * 256.0
        return tuple(found)

    sums = jax.lax.fori_loop(0, blocks, one, (jnp.zeros((B, w_MX.shape[1], J), jnp.float32),) * digits)
    total_BXJ = sum((x * 256.0 ** -(n + 1) for n, x in enumerate(sums)), jnp.float32(0.0))
    return total_BXJ * power_BX[..., None]


def _block(x: jax.Array, i, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * size, size)


def _power_of_two(x: jax.Array) -> jax.Array:
    """The smallest power of two above a positive float32: only its exponent bits, doubled."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7F800000
    return 2.0 * jax.lax.bitcast_convert_type(bits, jnp.float32)


def _of_rows(own_BM: jax.Array, x_MX: jax.Array) -> jax.Array:
    """The largest of each row's pages, [B, X]; `NOTHING` without pages."""
    return jnp.max(jnp.where(own_BM[:, None], x_MX.T[None], NOTHING), axis=-1)


def _of_pages(own_BM: jax.Array, x_BX: jax.Array) -> jax.Array:
    """The value of each page's owner, [M, X]; `NOTHING` for a free page. A maximum, since gathers are slow."""
    return jnp.max(jnp.where(own_BM[:, None], x_BX[..., None], NOTHING), axis=0).T


def _near(window: jax.Array | None, position, at):
    """True if the window of a query at ``position`` reaches back to ``at``; both int32, broadcastable."""
    return True if window is None else position - at < window


def _over_prompts(part: Callable, q_BKQH: jax.Array, prompt: KV, view: View, position_B, window):
    """`partial_softmax` of each row over its prompt: the queries of all rollouts of a prompt together (X = G * Q)."""
    _, K, Q, H = q_BKQH.shape
    P, G = view.row_PG.shape
    T = prompt.v.x.shape[2]
    q_PKXH = by_prompt(q_BKQH, view)
    position_PG1 = rows(position_B, view.row_PG.reshape(-1)).reshape(P, G, 1)

    def of_slots(prompt: KV, first, size: int):  # a slot has positions 0 to T - 1: the index is the position
        slots_11T = first + jnp.arange(size, dtype=jnp.int32)[None, None]
        seen_PGT = (slots_11T < view.prompt_len_P[:, None, None]) & _near(window, position_PG1, slots_11T)
        seen_PXT = jnp.repeat(jnp.broadcast_to(seen_PGT, (P, G, size)), Q, axis=1)
        return part(q_PKXH, *prompt, seen_PXT[:, None], keys_turned=True)

    size = next((n for n in PROMPT_BLOCKS if T % n == 0), T) if reads_blocks() else T
    if size == T:
        return tuple(by_row(x, view) for x in of_slots(prompt, 0, T))

    def one(i, sums):  # a block that a row does not see adds 0 to it, so no bit depends on their number
        def cut(axis: int, s: Stored) -> Stored:
            scale = None if s.scale is None else jax.lax.dynamic_slice_in_dim(s.scale, i * size, size, 2)
            return Stored(jax.lax.dynamic_slice_in_dim(s.x, i * size, size, axis), scale)

        m_PKX, l_PKX, o_PKXH = sums
        block_m, block_l, block_o = of_slots(KV(cut(3, prompt.k), cut(2, prompt.v)), i * size, size)
        new_m = jnp.maximum(m_PKX, block_m)
        old, new = jnp.exp(m_PKX - new_m), jnp.exp(block_m - new_m)
        return new_m, old * l_PKX + new * block_l, old[..., None] * o_PKXH + new[..., None] * block_o

    none = jnp.zeros((P, K, G * Q), jnp.float32)
    blocks = (jnp.max(view.prompt_len_P) + size - 1) // size
    sums = jax.lax.fori_loop(0, blocks, one, (none + NOTHING, none, jnp.zeros((*none.shape, H), jnp.float32)))
    return tuple(by_row(x, view) for x in sums)


def by_prompt(x_BKQH: jax.Array, view: View) -> jax.Array:
    """[P, K, G * Q, H]: for all rollouts of each prompt."""
    _, K, Q, H = x_BKQH.shape
    P, G = view.row_PG.shape
    return rows(x_BKQH, view.row_PG.reshape(-1)).reshape(P, G, K, Q, H).swapaxes(1, 2).reshape(P, K, G * Q, H)


def by_row(x: jax.Array, view: View) -> jax.Array:
    """[P, K, G * Q, ...] as [B, K, Q, ...]."""
    P, G = view.row_PG.shape
    K, Q = x.shape[1], x.shape[2] // G
    x = x.reshape(P, K, G, Q, *x.shape[3:]).swapaxes(1, 2)
    return rows(x.reshape(P * G, K, Q, *x.shape[4:]), view.place_B)
