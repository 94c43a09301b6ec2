"""The rotary embedding (arXiv 2104.09864): frequencies, the angles of a batch, and queries and keys turned by them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.models.config import ModelConfig, RopeScaling
from ropd_jax.types import UserError


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """theta^(-2i/H) for i < H/2, stretched as the checkpoint says; see `RopeScaling`. Computed in float64.

    Raises:
        UserError: unknown kind of scaling.
    """
    freq_H = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return freq_H
    if scaling.kind == "linear":
        return freq_H / scaling.factor
    if scaling.kind != "llama3":
        raise UserError(f"rope scaling {scaling.kind!r} is not supported; supported: linear, llama3")
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns_H = scaling.original_len * freq_H / (2 * np.pi)  # full turns within the original length
    keep_H = np.clip((turns_H - low) / (high - low), 0.0, 1.0)
    return keep_H * freq_H + (1 - keep_H) * freq_H / scaling.factor


@functools.cache
def rope_kinds(cfg: ModelConfig) -> np.ndarray:
    """Rotary frequencies, float32 [kinds, H/2]: those of all layers, or those of global and those of local ones."""
    kinds = [rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)]
    if cfg.local_layers and cfg.rope_theta_local:
        kinds.append(rope_frequencies(cfg.head_dim, cfg.rope_theta_local, None))
    return np.stack(kinds).astype(np.float32)


class Turn(NamedTuple):
    """Sines and cosines of the rotary angles, float32 [B, T, H/2], or [kinds, B, T, H/2] of all `rope_kinds`."""

    sin: jax.Array
    cos: jax.Array


def turns(cfg: ModelConfig, positions_BT: jax.Array) -> Turn:
    """Of all kinds [kinds, B, T, H/2]: position times frequency, in float32 (bfloat16 rounds 257 to 256).

    Once for all layers: inside of them XLA on CPU computes both anew for every head.
    """
    freq_FH = jnp.asarray(rope_kinds(cfg))
    angles_FBTH = positions_BT.astype(jnp.float32)[None, :, :, None] * freq_FH[:, None, None]
    return Turn(jnp.sin(angles_FBTH), jnp.cos(angles_FBTH))


def turn_of(all_kinds: Turn, kind) -> Turn:
    """That of a layer's ``kind``, an int32 scalar which may be traced."""
    if len(all_kinds.sin) == 1:
        kind = 0
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, kind, keepdims=False), all_kinds)


def rotate(x_BTNH: jax.Array, turn: Turn) -> jax.Array:
    """x_BTNH turned by a layer's ``turn`` (each [B, T, H/2]), in the half-split convention of Hugging Face checkpoints.

    Computed in float32; the result has the dtype of ``x_BTNH``.
    """
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    sin, cos = turn.sin[:, :, None], turn.cos[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
