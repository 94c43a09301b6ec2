"""RULER: one call ranks the rollouts of a group against each other, and its scores are the rewards.

After the relative judge of ART (its documentation, "RULER"): the judge sees all answers of a group at once and gives
each a score from 0 to 1, with higher scores for better answers. There is no reference, no rubric and no absolute
scale: GRPO subtracts the group's mean, so only the order and the distances within the group matter.

Here the scores are whole numbers from 0 to 100, divided by 100. If some scores cannot be read, a second request shows
only the answers that lack one. A group that is too long for the judge's context is split into halves, and each score is
then relative to its half.
"""

from __future__ import annotations

from ropd_jax.methods.base import Method
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import scored, unscored
from ropd_jax.types import Judgement, RolloutGroup

LOWEST, HIGHEST = 0, 100
TEMPLATE = "score_relative.v1"


class Ruler(Method):
    @property
    def asks(self):
        return {"score": 1}

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        answers = [r.answer for r in group.rollouts]
        key = f"{group.step}/{group.prompt.id}"
        try:
            scores = await teacher.score(
                group.prompt, answers, key=key, lowest=LOWEST, highest=HIGHEST, template=TEMPLATE
            )
        except TeacherError as error:
            return unscored(error, len(answers))
        return scored(scores, LOWEST, HIGHEST)


METHOD = Ruler
