"""How the next token is drawn: temperature, top-k, top-p, and whose randomness it is."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.mesh import constrain
from ropd_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class SamplingRule:
    """Sampling policy.

    Attributes:
        temperature: 0 means greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"sampling.temperature={self.temperature}; expected 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"sampling.top_k={self.top_k}; expected 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p={self.top_p}; expected a number in (0, 1]")


def rollout_keys(seed: int, step: int, prompt_ids: Sequence[str], rollouts: int) -> jax.Array:
    """The random streams of P x G rollouts, flat [P*G].

    Each is a function of (seed, step, prompt id, index of the rollout) alone, never of its neighbours in the batch.
    """
    crc_P = np.array([zlib.crc32(i.encode()) for i in prompt_ids], np.uint32)
    return _rollout_keys(np.uint32(seed), np.uint32(step), crc_P, rollouts)


@functools.partial(jax.jit, static_argnames=("rollouts",))
def _rollout_keys(seed, step, crc_P, rollouts):
    root = jax.random.fold_in(jax.random.key(seed), step)
    one = jax.vmap(lambda crc, g: jax.random.fold_in(jax.random.fold_in(root, crc), g))
    g_B = jnp.tile(jnp.arange(rollouts, dtype=jnp.uint32), len(crc_P))
    return one(jnp.repeat(crc_P, rollouts), g_B)


def policy_logprobs(logits_BV: jax.Array, rule: SamplingRule) -> jax.Array:
    """log-probs [B, V], float32, of the policy that samples: after temperature, top-k and top-p (-inf outside).

    For temperature 0 these are the model's own log-probs at temperature 1.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if rule.temperature > 0:
        logits_BV = logits_BV / rule.temperature
        if rule.top_k or rule.top_p < 1:
            logits_BV = jnp.where(kept(logits_BV, rule), logits_BV, -jnp.inf)
    return jax.nn.log_softmax(logits_BV, axis=-1)


def kept(logits_BV: jax.Array, rule: SamplingRule) -> jax.Array:
    """Mask [B, V] of the tokens that top-k and top-p admit; the most likely one always is. Ties are all kept."""
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    floor_B1 = jnp.full_like(sorted_BV[:, :1], -jnp.inf)
    if rule.top_k and rule.top_k < logits_BV.shape[-1]:
        floor_B1 = sorted_BV[:, rule.top_k - 1 : rule.top_k]
    if rule.top_p < 1:
        in_top_k_BV = sorted_BV >= floor_B1
        p_BV = jax.nn.softmax(jnp.where(in_top_k_BV, sorted_BV, -jnp.inf), axis=-1)
        before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV  # probability of everything more likely
        last_B1 = jnp.sum((before_BV < rule.top_p) & in_top_k_BV, axis=-1, keepdims=True) - 1
        floor_B1 = jnp.take_along_axis(sorted_BV, last_B1, axis=-1)
    return logits_BV >= floor_B1


def draw(key_B: jax.Array, t: jax.Array, logits_BV: jax.Array, rule: SamplingRule) -> tuple[jax.Array, jax.Array]:
    """One token for each row: (token_B int32, logp_B float32 under the sampling policy).

    Args:
        key_B: the rollouts' keys; token ``t`` of a rollout uses ``fold_in(key, t)``.
        t: scalar int32, how many tokens the rollouts have so far.
    """
    logits_BV = constrain(logits_BV, "B_")  # the draw needs whole rows
    logp_BV = policy_logprobs(logits_BV, rule)
    if rule.temperature == 0:
        token_B = jnp.argmax(logp_BV, axis=-1)
    else:
        # Gumbel-max: one independent draw per row, from that row's own key.
        noise_BV = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, t), logp_BV.shape[1:]))(key_B)
        token_B = jnp.argmax(logp_BV + noise_BV, axis=-1)
    token_B = token_B.astype(jnp.int32)
    ids_V = jnp.arange(logp_BV.shape[1], dtype=jnp.int32)
    logp_B = jnp.sum(jnp.where(ids_V[None] == token_B[:, None], logp_BV, 0.0), axis=-1)
    return token_B, logp_B
