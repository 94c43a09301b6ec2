"""Log-probs of a step's tokens in a separate pass: what an update changed (``log.token_logprobs="before_after"``).

    change = log-prob under the policy after the step's update  -  `Rollout.logp_T`, at which it was sampled

This is one more forward pass over the step's rollouts; training does not depend on it. The two log-probs come from
different programs, so a change includes the difference between them: about ``update/logp_gap``, 1e-6 in float32 and
1e-2 in bfloat16. It covers all mini-batches of a step, and two steps with ``stream.staleness=1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax.core.batches import TokenSequence, TrainBatch, make_batch, split_parts
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.scoring import make_score
from ropd_jax.training.sections import UpdateConfig
from ropd_jax.training.update import place_parts
from ropd_jax.types import RolloutGroup

Changes = list[list[np.ndarray]]  # per group and rollout: float32, one value per token


def start_logprobs(
    cfg: UpdateConfig, model_cfg: ModelConfig, base: Any, mesh: jax.sharding.Mesh, params: Any, batch: TrainBatch
) -> jax.Array:
    """logp_ABT of a mini-batch's targets under ``params``: from before the first update, for ``loss.is_clip``.

    One more forward pass over the step's tokens, as in the released code. The other arguments are those of
    `changes_of`; ``batch`` is [A, b, T], on the host.
    """
    return make_score(cfg, model_cfg)(params, base, place_parts(batch, mesh))


def changes_of(
    cfg: UpdateConfig,
    model_cfg: ModelConfig,
    params: Any,
    base: Any,
    groups: Sequence[RolloutGroup],
    mesh: jax.sharding.Mesh,
    length: int,
) -> Changes:
    """The change of each token of the groups' rollouts. Collective: every host must call it.

    Args:
        params: the trained parameters, after the update; ``base``: the frozen weights under adapters, or None.
        length: maximum number of tokens in a sequence; rollout tokens beyond it have a change of 0.
    """
    rows = [TokenSequence(g.prompt_tokens_T, r.tokens_T, r.logp_T) for g in groups for r in g.rollouts]
    if not rows:
        return [[] for _ in groups]
    every = np.ones(len(rows), bool)
    row_len = mesh_lib.whole_parts(length - 1, mesh)
    batch = make_batch(rows, np.zeros(len(rows), np.float32), every, every, length, row_len=row_len)
    parts = split_parts(batch, cfg.optim.microbatch, multiple=mesh_lib.parts_of_a_batch(mesh))
    [logp_ABT] = mesh_lib.fetch(make_score(cfg, model_cfg)(params, base, place_parts(parts, mesh)))
    logp_BT = logp_ABT.reshape(-1, logp_ABT.shape[-1])
    found = []
    for row, mask_T, logp_T in zip(rows, batch.mask_BT, logp_BT, strict=False):
        change_T = np.zeros(len(row.completion_T), np.float32)
        after_T = logp_T[mask_T]
        change_T[: len(after_T)] = after_T - row.old_logp_T[: len(after_T)]
        found.append(change_T)
    each = iter(found)
    return [[next(each) for _ in g.rollouts] for g in groups]
