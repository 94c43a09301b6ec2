"""Attention behind one function, so that there is one place to choose a kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ropd_jax.mesh import out


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

    Keys and values lie as [B, K, S, H]: the matmuls of a decode step then read the cache in order
    (measured 1.1-1.3x faster than [B, S, K, H] on CPU).

    Args:
        q_BTNH: queries; head n belongs to key/value head n // (N/K).
        k_BKSH: keys.
        v_BKSH: values.
        mask_BTS: True where query t may look at slot s. A row with no True gives the mean of the values.
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


def causal_mask(positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """mask_BTS for sequences laid out in one row: same segment, not padding (segment 0), not the future."""
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    past_BTS = positions_BT[:, :, None] >= positions_BT[:, None, :]
    return same_BTS & past_BTS & (segments_BT != 0)[:, None, :]
