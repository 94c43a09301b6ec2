"""Ids of the output table that are not tokens (`ModelConfig.unused`): they get no probability."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.models.config import ModelConfig
from ropd_jax.types import Array

NEVER = -1e30  # the logit of an unused id. Finite: its probability is 0, and p log p in an entropy is 0 instead of NaN


def only_tokens(cfg: ModelConfig, logits_BTV: jax.Array, first: Array) -> jax.Array:
    """The logits with `NEVER` at unused ids; the logits can cover some rows of the table, starting at id ``first``."""
    if not cfg.unused:
        return logits_BTV
    unused_V = jax.lax.dynamic_slice_in_dim(jnp.asarray(unused_ids(cfg)), first, logits_BTV.shape[-1])
    return jnp.where(unused_V[None, None], NEVER, logits_BTV)


@functools.cache
def unused_ids(cfg: ModelConfig) -> np.ndarray:
    """unused_V, bool: the ids of ``cfg.unused``."""
    unused_V = np.zeros(cfg.vocab_size, bool)
    for begin, end in cfg.unused:
        unused_V[begin:end] = True
    return unused_V
