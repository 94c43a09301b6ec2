"""Token losses, and the weights that turn them into one number.

A loss here is a sum over tokens of ``weight_BT * loss_BT``. The weights are made once from the mask of the whole
batch, so the parts of a gradient accumulation add up to the exact global mean, whatever way the batch is cut.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

AGGREGATIONS = ("token_mean", "seq_mean", "seq_mean_token_sum")


def token_weights(mask_BT: jax.Array, aggregation: str, length_BT: jax.Array | None = None) -> jax.Array:
    """weight_BT such that ``sum(weight_BT * loss_BT)`` is the aggregate of the whole batch.

    - ``token_mean``: mean over all tokens of the batch (released ROPD code, DAPO).
    - ``seq_mean``: mean over sequences of the mean over their tokens (paper Eq. 8, GRPO).
    - ``seq_mean_token_sum``: mean over sequences of the sum over their tokens (Dr.GRPO without its constant).

    Args:
        mask_BT: True for the tokens that count. A sequence without any does not count as one.
        aggregation: one of `AGGREGATIONS`.
        length_BT: tokens that count in the token's sequence, where several share a row; None where each has its own.

    Raises:
        ValueError: unknown aggregation.
    """
    mask32_BT = mask_BT.astype(jnp.float32)
    if length_BT is None:
        length_BT = jnp.sum(mask32_BT, axis=-1, keepdims=True)
    share_BT = mask32_BT / jnp.maximum(length_BT.astype(jnp.float32), 1.0)  # adds up to 1 for each sequence
    sequences = jnp.maximum(jnp.round(jnp.sum(share_BT)), 1.0)
    if aggregation == "token_mean":
        return mask32_BT / jnp.maximum(jnp.sum(mask32_BT), 1.0)
    if aggregation == "seq_mean":
        return share_BT / sequences
    if aggregation == "seq_mean_token_sum":
        return mask32_BT / sequences
    raise ValueError(f"aggregation={aggregation!r}; expected one of {', '.join(AGGREGATIONS)}")


def policy_loss(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    advantage_BT: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Clipped surrogate (Eq. 7-8): -min(ratio * A, clip(ratio, 1-low, 1+high) * A), per token.

    Args:
        logp_BT: log-probs under the policy that is trained.
        old_logp_BT: log-probs under the policy that sampled.
        advantage_BT: advantage of the token's rollout.
        dual_clip: for A < 0 the loss is at most ``-dual_clip * A`` (released code: 3.0); 0 switches it off.

    Returns:
        (loss_BT, clipped_BT): the loss, and True where clipping took the gradient away.
    """
    ratio_BT = jnp.exp(logp_BT - old_logp_BT)
    plain_BT = ratio_BT * advantage_BT
    clipped_BT = jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high) * advantage_BT
    loss_BT = -jnp.minimum(plain_BT, clipped_BT)
    is_clipped_BT = clipped_BT < plain_BT
    if dual_clip:
        bound_BT = -dual_clip * advantage_BT
        hit_BT = (advantage_BT < 0) & (loss_BT > bound_BT)
        loss_BT = jnp.where(hit_BT, bound_BT, loss_BT)
        is_clipped_BT = is_clipped_BT | hit_BT
    return loss_BT, is_clipped_BT


def kl_k3(logp_BT: jax.Array, ref_logp_BT: jax.Array) -> jax.Array:
    """k3 estimate of KL(policy || reference) per token: r - 1 - log r with r = p_ref / p; never negative."""
    d_BT = ref_logp_BT - logp_BT
    return jnp.expm1(d_BT) - d_BT
