"""A rubric without the criteria that must not count (`roles.screening`), after one re-ask."""

from __future__ import annotations

from collections.abc import Callable

from ropd_jax.teacher.asking import Asker
from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.errors import ConfigurationError, MalformedError, TeacherError
from ropd_jax.teacher.roles import screening
from ropd_jax.teacher.traffic.stats import TeacherStats
from ropd_jax.types import Prompt, Rubric


async def screened_rubric(
    asker: Asker, stats: TeacherStats, prompt: Prompt, request: ChatRequest, parse: Callable[[str], Rubric]
) -> Rubric:
    """The rubric from a reply, without the criteria that must not count.

    If the first reply has such criteria, it is re-asked. Of two replies, the rubric that keeps more criteria is
    used, so a failed re-ask costs only these criteria.
    """
    read: list[tuple[Rubric, tuple[screening.Problem, ...]]] = []
    replies = 0

    def screened(text: str) -> Rubric:
        nonlocal replies
        replies += 1
        rubric = screening.about_the_answer(parse(text), prompt.question)
        problems = screening.screen(rubric, prompt.question)
        read.append((rubric, problems))
        if problems and replies == 1:
            raise MalformedError(screening.explained(problems), cause="screened")
        return rubric

    try:
        await asker.ask(request, screened)
    except ConfigurationError:
        raise
    except TeacherError:
        if not read:
            raise
    kept = [(rubric, problems) for r, problems in read if (rubric := screening.without(r, problems)) is not None]
    if not kept:
        stats.count("failures", "screened")
        raise MalformedError(f"no criterion of the rubric counts: {read[-1][1][0]}", cause="screened")
    rubric, problems = max(reversed(kept), key=lambda pair: len(pair[0].criteria))
    for problem in problems:
        stats.count("screened", problem.reason)
    return rubric
