"""Rubric-based on-policy distillation (arXiv 2605.07396, Algorithm 1).

For one prompt: the teacher writes m references, then one rubric of K criteria with integer points w_k from the
contrast between references and rollouts (Eq. 3), then a verdict v_ik for every answer and criterion; answers and
references are shuffled and unlabelled (Eq. 4). The reward of rollout i is sum_k w_k v_ik / sum_k w_k (Eq. 5).
"""

from __future__ import annotations

from ropd_jax.methods.base import Method
from ropd_jax.teacher.judge import judge
from ropd_jax.text.trim import after_think
from ropd_jax.types import Judgement, RolloutGroup


class ROPD(Method):
    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        answers = tuple(after_think(r.text) for r in group.rollouts)
        return await judge(teacher, group.prompt, answers, step=group.step)


METHOD = ROPD
