"""The independent judge: another model than those that give rewards grades held-out answers, for `training.drift`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ropd_jax.methods.t_judge import HIGHEST, LOWEST
from ropd_jax.teacher import Teacher, TeacherError, TeacherLoop
from ropd_jax.teacher.judge_group import scored, unscored
from ropd_jax.text.trim import after_think
from ropd_jax.training.collect import Flight, judge_group, judge_step
from ropd_jax.types import Judgement, RolloutGroup
from ropd_jax.workdir.config import Interrupt


async def judge(teacher: Teacher, group: RolloutGroup) -> Judgement:
    """A grade of each answer by ``teacher.judge``, asked for as `methods.t_judge` does without references."""
    answers = [after_think(r.text) for r in group.rollouts]
    how = {"lowest": LOWEST, "highest": HIGHEST, "template": "score_judge.v1", "role": "judge"}
    try:
        return scored(await teacher.score(group.prompt, answers, key=f"eval/{group.prompt.id}", **how), LOWEST, HIGHEST)
    except TeacherError as error:
        return unscored(error, len(answers))


def judge_heldout(
    groups: Sequence[RolloutGroup],
    step: int,
    teacher: Teacher,
    loop: TeacherLoop,
    interrupt: Interrupt,
    say: Callable[[str], None],
) -> dict[str, float | None]:
    """What the independent judge says of held-out answers: ``eval/judge``, a mean grade between 0 and 1, with its
    standard error, the number of graded answers and of those that it failed on. No reward comes of it.

    Raises:
        as `judging.judge_step`.
    """
    asked = (dataclasses.replace(group, step=step) for group in groups)
    flight = Flight(step, asked, lambda group: loop.submit(judge_group(judge, teacher, group)))
    _, judgements, _ = judge_step(flight, interrupt, say)
    grades = [reward for judgement in judgements for reward in judgement.rewards if reward is not None]
    n = len(grades)
    return {
        "eval/judge": float(np.mean(grades)) if n else None,
        "eval/judge_error": float(np.std(grades, ddof=1)) / n**0.5 if n > 1 else None,
        "eval/judge_n": n,
        "eval/judge_ungraded": len(judgements) - n,
    }
