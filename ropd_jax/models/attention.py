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

from ropd_jax.models.flash import Shape, flash, short
from ropd_jax.models.splash import splash
from ropd_jax.parallel.mesh import active_mesh, constrain, out, platform
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
) -> jax.Array:
    """Causal attention within the segments of each row, with grouped query heads, without repeating K or V.

    The tokens of a segment are next to each other and in order, so their index in the row tells past from future.
    Padding (segment 0) sees only padding, and nothing else sees it.

    Args:
        local: bool scalar, may be traced: whether this layer is one that sees ``window`` positions only.
        scale: factor on Q K^T; 0 means H^-1/2.
        impl: a key of `KERNELS`, or ``auto``: splash on a TPU; cuDNN on a GPU where it has the dtype (bfloat16) and
            no soft cap is asked of it; else plain XLA, in the way that suits short or long rows.

    Returns:
        o_BTNH in the dtype of ``q_BTNH``; softmax in float32. All kernels agree with the naive one within 1e-5 in
        float32, in value and gradient.

    Raises:
        UserError: unknown ``impl``, or one that cannot do what is asked.
    """
    pattern = Pattern(scale or q_BTNH.shape[-1] ** -0.5, softcap, window)
    name = choose(impl, platform(), q_BTNH.shape[1], q_BTNH.dtype, softcap, rows=q_BTNH.shape[0])
    kernel = functools.partial(KERNELS[name], pattern=pattern)
    local, segments_BT = jnp.asarray(local), constrain(segments_BT, "BT")
    if active_mesh() is None or name == "naive":
        return kernel(q_BTNH, k_BTKH, v_BTKH, segments_BT, local)
    # Rows are split over fsdp, heads over tp: each device computes its own part, and the kernel sees plain arrays.
    specs = (out("BTNH"), out("BTKH"), out("BTKH"), out("BT"), jax.P())
    return jax.shard_map(kernel, in_specs=specs, out_specs=out("BTNH"), check_vma=False)(
        q_BTNH, k_BTKH, v_BTKH, segments_BT, local
    )


def choose(impl: str, platform: str, length: int, dtype, softcap: float, *, rows: int) -> str:
    """The name of the kernel for a setting; see `self_attention`."""
    if impl not in ("auto", *KERNELS):
        raise UserError(f"optim.attention={impl!r}; expected one of auto, {', '.join(KERNELS)}")
    if impl == "cudnn" and (dtype != jnp.bfloat16 or softcap):
        raise UserError(
            f"optim.attention='cudnn' with dtype {jnp.dtype(dtype).name} and soft cap {softcap}: cuDNN has bfloat16 "
            "without a cap only; set student.dtype='bfloat16', or optim.attention='auto'"
        )
    if impl != "auto":
        return impl
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and dtype == jnp.bfloat16 and not softcap:
        return "cudnn"
    return "short" if length <= (SHORT_IF_FEW if rows <= FEW_ROWS else SHORT) else "xla"


def _naive(q_BTNH, k_BTKH, v_BTKH, segments_BT, local, *, pattern: Pattern):
    first_BT = first_seen(segments_BT, local, pattern.window)
    index_T = jnp.arange(q_BTNH.shape[1], dtype=jnp.int32)
    mask_BTS = (index_T[None, None] <= index_T[None, :, None]) & (index_T[None, None] >= first_BT[..., None])
    k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    return attention(q_BTNH, k_BKTH, v_BKTH, mask_BTS, scale=pattern.scale, softcap=pattern.softcap)


def _xla(q_BTNH, k_BTKH, v_BTKH, segments_BT, local, *, pattern: Pattern):
    first_BT = first_seen(segments_BT, local, pattern.window)
    return flash(q_BTNH, k_BTKH, v_BTKH, first_BT, Shape(pattern.scale, pattern.softcap, XLA_BLOCK))


def _short(q_BTNH, k_BTKH, v_BTKH, segments_BT, local, *, pattern: Pattern):
    first_BT = first_seen(segments_BT, local, pattern.window)
    return short(q_BTNH, k_BTKH, v_BTKH, first_BT, Shape(pattern.scale, pattern.softcap, XLA_BLOCK))


def _splash(q_BTNH, k_BTKH, v_BTKH, segments_BT, local, *, pattern: Pattern, interpret: bool = False):
    first_BT, how = first_seen(segments_BT, local, pattern.window), pattern._asdict()
    return splash(q_BTNH, k_BTKH, v_BTKH, segments_BT, first_BT, local, **how, interpret=interpret)


def _cudnn(
    q_BTNH, k_BTKH, v_BTKH, segments_BT, local, *, pattern: Pattern, implementation: Literal["cudnn", "xla"] = "cudnn"
):
    """cuDNN's flash attention. The segments are a mask [B, 1, T, T] there, one for all heads."""
    same_B1TS = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]

    def rows(local_window_size, q_BTNH, k_BTKH, v_BTKH, mask_B1TS):
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TS, scale=pattern.scale, is_causal=True,
            local_window_size=local_window_size, implementation=implementation,
        )  # fmt: skip

    inputs = (q_BTNH, k_BTKH, v_BTKH, same_B1TS)
    if not pattern.window:
        return rows(None, *inputs)
    near = functools.partial(rows, (pattern.window - 1, 0))
    return jax.lax.cond(local, near, functools.partial(rows, None), *inputs)


KERNELS: dict[str, Callable] = {"naive": _naive, "short": _short, "xla": _xla, "splash": _splash, "cudnn": _cudnn}


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
