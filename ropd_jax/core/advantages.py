"""Group-relative advantages (ROPD Eq. 6; GRPO, arXiv 2402.03300)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ropd_jax.core.masked import masked_max, masked_mean, masked_min, masked_std
from ropd_jax.types import Array


class Advantages(NamedTuple):
    """Advantages of a step, and the status of its groups.

    Attributes:
        advantage_PG: float32, exactly 0 wherever ``informative_PG`` is False.
        valid_PG: the rollout is scored and its group has at least ``min_scored`` scored rollouts.
        informative_PG: valid, and its group's rewards are not all equal: only these give a gradient.
    """

    advantage_PG: Array
    valid_PG: Array
    informative_PG: Array


def group_advantages(
    reward_PG: Array, valid_PG: Array, *, normalize_std: bool, min_scored: int = 2, eps: float = 1e-6
) -> Advantages:
    """Reward minus the mean of the scored rollouts of its group, optionally divided by their std.

    The paper divides (Eq. 6), its released code does not (like Dr.GRPO, arXiv 2503.20783).
    Unscored rollouts are excluded from mean and std; their entries of ``reward_PG`` are never read.

    Args:
        reward_PG: rewards in [0, 1].
        valid_PG: True if the rollout is scored.
        normalize_std: divide by the group's sample standard deviation + ``eps``.
        min_scored: groups with fewer scored rollouts are invalid; at least 2.
    """
    reward_PG = jnp.where(valid_PG, reward_PG.astype(jnp.float32), 0.0)
    enough_P1 = jnp.sum(valid_PG, axis=1, keepdims=True) >= max(min_scored, 2)
    valid_PG = valid_PG & enough_P1
    # Equality of the whole group, not std == 0: the float32 mean of equal rewards need not be equal to them.
    spread_P1 = (masked_max(reward_PG, valid_PG, axis=1) > masked_min(reward_PG, valid_PG, axis=1))[:, None]
    informative_PG = valid_PG & spread_P1
    advantage_PG = reward_PG - masked_mean(reward_PG, valid_PG, axis=1, keepdims=True)
    if normalize_std:
        advantage_PG = advantage_PG / (masked_std(reward_PG, valid_PG, axis=1, keepdims=True) + eps)
    return Advantages(jnp.where(informative_PG, advantage_PG, 0.0), valid_PG, informative_PG)


class Part(NamedTuple):
    """One part of the rewards of a group, such as a criterion.

    Attributes:
        weight: its weight in the reward.
        values: one number per rollout; entries of unscored rollouts are never read.
    """

    weight: float
    values: Sequence[float]


def summed_advantages(
    parts: Sequence[Sequence[Part]], valid_PG: np.ndarray, *, normalize_std: bool, min_scored: int = 2
) -> Advantages:
    """Advantages part by part: A_i = sum_k w_k A_ik, with A_ik the `group_advantages` of the values of part k.

    Divided by its own standard deviation, a part that only one rollout of eight fulfils counts as much per point as one
    that half of them fulfil; in the advantage of the total reward its effect would be small. Without that division the
    sum is the advantage of the total reward. With one part of weight 1 it is that part's `group_advantages`.

    Args:
        parts: per group the parts of its rewards.
        valid_PG: True if the rollout is scored.
    """
    P, G = valid_PG.shape
    K = max(1, *(len(of_group) for of_group in parts)) if len(parts) else 1
    value_PKG, weight_PK = np.zeros((P, K, G), np.float32), np.zeros((P, K), np.float32)
    for p, of_group in enumerate(parts):
        for k, part in enumerate(of_group):
            value_PKG[p, k], weight_PK[p, k] = part.values, part.weight
    each = group_advantages(
        value_PKG.reshape(P * K, G), np.repeat(valid_PG, K, axis=0), normalize_std=normalize_std, min_scored=min_scored
    )
    advantage_PKG, enough_PKG, informative_PKG = (np.asarray(x).reshape(P, K, G) for x in each)
    informative_PG = np.any(informative_PKG & (weight_PK > 0)[..., None], axis=1)
    advantage_PG = np.sum(weight_PK[..., None] * advantage_PKG, axis=1)
    return Advantages(np.where(informative_PG, advantage_PG, 0.0), enough_PKG[:, 0], informative_PG)
