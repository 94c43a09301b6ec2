"""ROPD with credit for what the total reward hides: suppressed and unexplored criteria.

After CriPO (arXiv 2607.18082). A criterion is *suppressed* in a rollout that meets it while the rollout's total
advantage is not positive, and *unexplored* in a group of which no rollout meets it. The current policy with the
criterion in its prompt is its own teacher:

1. Suppressed: a counterfactual pass finds the tokens that satisfy the criterion, and their advantage is flipped. Here
   these are the tokens of the rollout whose log-prob under a prompt with the criterion is more than ``cripo.margin``
   nats above that with its opposite; a negative advantage A becomes -A there.
2. Unexplored: self-distillation toward the policy that is shown the criterion, L = L_GRPO + beta L_OPSD. Here L_OPSD is
   the policy loss whose advantage is log pi(y_t | x, c, y_<t) - log pi(y_t | x, y_<t), as in `ropd_jax.methods.rgsd`;
   beta is ``cripo.beta`` (0.05 for Qwen3-1.7B, 0.03 for 4B in the paper), and 0 in the first ``cripo.warmup_steps``
   steps (50).

Assumed here, because the abstract does not say: one suppressed criterion per rollout and one unexplored criterion per
group, those with the most points (of equal ones, the first); the definitions of `ropd_jax.teacher.health`; the margin
and the words of the opposite. A group without contrast has no GRPO term, but its unexplored criterion is distilled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.methods.conditioning import MEETS, MISSES, told
from ropd_jax.methods.ropd import ROPD
from ropd_jax.teacher.health import suppressed, unexplored
from ropd_jax.types import Criterion, Judgement


class CriPO(ROPD):
    by_group = True
    needs_one_rubric = "compares rollouts by the same criterion"

    @property
    def contexts(self):
        return ("suppressed", "opposite", "unexplored")

    def step_advantages(self, groups, judgements, step):
        found = super().step_advantages(groups, judgements, step)
        distilled = [self.distils(step) and unexplored_of(j) is not None for j in judgements]
        informative_PG = np.asarray(found.informative_PG) | (np.asarray(found.valid_PG) & np.array(distilled)[:, None])
        return Advantages(np.asarray(found.advantage_PG), np.asarray(found.valid_PG), informative_PG)

    def distils(self, step: int) -> bool:
        return bool(self.cfg.cripo.beta) and step >= self.cfg.cripo.warmup_steps

    def sequences(self, group, judgement, tokenizer):
        rows = super().sequences(group, judgement, tokenizer)
        if judgement.rubric is None or not judgement.passed:
            return rows
        shared = {}
        if self.distils(group.step) and (new := unexplored_of(judgement)):
            shared["unexplored"] = told(tokenizer, group.prompt, MEETS, [new])
        own = []
        for held in suppressed(judgement):
            prompts = dict(shared)
            if held and (criterion := heaviest(judgement.rubric.criteria, held)):
                prompts["suppressed"] = told(tokenizer, group.prompt, MEETS, [criterion])
                prompts["opposite"] = told(tokenizer, group.prompt, MISSES, [criterion])
            own.append(prompts)
        return [dataclasses.replace(row, told=prompts) for row, prompts in zip(rows, own, strict=True)]

    def loss(self, tokens):
        advantage_BT = tokens.batch.advantage_BT
        flipped_BT = self.satisfies(tokens) & (advantage_BT < 0)
        loss_BT, metrics = self.surrogate(tokens, jnp.where(flipped_BT, -advantage_BT, advantage_BT))
        metrics |= {"flipped_frac": flipped_BT}
        if not self.cfg.cripo.beta:
            return loss_BT, metrics
        logp_BT, known_BT = tokens.told("unexplored")
        gap_BT = jnp.where(known_BT, logp_BT - tokens.old_logp_BT, 0.0)
        distilled_BT, _ = self.surrogate(tokens, gap_BT)
        loss_BT += self.cfg.cripo.beta * jnp.where(known_BT, distilled_BT, 0.0)
        return loss_BT, metrics | {"unexplored_gap": gap_BT}

    def satisfies(self, tokens):
        """The tokens that satisfy the suppressed criterion of their rollout."""
        with_BT, known_BT = tokens.told("suppressed")
        against_BT, also_BT = tokens.told("opposite")
        return known_BT & also_BT & (with_BT - against_BT > self.cfg.cripo.margin)


def unexplored_of(judgement: Judgement) -> Criterion | None:
    """The unexplored criterion of most points; None if there is none."""
    if judgement.rubric is None or not judgement.passed:
        return None
    return heaviest(judgement.rubric.criteria, unexplored(judgement))


def heaviest(criteria: Sequence[Criterion], among: Sequence[bool]) -> Criterion | None:
    """The marked criterion with the most points; of equal ones, the first."""
    marked = [c for c, yes in zip(criteria, among, strict=False) if yes]
    return max(marked, key=lambda c: c.points, default=None)


METHOD = CriPO
