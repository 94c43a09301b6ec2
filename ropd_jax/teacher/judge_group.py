"""One group from answers to rewards: references, rubric, verdicts (Algorithm 1), with what is known kept on failure.

1. references     the teacher's own answers, asked for or taken from the index
2. rubric         induced from the contrast (Eq. 3), or one that the store's policy uses again
3. verdicts       of all answers and references, shuffled and unlabelled (Eq. 4); some groups twice, for the health
4. rewards        the weighted pass rate of each answer (Eq. 5); unscored stays unscored
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ropd_jax.teacher.clients.client import ConfigurationError, TeacherError
from ropd_jax.teacher.health import saturated
from ropd_jax.teacher.roles import verifier
from ropd_jax.teacher.rubric_store import lineage_of
from ropd_jax.types import Judgement, Lineage, Prompt, Repeat, Rubric

if TYPE_CHECKING:
    from ropd_jax.teacher.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Design:
    """What of the procedure an ablation changes; the defaults are the paper's.

    Attributes:
        blind: the verifier does not see which answers are the teacher's.
        see_rollouts: the rubric is induced from the contrast; False shows the rubricator the references alone.
        pool_references: references are verified beside the rollouts; the paper says that verifiers collapse without.
        size: fewest and most criteria, K.
    """

    blind: bool = True
    see_rollouts: bool = True
    pool_references: bool = True
    size: tuple[int, int] = (4, 12)


_PAPER = Design()
_ORDERS = 8  # keys tried for an order that differs from the first


async def judge(
    teacher: Teacher,
    prompt: Prompt,
    answers: Sequence[str],
    *,
    step: int,
    references: Sequence[tuple[str, str]] | None = None,
    rubric: tuple[Rubric, Lineage | None] | None = None,
    design: Design = _PAPER,
) -> Judgement:
    """The teacher's judgement of ``answers``. What it fails to say is unscored, with a cause; never 0.0.

    Args:
        step: names the group together with the prompt's id: the order in which answers are shown hangs on it.
        references: (text, model) pairs that are there already; None asks the teacher (or its index).
        rubric: one that is there already, with its lineage; None asks the store, then the teacher.
        design: what an ablation does otherwise.

    Raises:
        ConfigurationError: a wrong key or model, which is wrong for every group.
    """
    key, n = f"{step}/{prompt.id}", len(answers)
    known: dict = {}
    try:
        if references is None:
            references = await teacher.reference_samples(prompt)
        known["references"] = texts = tuple(text for text, _ in references)
        known["reference_models"] = tuple(model for _, model in references)
        known["rubric"], known["lineage"] = rubric or await _rubric(teacher, prompt, texts, answers, step, design)
        shown = (*answers, *texts) if design.pool_references else tuple(answers)
        authors = ("student",) * n + ("teacher",) * (len(shown) - n) if not design.blind else None
        verdicts = await teacher.verify(prompt, known["rubric"], shown, key=key, authors=authors)
        repeat = await _again(teacher, prompt, known["rubric"], shown, key, authors)
    except TeacherError as error:
        return unscored(error, n, **known)
    passed = verdicts.passed[:n]
    if rubric is None:
        teacher.store.add(
            prompt.id, step, known["rubric"], known["lineage"], saturated=saturated(known["rubric"], passed)
        )
    return Judgement(
        rewards=verdicts.scores(known["rubric"])[:n],
        causes=verdicts.causes[:n],
        passed=passed,
        reference_passed=verdicts.passed[n:],
        repeat=repeat,
        **known,
    )


def unscored(error: TeacherError, n: int, **known) -> Judgement:
    """The judgement of ``n`` answers that ``error`` left without one; ``known`` is what was there before it.

    Raises:
        ConfigurationError: if that is what the error is; it is wrong for every group.
    """
    if isinstance(error, ConfigurationError):
        raise error
    return Judgement(rewards=(None,) * n, causes=(error.cause,) * n, **known)


def graded(grades: verifier.Marks, lowest: int, highest: int, **known) -> Judgement:
    """The judgement that grades of a scale make: each reward is (grade - lowest) / (highest - lowest)."""
    rewards = tuple(None if v is None else (v - lowest) / (highest - lowest) for v in grades.values)
    return Judgement(rewards=rewards, causes=grades.causes, scores=grades.values, **known)


async def _rubric(
    teacher: Teacher, prompt: Prompt, references: Sequence[str], answers: Sequence[str], step: int, design: Design
) -> tuple[Rubric, Lineage]:
    if found := teacher.store.find(prompt.id, step):
        return found
    seen = answers if design.see_rollouts else ()
    rubric = await teacher.induce_rubric(prompt, references, seen, size=design.size)
    return rubric, lineage_of(step, teacher.roles["rubric"].model, teacher.template_id("rubric"), references, seen)


async def judge_pairs(
    teacher: Teacher, prompt: Prompt, answers: Sequence[str], *, step: int, design: Design = _PAPER
) -> Judgement:
    """Each answer under a rubric of its own, from its contrast with one reference (answer i, reference i mod m).

    The paper's ablation "per-{teacher, student}-pair rubrics" (Table 6): rewards of one group then stand on different
    scales. ``Judgement.parts`` has each rubric with its verdicts. It costs a rubric and a verification an answer.

    Raises:
        ConfigurationError: as `judge`.
    """
    n = len(answers)
    try:
        references = await teacher.reference_samples(prompt)
    except TeacherError as error:
        return unscored(error, n)
    parts = await asyncio.gather(
        *(
            judge(teacher, prompt, [text], step=step, references=[references[i % len(references)]], design=design)
            for i, text in enumerate(answers)
        )
    )
    return Judgement(
        rewards=tuple(part.rewards[0] for part in parts),
        causes=tuple(part.causes[0] for part in parts),
        references=tuple(r.text for r in references),
        reference_models=tuple(r.model for r in references),
        parts=tuple(parts),
    )


async def _again(
    teacher: Teacher, prompt: Prompt, rubric: Rubric, shown: Sequence[str], key: str, authors: Sequence[str] | None
) -> Repeat | None:
    """A second look at every answer in another order, for a share of the groups drawn by hash; None if not drawn.

    Its failure costs the group nothing: there is then no second look, and the failure is counted as any other.
    """
    if not _drawn(f"repeat:{teacher.seed}:{key}", teacher.repeat_frac):
        return None
    first = verifier.shuffled(shown, seed=teacher.seed, key=key)
    keys = (f"{key}/again{i}" for i in range(_ORDERS))
    other = next((k for k in keys if verifier.shuffled(shown, seed=teacher.seed, key=k) != first), None)
    if other is None:  # one answer has one order
        return None
    try:
        verdicts = await teacher.verify(prompt, rubric, shown, key=other, counted=False, authors=authors)
    except ConfigurationError:
        raise
    except TeacherError:
        return None
    second = verifier.shuffled(shown, seed=teacher.seed, key=other)
    return Repeat(verdicts.passed, tuple((first.index(i), second.index(i)) for i in range(len(shown))))


def _drawn(what: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") < share * 2**64
