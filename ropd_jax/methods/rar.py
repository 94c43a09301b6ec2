"""Rubrics as Rewards (arXiv 2507.17746, v1): a rubric made once from references, no contrast with the student.

The rubric of a prompt has 7 to 20 criteria in four categories, and does not change during training. There are two ways
to compute a reward from it (``rar.mode``):

- ``explicit``: every criterion is verified, and the reward is sum w c / sum w with Essential 1.0, Important 0.7,
  Optional 0.3, Pitfall 0.8.
- ``implicit``: one grade from 1 to 10 given the rubric, scaled to [0, 1]; the paper finds that this works better.

With ``rar.rubrics="published"`` the rubric comes from the data (`ropd_jax.data.rubrics`). Then only verdicts are
requested, and the weights of ``explicit`` are the points of its criteria.
"""

from __future__ import annotations

import asyncio
import dataclasses

from ropd_jax.data.rubrics import PUBLISHED, SOURCES, check_rubrics, no_criteria, published_rubric, rar_score, usable
from ropd_jax.methods.base import Method
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import scored, unscored
from ropd_jax.types import Judgement, RolloutGroup, Rubric, UserError

LOWEST, HIGHEST = 1, 10


@dataclasses.dataclass(eq=False)
class RaR(Method):
    """Keeps each prompt's rubric. After a resume it is asked for again: the same request, which the tape answers."""

    rubrics: dict[str, asyncio.Future[tuple[tuple[str, ...], Rubric]]] = dataclasses.field(default_factory=dict)
    asks_once = frozenset({"reference", "rubric"})

    def __post_init__(self):
        if self.cfg.rar.mode not in ("explicit", "implicit"):
            raise UserError(f"rar.mode={self.cfg.rar.mode!r}; expected 'explicit' or 'implicit'")
        if self.cfg.rar.rubrics not in SOURCES:
            raise UserError(f"rar.rubrics={self.cfg.rar.rubrics!r}; expected 'teacher' or 'published'")

    @property
    def asks(self):
        written = {} if self.cfg.rar.rubrics == PUBLISHED else {"reference": 1, "rubric": 1}
        return written | {"verify" if self.cfg.rar.mode == "explicit" else "score": 1}

    def check_prompts(self, prompts):
        if self.cfg.rar.rubrics == PUBLISHED:
            check_rubrics(prompts, "rar.rubrics")

    async def rubric(self, teacher, prompt) -> tuple[tuple[str, ...], Rubric]:
        """(references, rubric) of a prompt; a failure is not kept, the next visit asks again."""

        async def make():
            references = await teacher.references(prompt)
            return references, await teacher.static_rubric(prompt, references)

        known = self.rubrics.get(prompt.id)
        if known is None or (known.done() and (known.cancelled() or known.exception())):
            known = self.rubrics[prompt.id] = asyncio.ensure_future(make())
        return await known

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        known: dict = {}
        key, answers = f"{group.step}/{group.prompt.id}", [r.answer for r in group.rollouts]
        try:
            if self.cfg.rar.rubrics == PUBLISHED:
                known["rubric"] = published_rubric(group.prompt)
                if known["rubric"] is None:
                    return no_criteria(len(answers))
            else:
                known["references"], known["rubric"] = await self.rubric(teacher, group.prompt)
            if self.cfg.rar.mode == "explicit":
                verdicts = await teacher.verify(group.prompt, known["rubric"], answers, key=key)
                rewards = verdicts.scores(known["rubric"])
                if self.cfg.rar.rubrics == PUBLISHED:
                    criteria = usable(group.prompt)
                    rewards = tuple(None if row is None else rar_score(criteria, row) for row in verdicts.passed)
                return Judgement(rewards=rewards, causes=verdicts.causes, passed=verdicts.passed, **known)
            grades = await teacher.score(
                group.prompt,
                answers,
                key=key,
                lowest=LOWEST,
                highest=HIGHEST,
                template="score_rubric.v3",
                rubric=known["rubric"],
            )
        except TeacherError as error:
            return unscored(error, len(answers), **known)
        return scored(grades, LOWEST, HIGHEST, **known)


METHOD = RaR
