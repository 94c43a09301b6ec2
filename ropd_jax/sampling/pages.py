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

Attention (`sampling.paged_attention`) runs over whole prompt slots, pages and stages as they are in memory, each with
the queries of its owner. This gives partial softmaxes (maximum, sum, weighted values). A row then adds up its own; the
bits depend neither on the places of its pages nor on other rows. The pool is as large as all rows together need, not
rows times the longest. A GPU, or a TPU without the kernel, reads the pool in blocks, up to the last page in use. Pages
are moved down to free places (`move`), so that few free ones are read. Prompt slots are read up to the longest prompt.

On a TPU a kernel reads the cache (`sampling.kernel`): for each row its own pages, through ``table_BD``.
Then the prompt slots also consist of pages, keys are stored like values, and a free page costs nothing.

On a mesh, rows, prompt slots and pages are split over ``fsdp`` and heads over ``tp``. The pages and prompt of a row are
in the part of the row, all indices count within the part, and attention needs no communication.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel.mesh import check_heads, constrain, locally, platform
from ropd_jax.sampling.kv import KV, Pages, Stored, View, rows
from ropd_jax.sampling.paged_attention import attend, attend_paged
from ropd_jax.types import UserError

CACHE_DTYPES = ("float32", "bfloat16", "int8")
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
