"""HealthBench (Arora et al. 2025, arXiv 2505.08775): signed points for criteria that a judge marks as met or not met.

    score of an example   sum of the points of the criteria met / sum of the positive points; can be negative
    overall               the mean of these, clipped to 0..1 *after* averaging
    a rubric's tag        the same formula on the criteria that carry it
    an example's tag      the mean over the examples that carry it

Each criterion is one request to the teacher layer's verifier (``teacher.verifier`` names the model), so tape, budget
and rate limits apply. The conversation comes first and is identical, byte for byte, in all requests about one answer,
so that a prompt cache can serve it. The criterion comes last. The system message contains nothing of the conversation.

The official figures are made with GPT-4.1 and OpenAI's prompt. Ours is ``prompts/healthbench.v3.md``, and its hash is
in the result. If one criterion of an example has no verdict, the example has no score: it is ungraded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from ropd_jax.teacher import ChatRequest, ConfigurationError, MalformedError, Role, Teacher, TeacherError
from ropd_jax.teacher.roles import fences, templates
from ropd_jax.teacher.roles.json_reply import TOKEN_KEY, find_object, token_of, with_token
from ropd_jax.types import Prompt

TEMPLATE = "healthbench.v3"
SCHEMA = {
    "type": "object",
    "properties": {"explanation": {"type": "string"}, "criteria_met": {"type": "boolean"}},
    "required": ["explanation", "criteria_met"],
    "additionalProperties": False,
}

Rubrics = Sequence[tuple[str, float, tuple[str, ...]]]  # (criterion, points, tags)


def score(rubrics: Rubrics, met: Sequence[bool | None]) -> float | None:
    """The example's score, at most 1 and not clipped below; None without positive points or without a verdict.

    >>> score([("a", 7, ()), ("b", 5, ()), ("c", 10, ()), ("d", -6, ())], [True, False, True, True])  # 11/22
    0.5
    """
    if any(m is None for m in met):
        return None
    possible = sum(points for _, points, _ in rubrics if points > 0)
    if possible <= 0:
        return None
    return sum(points for (_, points, _), ok in zip(rubrics, met, strict=True) if ok) / possible


def tag_scores(rubrics: Rubrics, met: Sequence[bool | None], example_tags: Sequence[str]) -> dict[str, float]:
    """The score of each tag of the example and of its criteria; a tag without a score is left out."""
    found: dict[str, float] = {}
    whole = score(rubrics, met)
    if whole is not None:
        found |= dict.fromkeys(example_tags, whole)
    for tag in sorted({tag for _, _, tags in rubrics for tag in tags}):
        mine = [i for i, (_, _, tags) in enumerate(rubrics) if tag in tags]
        part = score([rubrics[i] for i in mine], [met[i] for i in mine])
        if part is not None:
            found[tag] = part
    return found


def judge_request(prompt: Prompt, response: str, rubric: tuple[str, float, tuple[str, ...]], how: Role) -> ChatRequest:
    """The request that asks whether the response meets one criterion; the judge sees ``[points] criterion``.

    The fences' token is derived from the conversation and occurs in none of the example's criteria.
    """
    criterion = _shown(rubric)
    turns = [*((m.role, m.content) for m in prompt.messages), ("assistant", response)]
    criteria = [criterion, *(_shown(other) for other in prompt.metadata.get("rubrics", ()))]
    token = fences.make_token("healthbench", (content for _, content in turns), avoid=criteria)
    shown = "\n\n".join(
        fences.block(f"{_label(role)} {n}", content, token) for n, (role, content) in enumerate(turns, 1)
    )
    messages = templates.messages(
        TEMPLATE,
        token=token,
        reply=_example(token),
        conversation=shown,
        criterion=fences.block("criterion", criterion, token),
    )
    schema = with_token(SCHEMA, token)
    return ChatRequest("verify", messages, how.model, how.temperature, how.max_output_tokens, schema, extra=how.extra)


def parse_verdict(text: str, token: str = "") -> bool:
    """The judge's ``criteria_met``.

    Args:
        token: what the object must carry, see `teacher.roles.json_reply`.

    Raises:
        MalformedError: the reply has no JSON object with a boolean of that name.
    """
    met = find_object(text, "criteria_met", token)["criteria_met"]
    if not isinstance(met, bool):
        raise MalformedError(f"criteria_met is {met!r:.60}; expected true or false")
    return met


async def judge_all(
    teacher: Teacher,
    answers: Sequence[tuple[Prompt, str]],
    *,
    at_once: int,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[tuple[list[bool | None], list[str]]]:
    """For each (prompt, response), the verdict on each criterion and the causes of the missing verdicts.

    Args:
        at_once: maximum number of requests in flight.
        report: called with (done, of), counted in criteria.

    Raises:
        ConfigurationError: the judge cannot work at all (for example a wrong key or a spent budget).
    """
    how = teacher.roles["verify"]
    slots, done = asyncio.Semaphore(max(1, at_once)), 0
    of = sum(len(p.metadata["rubrics"]) for p, _ in answers)

    async def one(prompt: Prompt, response: str, rubric: tuple) -> bool | str:
        nonlocal done
        async with slots:
            try:
                request = judge_request(prompt, response, rubric, how)
                token = token_of(request.json_schema)
                return await teacher.ask(request, lambda text: parse_verdict(text, token))
            except ConfigurationError:
                raise
            except TeacherError as error:
                return error.cause
            finally:
                done += 1
                report(done, of)

    tasks = [[asyncio.ensure_future(one(p, text, r)) for r in p.metadata["rubrics"]] for p, text in answers]
    try:
        found = [await asyncio.gather(*row) for row in tasks]
    finally:
        for task in (t for row in tasks for t in row):
            task.cancel()
    return [
        ([m if isinstance(m, bool) else None for m in row], [m for m in row if isinstance(m, str)]) for row in found
    ]


def grader_facts(teacher: Teacher, provider: str) -> dict[str, object]:
    """What identifies the judge: the model's name, its settings, and the prompt with its hash."""
    how = teacher.roles["verify"]
    return {
        "model": how.model,
        "temperature": how.temperature,
        "max_output_tokens": how.max_output_tokens,
        "provider": provider,
        "template": f"{TEMPLATE}@{templates.prompt_sha(TEMPLATE)}",
    } | ({"extra": dict(how.extra)} if how.extra else {})


def _shown(rubric: tuple[str, float, tuple[str, ...]]) -> str:
    text, points, _ = rubric
    return f"[{points:g}] {text}"


def _example(token: str) -> str:
    reply = json.dumps({"explanation": "one or two sentences", "criteria_met": None, TOKEN_KEY: token})
    return reply.replace("null", "true/false")


def _label(role: str) -> str:
    return role if role.isalpha() and role.islower() else "turn"
