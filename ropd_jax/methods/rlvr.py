"""GRPO on the exact answer (RLVR): the row that the paper's tables leave out.

Reward 1 if the grader finds the final answer right, else 0. There is no teacher. It needs the gold answer, which
no other method here sees. A rollout that cannot be graded is unscored (cause ``ungraded``).
"""

from __future__ import annotations

import asyncio

from ropd_jax.data.grader import grade
from ropd_jax.methods.base import Method
from ropd_jax.types import Judgement, RolloutGroup


class RLVR(Method):
    @property
    def asks(self):
        return {}

    @property
    def exact_rewards(self):
        return True

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        return await asyncio.to_thread(outcome, group)  # a hostile answer can take the grader's child seconds


def outcome(group: RolloutGroup) -> Judgement:
    """1.0 for a right answer, 0.0 for a wrong one, None where the prompt carries nothing to grade by."""
    right = [grade(group.prompt, r.answer) for r in group.rollouts]
    return Judgement(
        rewards=tuple(None if ok is None else float(ok) for ok in right),
        causes=tuple("ungraded" if ok is None else None for ok in right),
    )


METHOD = RLVR
