"""Rubric-based on-policy distillation (arXiv 2605.07396, Algorithm 1).

For one prompt: the teacher writes m references, then one rubric of K criteria with integer points w_k from the
contrast between references and rollouts (Eq. 3), then a verdict v_ik for every answer and criterion; answers and
references are shuffled and unlabelled (Eq. 4). The reward of rollout i is sum_k w_k v_ik / sum_k w_k (Eq. 5).
"""

from __future__ import annotations

from ropd_jax.methods.base import Method, unscored
from ropd_jax.teacher import ConfigurationError, TeacherError
from ropd_jax.text.trim import after_think
from ropd_jax.types import Judgement, RolloutGroup


class ROPD(Method):
    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        known = {}
        try:
            known["references"] = await teacher.references(group.prompt)
            answers = tuple(after_think(r.text) for r in group.rollouts)
            known["rubric"] = await teacher.induce_rubric(group.prompt, known["references"], answers)
            verdicts = await teacher.verify(
                group.prompt, known["rubric"], answers + known["references"], key=f"{group.step}/{group.prompt.id}"
            )
        except ConfigurationError:
            raise  # a wrong key or model is wrong for every group: the run stops and says so
        except TeacherError as error:
            return unscored(group, error.cause, **known)
        n = len(answers)
        return Judgement(
            rewards=verdicts.scores(known["rubric"])[:n],
            causes=verdicts.causes[:n],
            passed=verdicts.passed[:n],
            reference_passed=verdicts.passed[n:],
            **known,
        )


METHOD = ROPD
