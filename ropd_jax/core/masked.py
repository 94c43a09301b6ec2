"""Reductions over a mask. Values at False never affect the result, not even NaN."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def masked_sum(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
    """Sum of ``x`` where ``mask`` is True, float32."""
    return jnp.sum(jnp.where(mask, x.astype(jnp.float32), 0.0), axis=axis, keepdims=keepdims)


def masked_mean(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
    """Mean of ``x`` where ``mask`` is True, float32; 0 for an empty mask (a placeholder: do not use it)."""
    n = jnp.sum(mask, axis=axis, keepdims=keepdims).astype(jnp.float32)
    return masked_sum(x, mask, axis, keepdims) / jnp.maximum(n, 1.0)


def masked_std(x: jax.Array, mask: jax.Array, axis=None, keepdims: bool = False) -> jax.Array:
    """Sample standard deviation (divisor n-1, as torch.std) of ``x`` where ``mask`` is True; 0 for fewer than two."""
    n = jnp.sum(mask, axis=axis, keepdims=keepdims).astype(jnp.float32)
    centred = x.astype(jnp.float32) - masked_mean(x, mask, axis, keepdims=True)
    return jnp.sqrt(masked_sum(jnp.square(centred), mask, axis, keepdims) / jnp.maximum(n - 1.0, 1.0))


def masked_max(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
    """Maximum where ``mask`` is True; -inf for an empty mask."""
    return jnp.max(jnp.where(mask, x.astype(jnp.float32), -jnp.inf), axis=axis)


def masked_min(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
    """Minimum where ``mask`` is True; +inf for an empty mask."""
    return jnp.min(jnp.where(mask, x.astype(jnp.float32), jnp.inf), axis=axis)
