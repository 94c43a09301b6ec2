"""Attention behind one function, so that there is one place to choose a kernel.

Training, scoring and prefill call `self_attention`, with whole rows that are described by their segments. `attention`
takes any mask. It is for short rows, and it is the reference that every kernel is tested against.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ropd_jax.models.flash import Shape, flash, sees, short
from ropd_jax.models.splash import splash
from ropd_jax.parallel.mesh import active_mesh, check_heads, constrain, out, parts_of_a_row, platform
from ropd_jax.types import UserError

XLA_BLOCK = 64  # queries and keys of a block on the XLA path; 1.1-1.2 x faster than 128 on CPU, 512 to 2,048 tokens
SHORT = 256  # rows up to this length are short (`flash.short`): 1.9 x faster than blocks at 2 x 191 positions on CPU
FEW_ROWS, SHORT_IF_FEW = 4, 512  # and few of them up to this one: 1.7 x at one row of 512


class Pattern(NamedTuple):
    """What is the same for all layers and rows.

    Attributes:
        scale: factor on Q K^T.
        softcap: scores become ``softcap * tanh(scores / softcap)``; 0 is none.
        window: a query of a local layer sees this many positions, its own included; 0: there are no local layers.
    """

    scale: float
    softcap: float
    window: int


def self_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    local: jax.Array | bool = False,
    window: int = 0,
    scale: float = 0.0,
    softcap: float = 0.0,
    impl: str = "auto",
    shared: bool = False,
) -> jax.Array:
    """Causal attention within the segments of each row, with grouped query heads, without repeating K or V.

    The tokens of a segment are next to each other and in order, so their index in the row separates past and future.
    Padding (segment 0) sees only padding, and nothing else sees it.

    Args:
        local: bool scalar, may be traced: whether this layer is one that sees ``window`` positions only.
        scale: factor on Q K^T; 0 means H^-1/2.
        impl: a key of `KERNELS`, or ``auto``: splash on a TPU; cuDNN on a GPU for bfloat16 without a soft cap;
            else plain XLA, in a form for short or long rows.
        shared: rows hold shared prompts (`core.batches.make_batch`): a token of segment s sees its own segment and
            that of the prompt, ``s - s % SHARED``. Plain XLA on every platform.

    Returns:
        o_BTNH in the dtype of ``q_BTNH``; softmax in float32. All kernels agree with the naive one within 1e-5 in
        float32, in value and gradient.

    Raises:
        UserError: unknown ``impl``, one that does not support the arguments, or heads that ``tp`` does not divide.
    """
    check_heads(q_BTNH.shape[2], k_BTKH.shape[2])
    pattern = Pattern(scale or q_BTNH.shape[-1] ** -0.5, softcap, window)
    cp = parts_of_a_row()
    name = choose(impl, platform(), q_BTNH.shape[1], q_BTNH.dtype, softcap, rows=q_BTNH.shape[0], cp=cp, shared=shared)
    kernel = functools.partial(KERNELS[name], pattern=pattern, **({"shared": True} if shared else {}))
    local, segments_BS = jnp.asarray(local), constrain(segments_BT, "BS")
    if active_mesh() is None or (name == "naive" and cp == 1):
        return kernel(q_BTNH, k_BTKH, v_BTKH, segments_BS, local)

    def own(q_BTNH, k_BSKH, v_BSKH, segments_BS, local):
        at = jax.lax.axis_index("cp") * q_BTNH.shape[1] if cp > 1 else 0
        return kernel(q_BTNH, k_BSKH, v_BSKH, segments_BS, local, at=at)

    # Rows are split over fsdp, heads over tp, queries over cp: each device computes its own part, and the kernel sees
    # plain arrays. Keys and values of a row are gathered over cp: with grouped heads they are the smallest of all.
    specs = (out("BTNH"), out("BSKH"), out("BSKH"), out("BS"), jax.P())
    return jax.shard_map(own, in_specs=specs, out_specs=out("BTNH"), check_vma=False)(
        q_BTNH, constrain(k_BTKH, "BSKH"), constrain(v_BTKH, "BSKH"), segments_BS, local
    )


def choose(
    impl: str, platform: str, length: int, dtype, softcap: float, *, rows: int, cp: int = 1, shared: bool = False
) -> str:
    """The name of the kernel for a setting; see `self_attention`. With ``cp`` > 1, rows are in that many parts."""
    if impl not in ("auto", *KERNELS):
        raise UserError(f"optim.attention={impl!r}; expected one of auto, {', '.join(KERNELS)}")
    if shared:
        if impl not in ("auto", *KERNELS_SHARED) or cp > 1:
            raise UserError(
                f"optim.shared_prompts=True with optim.attention={impl!r} and mesh.cp={cp}: only the kernels "
                f"{', '.join(KERNELS_SHARED)} support shared prompts, and only with mesh.cp=1; set "
                "optim.attention='auto' and mesh.cp=1, or optim.shared_prompts=False"
            )
        return "short" if impl == "auto" else impl
    if impl == "cudnn" and (dtype != jnp.bfloat16 or softcap):
        raise UserError(
            f"optim.attention='cudnn' with dtype {jnp.dtype(dtype).name} and soft cap {softcap}: cuDNN supports "
            "only bfloat16 without a cap; set student.dtype='bfloat16', or optim.attention='auto'"
        )
    if impl == "short" and cp > 1:
        raise UserError(f"optim.attention='short' does not support mesh.cp={cp}; set optim.attention='auto'")
    if impl != "auto":
        return impl
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and dtype == jnp.bfloat16 and not softcap:
        return "cudnn"
    return "short" if cp == 1 and length <= (SHORT_IF_FEW if rows <= FEW_ROWS else SHORT) else "xla"


# A kernel gets queries [B, T, N, H], keys and values [B, S, K, H] and segments [B, S] of whole rows, S = T; or, with
# mesh.cp, the queries from index ``at`` of rows whose keys, values and segments are whole.


def _naive(q_BTNH, k_BSKH, v_BSKH, segments_BS, local, *, pattern: Pattern, at=0, shared=False):
    mask_BTS = _mask(segments_BS, q_BTNH.shape[1], local, pattern.window, at, shared=shared)
    k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    return attention(q_BTNH, k_BKSH, v_BKSH, mask_BTS, scale=pattern.scale, softcap=pattern.softcap)


def _mask(segments_BS, T: int, local, window: int, at, *, shared: bool = False) -> jax.Array:
    """mask_BTS: whether each of the queries sees each key."""
    first_BT = _first(segments_BS, T, local, window, at)
    key_S, own_T = jnp.arange(segments_BS.shape[1], dtype=jnp.int32), at + jnp.arange(T, dtype=jnp.int32)
    return sees(own_T, key_S, first_BT, (segments_BS, segments_BS) if shared else None)


def _first(segments_BS, T: int, local, window: int, at) -> jax.Array:
    first_BS = first_seen(segments_BS, local, window)
    return first_BS if first_BS.shape[1] == T else jax.lax.dynamic_slice_in_dim(first_BS, at, T, axis=1)


def _xla(q_BTNH, k_BSKH, v_BSKH, segments_BS, local, *, pattern: Pattern, at=0):
    first_BT = _first(segments_BS, q_BTNH.shape[1], local, pattern.window, at)
    return flash(q_BTNH, k_BSKH, v_BSKH, first_BT, at, Shape(pattern.scale, pattern.softcap, XLA_BLOCK))


def _short(q_BTNH, k_BTKH, v_BTKH, segments_BT, local, *, pattern: Pattern, at=0, shared=False):
    first_BT = first_seen(segments_BT, local, pattern.window)
    return short(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        first_BT,
        segments_BT if shared else None,
        Shape(pattern.scale, pattern.softcap, XLA_BLOCK),
    )


def _splash(q_BTNH, k_BSKH, v_BSKH, segments_BS, local, *, pattern: Pattern, at=0, interpret: bool = False):
    first_BT, how = _first(segments_BS, q_BTNH.shape[1], local, pattern.window, at), pattern._asdict()
    return splash(q_BTNH, k_BSKH, v_BSKH, segments_BS, first_BT, local, at=at, **how, interpret=interpret)


def _cudnn(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    segments_BS,
    local,
    *,
    pattern: Pattern,
    at=0,
    implementation: Literal["cudnn", "xla"] = "cudnn",
):
    """cuDNN's flash attention. The segments are a mask [B, 1, T, S] there, one for all heads."""
    inputs = q_BTNH, k_BSKH, v_BSKH
    attend = functools.partial(jax.nn.dot_product_attention, scale=pattern.scale, implementation=implementation)
    if q_BTNH.shape[1] != k_BSKH.shape[1]:  # its own causal mask would count from the first key
        return attend(*inputs, mask=_mask(segments_BS, q_BTNH.shape[1], local, pattern.window, at)[:, None])
    same_B1TS = (segments_BS[:, :, None] == segments_BS[:, None, :])[:, None]
    whole = functools.partial(attend, mask=same_B1TS, is_causal=True)
    if not pattern.window:
        return whole(*inputs)
    near = functools.partial(whole, local_window_size=(pattern.window - 1, 0))
    return jax.lax.cond(local, near, whole, *inputs)


