"""The rotary embedding (arXiv 2104.09864): frequencies, the angles of a batch, and the rotation of queries and keys."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.models.config import ModelConfig, RopeScaling
from ropd_jax.types import UserError


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """theta^(-2i/H) for i < H/2, stretched by the checkpoint's `RopeScaling`. Computed in float64.

    Raises:
        UserError: unknown kind of scaling.
    """
    freq_H = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return freq_H
    if scaling.kind == "linear":
        return freq_H / scaling.factor
    if scaling.kind == "yarn":
        return _yarn(freq_H, theta, scaling)
    if scaling.kind != "llama3":
        raise UserError(f"rope scaling {scaling.kind!r} is not supported; supported: linear, llama3, yarn")
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    cycles_H = scaling.original_len * freq_H / (2 * np.pi)  # full cycles within the original length
    keep_H = np.clip((cycles_H - low) / (high - low), 0.0, 1.0)
    return keep_H * freq_H + (1 - keep_H) * freq_H / scaling.factor


def _yarn(freq_H: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """YaRN's frequencies (arXiv 2309.00071, section 3.2, with the ramp over pairs as in its authors' code)."""
    pairs = len(freq_H)

    def pair_of(cycles: float) -> float:
        """The index of the pair that makes this many full cycles within the original length."""
        return pairs * math.log(scaling.original_len / (cycles * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    width = high - low or 0.001
    divide_H = np.clip((np.arange(pairs) - low) / width, 0.0, 1.0)
    return freq_H * (1 - divide_H) + freq_H / scaling.factor * divide_H


@functools.cache
def rope_kinds(cfg: ModelConfig) -> np.ndarray:
    """Rotary frequencies, float32 [kinds, H/2]: for most layers, for local ones, and 0 for those without angles."""
    kinds = [rope_frequencies(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)]
    if cfg.local_layers and cfg.rope_theta_local:
        kinds.append(rope_frequencies(cfg.head_dim, cfg.rope_theta_local, None))
    if any(cfg.no_rope_layers):
        kinds.append(np.zeros_like(kinds[0]))
    return np.stack(kinds).astype(np.float32)


@functools.cache
def rope_kind_of(cfg: ModelConfig) -> np.ndarray:
    """int32 [L], which of `rope_kinds` rotates each layer's queries and keys."""
    kinds_L = np.zeros(cfg.num_layers, np.int32)
    if cfg.local_layers and cfg.rope_theta_local:
        kinds_L += np.array(cfg.local_layers, np.int32)
    if any(cfg.no_rope_layers):
        kinds_L[np.array(cfg.no_rope_layers)] = len(rope_kinds(cfg)) - 1
    return kinds_L


def _factors(cfg: ModelConfig) -> np.ndarray:
    """The factors of sines and cosines for each of `rope_kinds`, float32 [kinds]; 1 except for YaRN."""
    factors = np.ones(len(rope_kinds(cfg)), np.float32)
    if cfg.rope_scaling is not None:
        factors[0] = cfg.rope_scaling.attention_factor
    return factors


class Angles(NamedTuple):
    """Sines and cosines of rotary angles, float32: [B, T, H/2], or [kinds, B, T, H/2] for all `rope_kinds`."""

    sin: jax.Array
    cos: jax.Array


def rotary_angles(cfg: ModelConfig, positions_BT: jax.Array) -> Angles:
    """Angles of all kinds [kinds, B, T, H/2]: position times frequency, in float32 (bfloat16 rounds 257 to 256).

    Computed once for all layers. Inside a layer, XLA on CPU would compute both again for every head.
    """
    freq_FH = jnp.asarray(rope_kinds(cfg))
    angles_FBTH = positions_BT.astype(jnp.float32)[None, :, :, None] * freq_FH[:, None, None]
    if (factors := _factors(cfg)).tolist() == [1.0] * len(factors):
        return Angles(jnp.sin(angles_FBTH), jnp.cos(angles_FBTH))
    factor_F111 = factors[:, None, None, None]
    return Angles(jnp.sin(angles_FBTH) * factor_F111, jnp.cos(angles_FBTH) * factor_F111)


def angles_of_kind(all_kinds: Angles, kind) -> Angles:
    """The angles of one kind; ``kind`` is the int32 scalar of a layer, which can be traced."""
    if len(all_kinds.sin) == 1:
        kind = 0
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, kind, keepdims=False), all_kinds)


def rotate(x_BTNH: jax.Array, angles: Angles) -> jax.Array:
    """x_BTNH rotated by the angles of its layer (each [B, T, H/2]); computed in float32, returned in the dtype of x.

    The half-split convention of Hugging Face checkpoints: entries i and i + H/2 are a pair. With H = 4 the pairs are
    (x0, x2) and (x1, x3), and at position p the first becomes (x0 cos p - x2 sin p, x2 cos p + x0 sin p).
    """
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    sin, cos = angles.sin[:, :, None], angles.cos[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
