"""Rubric-based on-policy distillation (arXiv 2605.07396, Algorithm 1).

For one prompt: the teacher writes m references, then one rubric of K criteria with integer points w_k from the
contrast between references and rollouts (Eq. 3), then a verdict v_ik for every answer and criterion; answers and
references are shuffled and unlabelled (Eq. 4). The reward of rollout i is sum_k w_k v_ik / sum_k w_k (Eq. 5).

With ``ropd.rubrics="published"`` step two falls away: the rubric is the data's own (`ropd_jax.data.rubrics`).

``cfg.ropd`` has the ablations of Table 6 and of the text; ``teacher.references`` is m, and any role has its own model.
These switches go beyond the paper:

    references_pass       criteria that the references themselves fail are dropped
    dropout               a random part of the criteria is hidden from the reward (Rubric Dropout, arXiv 2608.11669)
    variance_weights      points follow the variance of the verdicts within the group
    reliability_weights   points are scaled by what a calibration of the verifier says of such criteria
    advantage             "per_criterion": each criterion has its own group advantage, and they are summed by points
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ropd_jax.core.advantages import Part, summed_advantages
from ropd_jax.core.rewards import (
    pass_rate,
    references_pass,
    reliability_weights,
    shown_criteria,
    variance_weights,
)
from ropd_jax.data.rubrics import PUBLISHED, SOURCES, check_rubrics, no_criteria, published_rubric
from ropd_jax.methods.base import Method
from ropd_jax.teacher.calibration import reliability
from ropd_jax.teacher.judge_group import Design, judge, judge_pairs
from ropd_jax.teacher.roles.kinds import kind_of
from ropd_jax.types import Judgement, Prompt, RolloutGroup, UserError

log = logging.getLogger(__name__)

ADVANTAGES = ("total", "per_criterion")


class ROPD(Method):
    """The method of the module's docstring, and the base of those that use its rubrics differently.

    Attributes:
        needs_one_rubric: for a method whose rollouts of a group must share a rubric: what it does with that rubric.
    """

    needs_one_rubric: ClassVar[str] = ""

    def __post_init__(self):
        how, reuse = self.cfg.ropd, self.cfg.teacher.rubric_reuse
        if how.rubric_per not in ("group", "pair"):
            raise UserError(f"ropd.rubric_per={how.rubric_per!r}; expected 'group' or 'pair'")
        if how.rubric_per == "pair" and self.needs_one_rubric:
            raise UserError(
                f"ropd.rubric_per='pair'; expected 'group', because method={self.cfg.method!r} {self.needs_one_rubric}"
            )
        if how.rubric_per == "pair" and reuse != "fresh":
            raise UserError(
                f"teacher.rubric_reuse={reuse!r} keeps one rubric per prompt, but ropd.rubric_per='pair' "
                "needs one per rollout; "
                "set teacher.rubric_reuse='fresh'"
            )
        if how.rubrics not in SOURCES:
            raise UserError(f"ropd.rubrics={how.rubrics!r}; expected 'teacher' or 'published'")
        if how.rubrics == PUBLISHED and how.rubric_per == "pair":
            raise UserError(
                "ropd.rubrics='published' has one rubric per prompt, but ropd.rubric_per='pair' needs one per rollout; "
                "set ropd.rubric_per='group'"
            )
        if not 1 <= how.least_criteria <= how.most_criteria:
            raise UserError(
                f"ropd.least_criteria={how.least_criteria}, ropd.most_criteria={how.most_criteria}; expected "
                "1 <= least_criteria <= most_criteria, 4 and 12 in the paper"
            )
        if how.references_pass and not how.pool_references:
            raise UserError("ropd.references_pass needs verdicts on the references; set ropd.pool_references=True")
        if how.advantage not in ADVANTAGES:
            raise UserError(f"ropd.advantage={how.advantage!r}; expected one of {', '.join(ADVANTAGES)}")
        if how.advantage == "per_criterion" and how.rubric_per == "pair":
            raise UserError(
                "ropd.advantage='per_criterion' compares rollouts by the same criterion, and with "
                "ropd.rubric_per='pair' each has its own criteria; set ropd.rubric_per='group'"
            )
        if how.advantage == "per_criterion" and not self.cfg.loss.normalize_std:
            raise UserError(
                "ropd.advantage='per_criterion' with loss.normalize_std=False is the same as 'total': the sum of "
                "rewards minus their mean; set loss.normalize_std=True, or ropd.advantage='total'"
            )
        self.reliability: Mapping[str, float | None] = {}
        if how.reliability_weights:
            if not self.cfg.teacher.calibration:
                raise UserError(
                    "ropd.reliability_weights=True, but teacher.calibration is empty; expected the report.json of "
                    "`ropd calibrate-judge`"
                )
            self.reliability = reliability(self.cfg.teacher.calibration)

    @property
    def asks(self):
        n = self.cfg.sampling.rollouts if self.cfg.ropd.rubric_per == "pair" else 1
        if self.cfg.ropd.rubrics == PUBLISHED:  # references are verified with the answers, if they are pooled
            return ({"reference": 1} if self.cfg.ropd.pool_references else {}) | {"verify": 1}
        return {"reference": 1, "rubric": n, "verify": n}

    def check_prompts(self, prompts):
        if self.cfg.ropd.rubrics == PUBLISHED:
            check_rubrics(prompts, "ropd.rubrics")
        elif own := sum("criteria" in p.metadata for p in prompts):
            log.warning("%d prompts have their own rubric, which is ignored; ropd.rubrics='published' uses it", own)

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        answers, design = tuple(r.answer for r in group.rollouts), self.design
        if self.cfg.ropd.rubric_per == "pair":
            return await judge_pairs(teacher, group.prompt, answers, step=group.step, design=design)
        given = self.given(group.prompt)
        if given is None:
            return no_criteria(len(answers))
        judgement = await judge(teacher, group.prompt, answers, step=group.step, design=design, **given)
        return self.reweighted(judgement, group)

    @property
    def design(self) -> Design:
        """What the config changes in the procedure."""
        how = self.cfg.ropd
        return Design(how.blind, how.see_rollouts, how.pool_references, (how.least_criteria, how.most_criteria))

    def given(self, prompt: Prompt) -> dict[str, Any] | None:
        """What the judge is given instead of asking: with ``ropd.rubrics="published"`` the rubric of the data, and no
        references unless they are verified too. None if the prompt has no criteria that count."""
        if self.cfg.ropd.rubrics != PUBLISHED:
            return {}
        rubric = published_rubric(prompt)
        if rubric is None:
            return None
        return {"rubric": (rubric, None)} | ({} if self.cfg.ropd.pool_references else {"references": ()})

    def reweighted(self, j: Judgement, group: RolloutGroup) -> Judgement:
        """The judgement with its rewards under the weights of ``references_pass``, ``dropout``, ``variance_weights``
        and ``reliability_weights``."""
        how = self.cfg.ropd
        switched = how.references_pass or how.dropout or how.variance_weights or how.reliability_weights
        if j.rubric is None or not j.passed or not switched:
            return j
        n = len(j.rubric.criteria)
        kept = references_pass(j.reference_passed, n, how.references_pass)
        points: Sequence[float] = [
            float(c.points) if ok else 0.0 for c, ok in zip(j.rubric.criteria, kept, strict=True)
        ]
        if how.reliability_weights:
            kinds = [kind_of(c.category, c.text) for c in j.rubric.criteria]
            points = reliability_weights(points, [None if k is None else self.reliability.get(k) for k in kinds])
        if not any(points):
            none = (None,) * len(j.rewards)
            return dataclasses.replace(j, rewards=none, causes=("no_criteria",) * len(none), weights=(0.0,) * n)
        if how.dropout:
            points = shown_criteria(points, how.dropout, f"{self.cfg.seed}/{group.step}/{group.prompt.id}")
        if how.variance_weights:
            points = variance_weights(points, [c.category for c in j.rubric.criteria], j.passed)
        rewards = tuple(None if row is None else pass_rate(points, row) for row in j.passed)
        return dataclasses.replace(j, rewards=rewards, weights=tuple(points))

    def step_advantages(self, groups, judgements, step):
        if self.cfg.ropd.advantage == "total":
            return super().step_advantages(groups, judgements, step)
        _, valid_PG = self.rewards(groups, judgements)
        loss = self.cfg.loss
        parts = [self.reward_parts(g, j) for g, j in zip(groups, judgements, strict=True)]
        return summed_advantages(parts, valid_PG, normalize_std=loss.normalize_std, min_scored=loss.min_scored)

    def reward_parts(self, group: RolloutGroup, j: Judgement) -> list[Part]:
        """What the rewards of a group are the sum of: its criteria, the exact grade (``rewards.exact_weight``) and the
        punishment of overlong answers (``loss.overlong="shape"``)."""
        if j.rubric is None or not j.passed:
            return []
        points = j.weights or j.rubric.weights
        exact = self.cfg.rewards.exact_weight if any(right is not None for right in j.exact) else 0.0
        nothing = (False,) * len(points)
        parts = [
            Part((1.0 - exact) * w / sum(points), [float((row or nothing)[k]) for row in j.passed])
            for k, w in enumerate(points)
            if sum(points)
        ]
        if exact:
            parts.append(Part(exact, [float(bool(right)) for right in j.exact]))
        if self.cfg.loss.overlong == "shape":
            parts.append(Part(1.0, self.overlong_penalties(group).tolist()))
        return parts


METHOD = ROPD
