"""Frequencies of the rotary embedding. Imports no jax."""

from __future__ import annotations

import numpy as np

from ropd_jax.models.config import RopeScaling
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
