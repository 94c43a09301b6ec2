"""The sampler's key/value cache, in pages, so that the cost of a row's attention depends on its own length.

1. The keys and values of a prompt are stored once, in a *prompt slot*. The queries of all its G rollouts read them
   together.
2. A row writes its newest keys and values into its *stage*, which holds one page.
3. A full stage becomes a page of the pool (`commit`). Each page has a row and the position of its first slot in that
   row. The boundaries of a row's pages depend only on its own tokens, not on when the row was admitted, and so do its
   bits.

Row b, whose prompt has 6 tokens (all but the last are cached), with pages of 4 slots, at position 14:

    prompt slot        page 7       page 2         stage
    0 1 2 3 4          5 6 7 8      9 10 11 12     13 14 . .

    table_BD[b] = 7, 2    depth_B[b] = 2    owner_M[7] = owner_M[2] = b    first_M[7] = 5    first_M[2] = 9
    slot_B[b] = 1 (position 14 is in slot 1 of the stage)

Attention runs over whole prompt slots, pages and stages as they are in memory, each with the queries of its owner. This
gives partial softmaxes (maximum, sum, weighted values). A row then adds up its own; the bits depend neither on the
places of its pages nor on other rows. The pool is as large as all rows together need, not rows times the longest. A
GPU, or a TPU without the kernel, reads the pool in blocks, up to the last page in use. Pages are moved down to free
places (`move`), so that few free ones are read. Prompt slots are read up to the longest prompt.

On a TPU a kernel reads the cache (`attend_paged`, `sampling.kernel`): for each row its own pages, through ``table_BD``.
Then the prompt slots also consist of pages, keys are stored like values, and a free page costs nothing.

On a mesh, rows, prompt slots and pages are split over ``fsdp`` and heads over ``tp``. The pages and prompt of a row are
in the part of the row, all indices count within the part, and attention needs no communication.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel.mesh import check_heads, constrain, locally, platform
from ropd_jax.sampling.kernel import Reads, page_sums
from ropd_jax.sampling.kv import KV as KV
from ropd_jax.sampling.kv import NOTHING
from ropd_jax.sampling.kv import Pages as Pages
from ropd_jax.sampling.kv import Stored as Stored
from ropd_jax.types import UserError

CACHE_DTYPES = ("float32", "bfloat16", "int8")
BLOCK = 128  # pages that are processed together, except on CPU
PROMPT_BLOCKS = 256, 128  # positions of the prompt slots, likewise: the first that divides them, else all
ATTENTION = ("auto", "xla", "paged")
PROMPT_PAGE = 128  # positions of a page of a prompt, if the kernel reads them
TILE = 32  # rows of a TPU's tile of int8, and a multiple of those of other dtypes


class Cache(NamedTuple):
    """P prompt slots, B rows, M pages; S slots per page, T slots per prompt. One `KV` or `Pages` per layer.

    Attributes:
        prompts: k [P, K, H, T], v [P, K, T, H]. As `Pages`: the pages of a slot follow one another, [P * n, K, S', H].
        pages: k [M, K, H, S], v [M, K, S, H]; as `Pages` both [M, K, S, H].
        stages: k and v [B, K, S, H].
    """

    prompts: list[Any]
    pages: list[Any]
    stages: list[KV]


class View(NamedTuple):
    """The slots that each row sees: all int32, constant within a chunk. The module docstring has an example.

    Attributes:
        row_PG: the row of each rollout of each prompt slot; any row if the rollout has none.
        place_B: the index of a row in the flat ``row_PG``: rollout 2 of slot 1 with G = 4 is 6.
        prompt_len_P: cached tokens of each prompt (all but its last).
        owner_M: the row of a page; any row if the page is free.
        first_M: the position of slot 0 of a page in the sequence of its row; -1 if the page is free.
        table_BD: the pages of a row in order, padded with any page.
        depth_B: the number of pages of a row.
    """

    row_PG: jax.Array
    place_B: jax.Array
    prompt_len_P: jax.Array
    owner_M: jax.Array
    first_M: jax.Array
    table_BD: jax.Array
    depth_B: jax.Array


@functools.partial(jax.jit, static_argnames=("cfg", "prompts", "prompt_len", "rows", "pages", "page", "dtype", "paged"))
def make_cache(
    cfg: ModelConfig, *, prompts: int, prompt_len: int, rows: int, pages: int, page: int, dtype: str,
    paged: bool = False,
) -> Cache:  # fmt: skip
    """An empty cache; ``paged``: for the kernel (`uses_kernel`). Its type determines how it is used.

    Raises:
        UserError: the model's heads do not divide over the ``tp`` of the current mesh.
    """
    check_heads(cfg.num_heads, cfg.num_kv_heads)
    make = functools.partial(_make_layers, cfg, dtype=dtype)
    stages = make(rows, page, turned=False)
    if not paged:
        return Cache(make(prompts, prompt_len, turned=True), make(pages, page, turned=True), stages)
    n, slots = prompt_pages(prompt_len)
    of_prompts, of_rows = make(prompts * n, slots, turned=False), make(pages, page, turned=False)
    return Cache([Pages(*x) for x in of_prompts], [Pages(*x) for x in of_rows], stages)


def prompt_pages(prompt_len: int) -> tuple[int, int]:
    """(pages of a prompt slot, slots of each) for the kernel: 16 of 128 for 2,048, one of 64 for 40."""
    slots = min(PROMPT_PAGE, -(-max(prompt_len, 1) // TILE) * TILE)
    return -(-prompt_len // slots), slots


def uses_kernel(name: str, cfg: ModelConfig, page: int) -> bool:
    """Whether attention uses the kernel of `sampling.kernel`. Inside ``jax.set_mesh``, if there is a mesh.

    Args:
        name: one of `ATTENTION`. ``auto`` uses the kernel on a TPU if the model's shapes allow it. On a CPU the kernel
            runs interpreted, for tests only.
        page: slots of a page.

    Raises:
        UserError: ``paged``, but the kernel cannot run.
    """
    where = platform()
    why_not = ""
    if where == "gpu":
        why_not = "the kernel is written for TPUs"
    elif where == "tpu" and cfg.head_dim % 128:
        why_not = f"the kernel needs a head_dim that is a multiple of 128, and this student has {cfg.head_dim}"
    elif where == "tpu" and page % TILE:
        why_not = f"the kernel needs pages of a multiple of {TILE} tokens, and sampling.chunk makes them {page}"
    if name == "paged" and why_not:
        raise UserError(f"sampling.attention=paged: {why_not}; set --config.sampling.attention=xla")
    return name == "paged" or (name == "auto" and where == "tpu" and not why_not)


def _make_layers(cfg: ModelConfig, n: int, slots: int, *, dtype: str, turned: bool) -> list[KV]:
    """Zeros for all layers: ``n`` prompts, pages or rows, over all parts of the mesh."""

    def zeros(turned: bool) -> Stored:
        tail = (cfg.head_dim, slots) if turned else (slots, cfg.head_dim)
        scale = jnp.zeros((n, cfg.num_kv_heads, slots), jnp.float32) if dtype == "int8" else None
        return Stored(jnp.zeros((n, cfg.num_kv_heads, *tail), dtype), scale)

    layers = [KV(zeros(turned), zeros(False)) for _ in range(cfg.num_layers)]
    return jax.tree.map(lambda x: constrain(x, "BK__"[: x.ndim]), layers)


def encode(x_BKSH: jax.Array, dtype) -> Stored:
    """In the cache's dtype. int8: round(127 x / max|x|), with the scale max|x| / 127 of each head and slot."""
    if dtype != jnp.int8:
        return Stored(x_BKSH.astype(dtype), None)
    x_BKSH = x_BKSH.astype(jnp.float32)
    scale_BKS = jnp.maximum(jnp.max(jnp.abs(x_BKSH), axis=-1), 1e-20) / 127.0
    return Stored(jnp.round(x_BKSH / scale_BKS[..., None]).astype(jnp.int8), scale_BKS)


def turned(k: Stored) -> Stored:
    """[B, K, S, H] as [B, K, H, S]: the inner loop of the scores then runs along the slots (1.4x faster on CPU)."""
    return Stored(k.x.swapaxes(2, 3), k.scale)


# ------------------------------------------------------------------- one layer, one device's part of everything


def write_stage(stage: KV, k_BKSH: jax.Array, v_BKSH: jax.Array, slot_B: jax.Array, *, by_head: bool = False) -> KV:
    """The step's key and value [B, K, 1, H], each row's at its own slot.

    Args:
        by_head: also index the heads explicitly. A TPU then keeps the stage in the order that the kernel reads;
            otherwise it copies all of it, for each layer and token.
    """
    rows_B = jnp.arange(slot_B.shape[0], dtype=jnp.int32)
    heads_1K = jnp.arange(stage.k.x.shape[1], dtype=jnp.int32)[None]

    def put(old, new):
        at = old.at[rows_B[:, None], heads_1K, slot_B[:, None]] if by_head else old.at[rows_B, :, slot_B]
        return at.set(new[:, :, 0], mode="promise_in_bounds", unique_indices=True)

    return jax.tree.map(put, stage, KV(*(encode(x, stage.k.x.dtype) for x in (k_BKSH, v_BKSH))))


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

    The row of the module docstring has four partial softmaxes, added in this order:

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

    The row of the module docstring has two partial softmaxes:

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


def rows(x: jax.Array, at: jax.Array) -> jax.Array:
    return x.at[at].get(mode="promise_in_bounds")


# ------------------------------------------------------------------------------------------ all layers, on a mesh


def attention(cfg: ModelConfig, q_BNH, k_BKSH, v_BKSH, prompt, pages, stage: KV, view: View, position_B, slot_B, done_B,
              window):  # fmt: skip
    """`write_stage`, then `attend` or `attend_paged`, each device for its own rows and heads: (o_BNH, stage)."""
    interpret = platform() == "cpu"

    def local(q_BNH, k_BKSH, v_BKSH, prompt, pages, stage, view, position_B, slot_B, done_B, window):
        stage = write_stage(stage, k_BKSH, v_BKSH, slot_B, by_head=isinstance(pages, Pages))
        scale, softcap = cfg.attn_scale, cfg.attn_softcap
        args = q_BNH, prompt, pages, stage, view, position_B, slot_B
        if isinstance(pages, Pages):
            o_BNH = attend_paged(*args, done_B, window, scale=scale, softcap=softcap, interpret=interpret)
        else:
            o_BNH = attend(*args, window, scale=scale, softcap=softcap)
        return o_BNH, stage

    split = locally(local, ("BN", "BK", "BK", "BK", "BK", "BK", "B", "B", "B", "B", ""), ("BN", "BK"))
    return split(q_BNH, k_BKSH, v_BKSH, prompt, pages, stage, view, position_B, slot_B, done_B, window)


def _put_at(old: KV | Pages, new: KV | Pages, at_N: jax.Array) -> KV | Pages:
    return jax.tree.map(lambda pool, x: pool.at[at_N].set(x, mode="drop"), old, new)


def _as_stored(like: KV | Pages, x: KV) -> KV | Pages:
    """Pages as the layer ``like`` stores them."""
    return Pages(*x) if isinstance(like, Pages) else KV(turned(x.k), x.v)


def _in_pages(x: KV, n: int, slots: int) -> Pages:
    """Prompts [N, K, T, ...] as their pages [N * n, K, slots, ...], the last one padded with zeros."""

    def cut(x):
        N, K, T, *tail = x.shape
        x = jnp.pad(x, ((0, 0), (0, 0), (0, n * slots - T), *((0, 0) for _ in tail)))
        return x.reshape(N, K, n, slots, *tail).swapaxes(1, 2).reshape(N * n, K, slots, *tail)

    return Pages(*jax.tree.map(cut, x))


@functools.partial(jax.jit, donate_argnums=(0,))
def commit(pages: list[KV], stages: list[KV], at_B: jax.Array) -> list[KV]:
    """The pool with the stage of each row stored as page ``at_B``; indices beyond the pool drop it (not full yet)."""

    def layers(pages, stages, at_B):
        return [_put_at(p, _as_stored(p, s), at_B) for p, s in zip(pages, stages, strict=True)]

    return locally(layers, ("BK", "BK", "B"), "BK")(pages, stages, at_B)


def write_prompts(prompts: list[KV], k_LNKTH: jax.Array, v_LNKTH: jax.Array, at_N: jax.Array) -> list[KV]:
    """The prompt slots with prefilled prompts stored at ``at_N``; indices beyond the last slot drop idle prompts."""

    def layers(prompts, k_LNKTH, v_LNKTH, at_N):
        dtype = prompts[0].k.x.dtype
        new = (KV(encode(k, dtype), encode(v, dtype)) for k, v in zip(k_LNKTH, v_LNKTH, strict=True))
        if not isinstance(prompts[0], Pages):
            return [_put_at(old, _as_stored(old, x), at_N) for old, x in zip(prompts, new, strict=True)]
        n, slots = prompt_pages(k_LNKTH.shape[3])
        at_N = (at_N[:, None] * n + jnp.arange(n, dtype=jnp.int32)[None]).reshape(-1)
        return [_put_at(old, _in_pages(x, n, slots), at_N) for old, x in zip(prompts, new, strict=True)]

    return locally(layers, ("BK", "LBK", "LBK", "B"), "BK")(prompts, k_LNKTH, v_LNKTH, at_N)


@functools.partial(jax.jit, donate_argnums=(0,))
def move(pages: list[KV], from_N: jax.Array, to_N: jax.Array) -> list[KV]:
    """The pool with the pages ``from_N`` copied to the places ``to_N``; a place beyond the pool means no move."""

    def layers(pages, from_N, to_N):
        return [_put_at(p, jax.tree.map(lambda x: rows(x, from_N), p), to_N) for p in pages]

    return locally(layers, ("BK", "B", "B"), "BK")(pages, from_N, to_N)


def grow(pages: list[KV], size: int) -> list[KV]:
    """The pool with ``size`` pages on each part of the mesh; the pages that exist keep their places.

    It replaces one layer after the other in the list, so only one layer exists twice. At 32 x 8 rollouts of Qwen3-4B a
    second copy of the whole pool would be 8 GB, of a chip's 16.
    """
    for i, layer in enumerate(pages):
        pages[i] = _grown(layer, size)
    return pages


@functools.partial(jax.jit, static_argnames=("size",))
def _grown(layer: KV, size: int) -> KV:
    def pad(x):
        return jnp.pad(x, ((0, size - x.shape[0]), *((0, 0),) * (x.ndim - 1)))

    return locally(lambda layer: jax.tree.map(pad, layer), ("BK",), "BK")(layer)


def keep(layers: list[KV], at_N: jax.Array) -> list[KV]:
    """Only these rows of the stages, or these pages of the pool, in this order; in place in the list, like `grow`."""
    for i, layer in enumerate(layers):
        layers[i] = _kept(layer, at_N)
    return layers


@jax.jit
def _kept(layer: KV, at_N: jax.Array) -> KV:
    pick = locally(lambda layer, at_N: jax.tree.map(lambda x: rows(x, at_N), layer), ("BK", "B"), "BK")
    return pick(layer, at_N)
