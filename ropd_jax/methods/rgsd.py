"""Rubric-guided self-distillation: the policy that is told the rubric teaches the policy that is not.

After RGSD (arXiv 2606.12507): no verifier. The teacher writes a rubric; the student samples an answer y without it; the
same student, told the rubric r behind the question x, scores y token by token, and is distilled into the student that
is told nothing. Three forms (``rgsd.mode``):

- ``sampled``: reverse KL at the sampled tokens, as ``lopd.mode="sampled"``. The advantage of token t is
  log pi(y_t | x, r, y_<t) - log pi(y_t | x, y_<t), on the policy loss of ``cfg.loss``.
- ``full``: the loss of token t is the divergence of pi(. | x, y_<t) from pi(. | x, r, y_<t) over the vocabulary,
  ``rgsd.beta`` 1 for the reverse KL, 0 for the forward one, between them the generalised JSD. No gradient flows through
  the told policy or the sampling, and no importance weight corrects for another sampler, as in ``lopd.mode="full"``.
- ``top_k``: the same over the ``rgsd.top_k`` tokens that are likeliest when told, and all others as one class.

Assumed, where its abstract is silent: the divergence ("distills the distribution token by token" is all it states); the
rubric is ROPD's, from the contrast of references and rollouts (or the data's own, ``ropd.rubrics="published"``); the
policy that is told is the present one, not an average or the initial one; every rollout of a group is trained on. A
group without a rubric, and a rollout whose told prompt is too long, change nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.data.rubrics import PUBLISHED, no_criteria
from ropd_jax.methods.base import Divergence
from ropd_jax.methods.conditioning import MEETS, told
from ropd_jax.methods.ropd import ROPD
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import induce, unscored
from ropd_jax.types import Judgement, RolloutGroup, UserError

MODES = ("sampled", "full", "top_k")


class RGSD(ROPD):
    takes_exact = False
    by_group = True
    needs_one_rubric = "shows all rollouts of a group the same rubric"

    def __post_init__(self):
        super().__post_init__()
        if self.cfg.rgsd.mode not in MODES:
            raise UserError(f"rgsd.mode={self.cfg.rgsd.mode!r}; expected one of {', '.join(MODES)}")

    @property
    def contexts(self):
        return ("rubric",)

    @property
    def divergence(self):
        how = self.cfg.rgsd
        if how.mode == "sampled":
            return None
        return Divergence(how.beta, self.cfg.context.max_tokens, how.top_k if how.mode == "top_k" else 0)

    def check_student(self, student, mesh):
        if self.divergence and self.divergence.top_k > student.cfg.vocab_size:
            raise UserError(
                f"rgsd.top_k={self.divergence.top_k}, but the student's vocabulary has {student.cfg.vocab_size} rows; "
                "lower it, or set rgsd.mode=full"
            )

    @property
    def asks(self):
        return {} if self.cfg.ropd.rubrics == PUBLISHED else {"reference": 1, "rubric": 1}

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        """The rubric; every rollout has the reward 1.0, which says that it is trained on."""
        answers, n = tuple(r.answer for r in group.rollouts), len(group.rollouts)
        given = self.given(group.prompt)
        if given is None:
            return no_criteria(n)
        if given:
            given = {**given, "references": ()}
        known: dict[str, Any] = {}
        try:
            await induce(teacher, group.prompt, answers, known, step=group.step, design=self.design, **given)
        except TeacherError as error:
            return unscored(error, n, **known)
        if not given:
            store, lineage = teacher.store, known["lineage"]
            store.add(group.prompt.id, group.step, known["rubric"], lineage, saturated=False)
        return Judgement(rewards=(1.0,) * n, causes=(None,) * n, **known)

    def step_advantages(self, groups, judgements, step):
        _, valid_PG = self.rewards(groups, judgements)
        return Advantages(valid_PG.astype(np.float32), valid_PG, valid_PG)

    def sequences(self, group, judgement, tokenizer):
        rows = super().sequences(group, judgement, tokenizer)
        if judgement.rubric is None:
            return rows
        prompts = self.told(group, judgement, tokenizer)
        return [dataclasses.replace(row, told=prompts) for row in rows]

    def told(self, group, judgement, tokenizer) -> dict[str, np.ndarray]:
        """The prompt of each context."""
        return {"rubric": told(tokenizer, group.prompt, MEETS, judgement.rubric.criteria)}

    def loss(self, tokens):
        if self.divergence:
            divergence_BT, _ = tokens.divergence("rubric")
            return divergence_BT, {"divergence": divergence_BT}
        gap_BT, known_BT = self.gap(tokens)
        loss_BT, metrics = self.surrogate(tokens, gap_BT)
        return jnp.where(known_BT, loss_BT, 0.0), metrics | {"told_gap": gap_BT}

    def gap(self, tokens):
        """(log pi told - log pi not told at each sampled token, where it is known)."""
        logp_BT, known_BT = tokens.told("rubric")
        return jnp.where(known_BT, logp_BT - tokens.old_logp_BT, 0.0), known_BT


METHOD = RGSD
