"""T-Judge: the teacher gives each rollout one grade, and GRPO runs on it (baseline of arXiv 2605.07396, Table 1).

The paper does not give its prompt, nor whether its judge sees references. This follows the nearest published recipe,
the Likert judges of RaR (arXiv 2507.17746): an integer from 1 to 10, scaled to [0, 1] as (grade - 1) / 9. The judge
sees the same m references as in ROPD (``t_judge.references=True``), or none. With references, ROPD and T-Judge differ
only in the rubric.
"""

from __future__ import annotations

from ropd_jax.methods.base import Method
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import scored, unscored
from ropd_jax.types import Judgement, RolloutGroup

LOWEST, HIGHEST = 1, 10


class TJudge(Method):
    @property
    def asks(self):
        return {"reference": 1, "score": 1} if self.cfg.t_judge.references else {"score": 1}

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        known: dict = {}
        answers = [r.answer for r in group.rollouts]
        try:
            template = "score_judge.v3"
            if self.cfg.t_judge.references:
                known["references"] = await teacher.references(group.prompt)
                template = "score_judge_references.v3"
            grades = await teacher.score(
                group.prompt,
                answers,
                key=f"{group.step}/{group.prompt.id}",
                lowest=LOWEST,
                highest=HIGHEST,
                template=template,
                references=known.get("references", ()),
            )
        except TeacherError as error:
            return unscored(error, len(answers), **known)
        return scored(grades, LOWEST, HIGHEST, **known)


METHOD = TJudge
