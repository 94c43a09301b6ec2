"""Token losses, and the weights that turn them into one number.

A loss here is a sum over tokens of ``weight_BT * loss_BT``. The weights are computed once from the mask of the whole
batch, so the parts of a gradient accumulation add up to the exact global mean, however the batch is split.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

AGGREGATIONS = ("token_mean", "seq_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm")
KL_KINDS = ("k1", "k2", "k3")
KL_ON = ("valid", "informative")  # tokens with KL and entropy terms; docs/update.md
RATIOS = ("token", "sequence")


def token_weights(
    mask_BT: jax.Array, aggregation: str, length_BT: jax.Array | None = None, *, max_tokens: int = 1
) -> jax.Array:
    """weight_BT such that ``sum(weight_BT * loss_BT)`` is the aggregate of the whole batch.

    - ``token_mean``: mean over all tokens of the batch (released ROPD code, DAPO).
    - ``seq_mean``: mean over sequences of the mean over their tokens (paper Eq. 8, GRPO).
    - ``seq_mean_token_sum``: mean over sequences of the sum over their tokens (Dr.GRPO without its constant).
    - ``seq_mean_token_sum_norm``: the same divided by ``max_tokens`` (Dr.GRPO, arXiv 2503.20783): long wrong answers
      are not diluted, and the size of the loss does not depend on the lengths in the batch.

    Args:
        mask_BT: True for the tokens that count. Sequences without such tokens are not counted.
        aggregation: one of `AGGREGATIONS`.
        length_BT: tokens that count in the token's sequence, if several share a row; None if each has its own.
        max_tokens: the constant divisor of ``seq_mean_token_sum_norm``: the maximum length of an answer.

    Raises:
        ValueError: unknown aggregation.
    """
    numerator_BT, weight = token_numerators(mask_BT, aggregation, length_BT, max_tokens=max_tokens)
    return numerator_BT / jnp.maximum(weight, 1.0)


def token_numerators(
    mask_BT: jax.Array, aggregation: str, length_BT: jax.Array | None = None, *, max_tokens: int = 1
) -> tuple[jax.Array, jax.Array]:
    """(numerator_BT, weight): `token_weights` for a batch in portions.

    The aggregate is the sum of ``numerator_BT * loss_BT`` over all portions, divided by the sum of their weights: the
    number of tokens for ``token_mean``, of sequences for the others. Arguments and errors as for `token_weights`.
    """
    mask32_BT = mask_BT.astype(jnp.float32)
    if length_BT is None:
        length_BT = jnp.sum(mask32_BT, axis=-1, keepdims=True)
    share_BT = mask32_BT / jnp.maximum(length_BT.astype(jnp.float32), 1.0)  # adds up to 1 for each sequence
    sequences = jnp.round(jnp.sum(share_BT))
    if aggregation == "token_mean":
        return mask32_BT, jnp.sum(mask32_BT)
    if aggregation == "seq_mean":
        return share_BT, sequences
    if aggregation == "seq_mean_token_sum":
        return mask32_BT, sequences
    if aggregation == "seq_mean_token_sum_norm":
        return mask32_BT / max_tokens, sequences
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
        old_logp_BT: log-probs under the student that sampled, of its full distribution: no top-k, no top-p.
        advantage_BT: advantage of the token's rollout.
        dual_clip: for A < 0 the loss is at most ``-dual_clip * A`` (released code: 3.0); 0 disables it.

    Returns:
        (loss_BT, clipped_BT): the loss, and True where clipping removed the gradient.
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


def truncated_is_loss(
    logp_BT: jax.Array, old_logp_BT: jax.Array, advantage_BT: jax.Array, *, cap: float
) -> tuple[jax.Array, jax.Array]:
    """Policy gradient with truncated importance weights: -sg(min(ratio, cap)) * A * log p, per token.

    The weight corrects for the policy that sampled and has no gradient, so no token's gradient is ever clipped to zero:
    its weight is bounded instead (IMPALA, arXiv 1802.01561, Eq. 1; the released code's token-level rollout correction,
    threshold 2.0, is the same with one update per step).

    Returns:
        (loss_BT, capped_BT): the loss, and True where the weight was cut at ``cap``.
    """
    ratio_BT = jax.lax.stop_gradient(jnp.exp(logp_BT - old_logp_BT))
    return -jnp.minimum(ratio_BT, cap) * advantage_BT * logp_BT, ratio_BT > cap


def weighted_clip_loss(
    logp_BT: jax.Array,
    start_logp_BT: jax.Array,
    sampler_logp_BT: jax.Array,
    advantage_BT: jax.Array,
    *,
    cap: float,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`policy_loss` times truncated importance weights, per token, as in the released code (verl).

    Three policies: p is trained, p_start is from before the step's first update, p_sampler drew the token. The clip
    bounds the size of the step, ratio p / p_start; the weight sg(min(p_start / p_sampler, cap)) corrects for where it
    started. With p_start 0.2, p_sampler 0.1, p 0.3, A = 1, cap 1.5 and clips 0.2, 0.28: -1.5 * min(1.5, 1.28) = -1.92.

    Returns:
        (loss_BT, clipped_BT, capped_BT): the loss, and True where the clip or the cap acted.
    """
    loss_BT, clipped_BT = policy_loss(
        logp_BT, start_logp_BT, advantage_BT, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    weight_BT = jax.lax.stop_gradient(jnp.exp(start_logp_BT - sampler_logp_BT))
    return jnp.minimum(weight_BT, cap) * loss_BT, clipped_BT, weight_BT > cap


def sequence_logp(
    logp_BT: jax.Array, old_logp_BT: jax.Array, mask_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(logp_BT, old_logp_BT) whose per-token ratio is the sequence's: s = exp(mean_t(log p - log p_old)).

    GSPO (arXiv 2507.18071, Eq. 7 and its token form, Eq. 15): every token of a sequence has the value of s, and the
    gradient of log s is spread evenly over its tokens. Pass the result to `policy_loss`.

    Args:
        mask_BT: the tokens that count; elsewhere the result is 0.
        segments_BT: the sequence of each token in its row (rows can be packed).
    """
    delta_BT = jax.lax.stop_gradient(segment_mean(logp_BT - old_logp_BT, mask_BT, segments_BT))
    now_BT = jax.lax.stop_gradient(logp_BT)
    return jnp.where(mask_BT, logp_BT - now_BT + delta_BT, 0.0), jnp.zeros_like(logp_BT)


def segment_sum(x_BT: jax.Array, mask_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """At every token the sum of ``x_BT`` over the masked tokens of its segment; float32.

    Segments are runs of equal numbers in a row. Two scans along the row, no scatter: its sharding is that of its input.
    """
    x_BT = jnp.where(mask_BT, x_BT.astype(jnp.float32), 0.0)

    def add(left, right):
        (a, seg_a), (b, seg_b) = left, right
        return jnp.where(seg_a == seg_b, a + b, b), seg_b

    before_BT, _ = jax.lax.associative_scan(add, (x_BT, segments_BT), axis=1)
    after_BT, _ = jax.lax.associative_scan(add, (x_BT, segments_BT), axis=1, reverse=True)
    return before_BT + after_BT - x_BT


def segment_mean(x_BT: jax.Array, mask_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """At every token the mean of ``x_BT`` over the masked tokens of its segment; 0 where there are none."""
    n_BT = segment_sum(jnp.ones_like(x_BT, jnp.float32), mask_BT, segments_BT)
    return segment_sum(x_BT, mask_BT, segments_BT) / jnp.maximum(n_BT, 1.0)


def kl_estimate(logp_BT: jax.Array, ref_logp_BT: jax.Array, kind: str) -> jax.Array:
    """Estimate of KL(policy || reference) per token from the log-probs of the sampled token (J. Schulman, 2020).

    - ``k1``: log(p / p_ref). Unbiased, can be negative. As a loss its gradient is 0 in expectation: it is a value to
      monitor, not a constraint.
    - ``k2``: log(p / p_ref)^2 / 2. Biased, but its gradient is that of the KL in expectation.
    - ``k3``: r - 1 - log r with r = p_ref / p. Unbiased and never negative (GRPO, arXiv 2402.03300, Eq. 4).

    Raises:
        ValueError: unknown kind.
    """
    if kind == "k1":
        return logp_BT - ref_logp_BT
    if kind == "k2":
        return jnp.square(logp_BT - ref_logp_BT) / 2
    if kind == "k3":
        d_BT = ref_logp_BT - logp_BT
        return jnp.expm1(d_BT) - d_BT
    raise ValueError(f"kl_kind={kind!r}; expected one of {', '.join(KL_KINDS)}")
