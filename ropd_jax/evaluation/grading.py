"""From answers to outcomes, with the benchmark's grader. No model and no jax, except that a teacher judges HealthBench.

An ``Outcome`` has a value in 0..1 (HealthBench: a score that can be negative), or None and the cause if it could not be
graded. A failure of a grader never becomes a value. The choice grader matches strings; every grader that parses more of
an answer runs in a sandboxed child process (``utils.sandbox``).
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ropd_jax.data.grader import final_answer, grade
from ropd_jax.evaluation import voting
from ropd_jax.evaluation.answers import Answer, by_problem
from ropd_jax.evaluation.benchmarks import LETTERS, Benchmark
from ropd_jax.evaluation.graders import choice, healthbench, math_pool
from ropd_jax.evaluation.graders.math import boxed, compare, grade_math
from ropd_jax.teacher import Teacher
from ropd_jax.types import END_THINK, THINK, Prompt, UserError, answer_of
from ropd_jax.utils.sandbox import ERRORS, Service

Report = Callable[[int, int], None]

_ifeval_child = Service("ropd_jax.data.ifeval_worker", cpu_s=20.0)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The grade of one answer.

    Attributes:
        value: 1.0 right, 0.0 wrong (HealthBench: the score); None ungraded.
        cause: why it is ungraded or wrong, else "".
        answer: the final answer extracted from the text; None if it has none.
        vote: the name of its class in a majority vote, see `ropd_jax.evaluation.voting`; None means the answer itself.
        parts: further values of the same answer, by name.
    """

    value: float | None
    cause: str = ""
    answer: str | None = None
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    vote: str | None = None


def check_installed(benchmark: Benchmark) -> None:
    """Checks, before anything is sampled, that the packages of the benchmark's grader are installed.

    Raises:
        UserError: a package is missing.
    """
    if benchmark.grader == "math":
        math_pool.check_starts()
    wanted = ("langdetect", "punkt", "nltk") if benchmark.grader == "ifeval" else ()
    if missing := [name for name in wanted if importlib.util.find_spec(name) is None]:
        raise UserError(f"the grader of {benchmark.name} needs {', '.join(missing)}: pip install 'ropd_jax[eval]'")


def grade_answers(
    benchmark: Benchmark,
    prompts: Mapping[str, Prompt],
    answers: Sequence[Answer],
    *,
    workers: int = 0,
    timeout_s: float = 5.0,
    teacher: Teacher | None = None,
    at_once: int = 64,
    report: Report = lambda done, of: None,
) -> list[Outcome]:
    """The outcome of each answer.

    Args:
        prompts: by id, for all answers.
        workers, timeout_s: for the math grader, see ``math_pool.verify_all``.
        teacher: HealthBench's judge; it is closed at the end.
        at_once: maximum number of requests to the judge in flight.
        report: called with (done, of).
    """
    asked = [prompts[a.id] for a in answers]
    texts = closed_thoughts([a.response for a in answers])
    if benchmark.grader == "math":
        return _math(asked, texts, by_problem(answers), workers=workers, timeout_s=timeout_s, report=report)
    if benchmark.grader == "healthbench":
        return _healthbench(asked, texts, teacher, at_once, report)
    one = {"choice": _choice, "ifeval": _ifeval, "exact": _exact}[benchmark.grader]
    outcomes = []
    for done, (prompt, text) in enumerate(zip(asked, texts, strict=True)):
        report(done, len(texts))
        outcomes.append(one(prompt, text))
    return outcomes


def closed_thoughts(texts: Sequence[str]) -> list[str]:
    """The texts, each starting with ``<think>`` if the chat template opens the thought.

    It does if some text has ``</think>`` without ``<think>`` before it. Without the tag, a thought that was truncated
    before its ``</think>`` looks like an answer.
    """
    opened = any(END_THINK in text and THINK not in text.partition(END_THINK)[0] for text in texts)
    return [f"{THINK}{text}" if opened and THINK not in text.partition(END_THINK)[0] else text for text in texts]


def _math(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    problems: Mapping[str, Sequence[int]],
    *,
    report: Report,
    **how: Any,
) -> list[Outcome]:
    finals = [boxed(text) for text in texts]
    verdicts = grade_math([p.answer or "" for p in prompts], texts, report=report, **how)

    def equal(pairs: Sequence[tuple[str, str]]) -> list[bool]:
        return [v.right is True for v in compare(pairs, report=report, **how)]

    votes = voting.classes(problems, finals, [v.right for v in verdicts], equal)
    return [
        Outcome(None if v.right is None else float(v.right), v.cause, final, vote=vote)
        for v, final, vote in zip(verdicts, finals, votes, strict=True)
    ]


def _exact(prompt: Prompt, text: str) -> Outcome:
    text = answer_of(text)
    right = grade(prompt, text)
    answer = final_answer(text)
    if right is None:
        has_gold = prompt.answer is not None or "reasoning_gym" in prompt.metadata
        return Outcome(None, "undecided" if has_gold else "no_gold", answer)
    return Outcome(float(right), "" if right else "no_answer" if answer is None else "different", answer)


def _choice(prompt: Prompt, text: str) -> Outcome:
    letter = choice.last_choice(text, LETTERS)
    original = choice.first_choice_original(text)
    cause = "" if letter == prompt.answer else "no_answer" if letter is None else "different"
    return Outcome(float(letter == prompt.answer), cause, letter, {"original_regex": float(original == prompt.answer)})


def _ifeval(prompt: Prompt, text: str) -> Outcome:
    """The value is prompt-level strict; the parts hold the other three scores and the number of instructions."""
    reply = _ifeval_child.ask({"instructions": prompt.metadata["instructions"], "response": answer_of(text)})
    if reply.get("error") == "instruction":
        raise UserError(str(reply.get("message")))
    if "error" in reply:
        return Outcome(None, reply["error"] if reply["error"] in ERRORS else "error")
    strict, loose = reply["strict"], reply["loose"]
    return Outcome(
        float(all(strict)),
        "" if all(strict) else "not_followed",
        parts={
            "prompt_loose": float(all(loose)),
            "followed_strict": float(sum(strict)),
            "followed_loose": float(sum(loose)),
            "instructions": float(len(strict)),
        },
    )


def _healthbench(
    prompts: Sequence[Prompt], texts: Sequence[str], teacher: Teacher | None, at_once: int, report: Report
) -> list[Outcome]:
    if teacher is None:
        raise UserError("HealthBench is graded by a model; name it with --config.teacher.verifier.model=MODEL")
    pairs = [(p, answer_of(text)) for p, text in zip(prompts, texts, strict=True)]

    async def judged() -> list[tuple[list[bool | None], list[str]]]:
        try:
            return await healthbench.judge_all(teacher, pairs, at_once=at_once, report=report)
        finally:
            await teacher.close()

    outcomes = []
    for (prompt, _), (met, causes) in zip(pairs, asyncio.run(judged()), strict=True):
        rubrics: Any = prompt.metadata["rubrics"]
        value = healthbench.score(rubrics, met)
        cause = "" if value is not None else causes[0] if causes else "no_positive_points"
        tags = healthbench.tag_scores(rubrics, met, prompt.metadata["example_tags"])
        outcomes.append(Outcome(value, cause, parts=tags))
    return outcomes
