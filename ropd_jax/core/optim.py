"""The optimizer: AdamW with clipping and a schedule, from a few numbers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from ropd_jax.core.moments import compact_adam

SCHEDULES = ("constant", "cosine")
DECAY_MASKS = ("matrices", "all")


def make_optimizer(
    *,
    lr: float,
    schedule: str,
    warmup_steps: int,
    total_steps: int,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
    moments: str = "float32",
    decay_mask: str = "matrices",
) -> optax.GradientTransformation:
    """AdamW after clipping by global norm. ``cosine`` decays to 0 at ``total_steps``; both warm up linearly from 0.

    Args:
        moments: the form in which Adam's moments are stored, see `ropd_jax.core.moments`.
        decay_mask: what ``weight_decay`` shrinks, one of `DECAY_MASKS`, see `decay`. The optimizer's state has the same
            form with both.

    Raises:
        ValueError: unknown schedule, form of moments or mask.
    """
    if schedule == "constant":
        after = optax.constant_schedule(lr)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, max(total_steps - warmup_steps, 1))
    else:
        raise ValueError(f"schedule={schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if warmup_steps:
        # Step 0 already has an effect: lr * 1/(warmup), 2/(warmup), ...
        warm = optax.linear_schedule(lr / warmup_steps, lr, max(warmup_steps - 1, 1))
        after = optax.join_schedules([warm, after], [warmup_steps])
    if moments == "float32":
        adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    else:
        adam = compact_adam(moments, b1=b1, b2=b2, eps=eps)
    adamw = optax.chain(adam, decay(weight_decay, decay_mask), optax.scale_by_learning_rate(after))
    tx = optax.chain(clip_by_norm(clip_norm) if clip_norm else optax.identity(), adamw)
    return optax.GradientTransformation(_lenient(tx.init), _lenient(tx.update))


def decay(rate: float, mask: str) -> optax.GradientTransformation:
    """Decoupled weight decay: adds ``rate`` times the parameter to its update (AdamW, arXiv 1711.05101).

    - ``matrices``: weights of products, tables and adapters, but not norm scales and biases. Decay keeps products from
      growing; a scale's neutral value is 1, not 0, and pulling it to 0 shrinks a layer's output without any gradient.
    - ``all``: every parameter.

    Avoids `optax.masked`, which would change the state's structure and so make older checkpoints unreadable.

    Raises:
        ValueError: unknown mask.
    """
    if mask not in DECAY_MASKS:
        raise ValueError(f"decay_mask={mask!r}; expected one of {', '.join(DECAY_MASKS)}")

    def update(updates, state, params):
        def decayed(path, u, p):
            return u + rate * p if mask == "all" or is_matrix(path[-1].key) else u

        return jax.tree_util.tree_map_with_path(decayed, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def is_matrix(name: str) -> bool:
    """Whether a parameter with this name is a weight, not a norm's scale (``scale_D``) or a bias (``q_bias_NH``).

    Decided by name, because scales and biases that are stacked over layers have as many axes as a matrix.
    """
    return not name.startswith("scale_") and "bias" not in name.split("_")


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Scale all gradients by min(1, most / their common norm).

    One multiplication, which XLA recomputes wherever the result is read. `optax.clip_by_global_norm` divides, so that a
    second copy of all gradients is kept: 513 MiB of the 1,026 that an update of a 135M student took.
    """

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1.0, most / jnp.maximum(optax.tree.norm(grads), 1e-30))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _lenient(f):
    """optax mixes int32 step counts with floats; the rest of a run can use strict promotion."""

    @functools.wraps(f)
    def g(*args):
        with jax.numpy_dtype_promotion("standard"):
            return f(*args)

    return g
