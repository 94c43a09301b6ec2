"""Log-probs of sampled tokens under the current policy: one forward pass, laid out and sharded like the update.

`Told` scores completions under *another* prompt, such as the question with a rubric. A method names what it wants to
know (`Method.contexts`) and gives its sequences the other prompts (`TokenSequence.told`). The scores come back where
the update's batch has the same completion, and the loss reads them by name (`Tokens.told`)::

    the update's row        q q q|a b c        r r|d e        two sequences, packed
    told "rubric"           q q q k k k k|a b c               scored in rows of their own; the second is not told it
    Tokens.told("rubric")   . . x y z .        . . . .        x, y, z: log-probs of a, b, c; known where they are

Scores are of the policy before the update: no gradient flows through them. A told prompt that is too long
(``context.max_tokens``) leaves its sequence unknown, never cut. A method that compares whole distributions has no
such pass (`training.told`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence, TrainBatch, make_batch, of_completions, packing, split_parts
from ropd_jax.core.told import behind_other
from ropd_jax.methods import Method
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.lora import attach
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.training.sections import UpdateConfig
from ropd_jax.training.told import ToldDistributions, distributions_of, told_metrics
from ropd_jax.training.update import logprobs_of, parts_used, place_parts, step_parts


@functools.lru_cache(maxsize=4)
def make_score(cfg: UpdateConfig, model_cfg: ModelConfig) -> Any:
    """``score(params, base, batch_ABT) -> logp_ABT``, float32, the log-prob of each masked target at the sampling
    temperature; parts that are all padding are not computed."""

    @jax.jit
    def score(params, base, batch: TrainBatch):
        policy = attach(cfg.lora, base, params)

        def part(a, logp_ABT):
            one = jax.tree.map(lambda x_ABT: jax.lax.dynamic_index_in_dim(x_ABT, a, keepdims=False), batch)
            return jax.lax.dynamic_update_index_in_dim(logp_ABT, logprobs_of(cfg, model_cfg, policy, one)[0], a, 0)

        return jax.lax.fori_loop(0, parts_used(batch), part, jnp.zeros_like(batch.old_logp_BT))

    return score


@dataclasses.dataclass(frozen=True)
class Told:
    """Scores completions under other prompts.

    Attributes:
        base: the frozen weights under adapters, or None.
        length: most tokens of a sequence of the update.
        context: most tokens that a told prompt adds to its own.
    """

    cfg: UpdateConfig
    model_cfg: ModelConfig
    mesh: jax.sharding.Mesh
    method: Method
    base: Any
    length: int
    context: int

    def __call__(
        self, params: Any, rows: Sequence[TokenSequence], advantages_B: Advantages
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """(scores [A, b, T] by the names under which a loss finds them, laid out as `update.step_parts` lays out these
        rows; metrics). Collective: every host must call it."""
        scores, notes = self.scores(params, rows), {}
        layout = (self.method, self.mesh, self.cfg.optim, self.length)
        for name, values in scores.items():
            scored = [dataclasses.replace(row, old_logp_T=v) for row, v in zip(rows, values, strict=True)]
            notes[f"told/{name}"] = step_parts(scored, advantages_B, *layout).old_logp_BT
        known = {name: [not np.isnan(v).any() for v in values] for name, values in scores.items()}
        return notes, told_metrics(rows, known)

    @property
    def names(self) -> tuple[str, ...]:
        return self.method.contexts

    @property
    def most(self) -> int:
        """Most tokens of a told prompt with its completion."""
        return self.length + self.context

    def scores(self, params: Any, rows: Sequence[TokenSequence]) -> dict[str, list[np.ndarray]]:
        """Per context and row float32 log-probs of the completion's tokens, NaN for a row that is not told it or whose
        told prompt is too long. Collective: every host must call it."""
        told, places, batch = self._laid_out(rows)
        score, placed = make_score(self.cfg, self.model_cfg), place_parts(batch, self.mesh)
        [logp_ABT] = mesh_lib.fetch(score(params, self.base, placed))
        logp_BT = logp_ABT.reshape(-1, logp_ABT.shape[-1])
        each = iter(of_completions(logp_BT, told, self.most, places))
        unknown = [np.full(len(row.completion_T), np.nan, np.float32) for row in rows]
        return {name: [x if len(x := next(each)) else nan for nan in unknown] for name in self.names}

    def batch(self, rows: Sequence[TokenSequence]) -> TrainBatch:
        """The batch [A, b, T] that `scores` computes for these rows; its shape depends only on their number."""
        return self._laid_out(rows)[2]

    def _laid_out(
        self, rows: Sequence[TokenSequence]
    ) -> tuple[list[TokenSequence], Sequence[Sequence[int]], TrainBatch]:
        """(all rows told the first context, then all told the second, ...; which of them share a row; the batch)."""
        told = [behind_other(row, name, self.most) for name in self.names for row in rows]
        yes_B, optim = np.ones(len(told), bool), self.cfg.optim
        nothing_B = np.zeros(len(told), np.float32)
        row_len = mesh_lib.whole_parts(max(optim.row_len, self.most - 1), self.mesh)
        places = [[i] for i in range(len(told))]
        if optim.row_len:
            places = packing(told, self.most, row_len=row_len, fixed=True)
        batch = make_batch(told, nothing_B, yes_B, yes_B, self.most, places=places, row_len=row_len)
        return told, places, split_parts(batch, optim.microbatch, multiple=mesh_lib.parts_of_a_batch(self.mesh))


def told_of(
    cfg: UpdateConfig, model: ModelConfig, mesh: jax.sharding.Mesh, method: Method, base: Any, length: int, context: int
) -> Told | ToldDistributions | None:
    """What gives an update's loss the method's other prompts; None for a method without any. Arguments as of `Told`."""
    if not method.contexts:
        return None
    return distributions_of(method, mesh, cfg.optim, length) or Told(cfg, model, mesh, method, base, length, context)