KERNELS: dict[str, Callable] = {"naive": _naive, "short": _short, "xla": _xla, "splash": _splash, "cudnn": _cudnn}
KERNELS_SHARED = ("short", "naive")  # those that know shared prompts


def first_seen(segments_BT: jax.Array, local, window: int) -> jax.Array:
    """first_BT: index of the first token that each one sees, of all up to itself; an example is in `flash`."""
    index_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    begins_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    first_BT = jax.lax.cummax(jnp.where(begins_BT, index_T[None], 0), axis=1)
    if not window:
        return first_BT
    return jnp.maximum(first_BT, jnp.where(local, index_T - (window - 1), 0)[None])


def attention(
    q_BTNH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    mask_BTS: jax.Array,
    *,
    scale: float = 0.0,
    softcap: float = 0.0,
) -> jax.Array:
    """Softmax attention with grouped query heads, without repeating K or V.

    Keys and values are [B, K, S, H]: the matmuls of a decode step then read the cache in order
    (measured 1.1-1.3x faster than [B, S, K, H] on CPU).

    Args:
        q_BTNH: queries; head n belongs to key/value head n // (N/K).
        k_BKSH: keys.
        v_BKSH: values.
        mask_BTS: True if query t sees slot s. A query that sees none gets the mean of the values.
        scale: factor on Q K^T; 0 means H^-1/2.
        softcap: scores become ``softcap * tanh(scores / softcap)``; 0 is none.

    Returns:
        o_BTNH in the dtype of ``q_BTNH``; softmax in float32.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BKSH.shape[1]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    s_BKGTS = jnp.einsum("BTKGH,BKSH->BKGTS", q_BTKGH, k_BKSH, preferred_element_type=jnp.float32)
    s_BKGTS = s_BKGTS * (scale or H**-0.5)
    if softcap:
        s_BKGTS = softcap * jnp.tanh(s_BKGTS / softcap)
    s_BKGTS = jnp.where(mask_BTS[:, None, None], s_BKGTS, jnp.float32(-1e30))  # finite: a padded row must not be NaN
    p_BKGTS = jax.nn.softmax(s_BKGTS, axis=-1).astype(v_BKSH.dtype)
    o_BTKGH = jnp.einsum("BKGTS,BKSH->BTKGH", p_BKGTS, v_BKSH)
    return o_BTKGH.reshape(B, T, N, H, out_sharding=out("BTNH"))
