"""Judges one group, from answers to rewards: references, rubric, verdicts (Algorithm 1).

1. references     the teacher's own answers, requested or taken from the index
2. rubric         induced from the contrast (Eq. 3), or reused by the store's policy
3. verdicts       for all answers and references, shuffled and unlabelled (Eq. 4); twice for some groups, for `health`
4. rewards        the weighted pass rate of each answer (Eq. 5); unscored stays unscored

If a stage fails, the judgement keeps the results of the earlier stages.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ropd_jax.teacher.clients.errors import ConfigurationError, TeacherError
from ropd_jax.teacher.health import saturated
from ropd_jax.teacher.roles.marks import Marks, shuffled
from ropd_jax.teacher.rubric_store import lineage_of
from ropd_jax.types import Judgement, Lineage, Prompt, Repeat, Rubric

if TYPE_CHECKING:
    from ropd_jax.teacher.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Design:
    """The parts of the procedure that an ablation changes. The defaults are the paper's.

    Attributes:
        blind: if True, the verifier does not see which answers are the teacher's.
        see_rollouts: if True, the rubric is induced from the contrast; if False, from the references only.
        pool_references: if True, references are verified together with the rollouts. According to the paper, verifiers
            collapse without them.
        size: minimum and maximum number of criteria, K.
    """

    blind: bool = True
    see_rollouts: bool = True
    pool_references: bool = True
    size: tuple[int, int] = (4, 12)


_PAPER = Design()
_ORDERS = 8  # number of keys tried to get an order that differs from the first


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
    """The teacher's judgement of ``answers``. An answer without verdicts is unscored with a cause, never 0.0.

    Args:
        step: identifies the group together with the prompt's id, and determines the order in which answers are shown.
        references: existing (text, model) pairs; None asks the teacher (or its index).
        rubric: an existing rubric with its lineage; None asks the store, then the teacher.
        design: the settings of an ablation.

    Raises:
        ConfigurationError: a wrong key or model, which affects every group.
    """
    key, n = f"{step}/{prompt.id}", len(answers)
    known: dict[str, Any] = {}
    try:
        await induce(teacher, prompt, answers, known, step=step, references=references, rubric=rubric, design=design)
        texts = known["references"]
        # Rollouts first, so that [:n] are the rollouts' verdicts and [n:] those of the references.
        shown = (*answers, *texts) if design.pool_references else tuple(answers)
        authors = ("student",) * n + ("teacher",) * (len(shown) - n) if not design.blind else None
        verdicts = await teacher.verify(prompt, known["rubric"], shown, key=key, authors=authors)
        repeat = await _second_look(teacher, prompt, known["rubric"], shown, key, authors)
    except TeacherError as error:
        return unscored(error, n, **known)
    passed = verdicts.passed[:n]
    if rubric is None:  # a given rubric does not belong to this run's store
        teacher.store.add(
            prompt.id, step, known["rubric"], known["lineage"], saturated=saturated(known["rubric"], passed)
        )
    return Judgement(
        rewards=verdicts.scores(known["rubric"])[:n],
        causes=verdicts.causes[:n],
        passed=passed,
        reference_passed=verdicts.passed[n:],
        repeat=repeat,
        agreement=verdicts.agreement,
        **known,
    )


async def induce(
    teacher: Teacher,
    prompt: Prompt,
    answers: Sequence[str],
    known: dict[str, Any],
    *,
    step: int,
    references: Sequence[tuple[str, str]] | None = None,
    rubric: tuple[Rubric, Lineage | None] | None = None,
    design: Design = _PAPER,
) -> None:
    """References and rubric without verdicts.

    Writes the fields ``references``, ``reference_models``, ``rubric`` and ``lineage`` of a `Judgement` to ``known``,
    one after the other. The arguments are those of `judge`.

    Raises:
        TeacherError: a call failed. ``known`` has the results before it.
    """
    if references is None:
        references = await teacher.reference_samples(prompt)
    known["references"] = texts = tuple(text for text, _ in references)
    known["reference_models"] = tuple(model for _, model in references)
    known["rubric"], known["lineage"] = rubric or await _rubric(teacher, prompt, texts, answers, step, design)


def unscored(error: TeacherError, n: int, **known: Any) -> Judgement:
    """The judgement of ``n`` answers after ``error``; ``known`` has the fields that were known before it.

    Raises:
        ConfigurationError: ``error`` itself if it is one, because it affects every group.
    """
    if isinstance(error, ConfigurationError):
        raise error
    return Judgement(rewards=(None,) * n, causes=(error.cause,) * n, **known)


def scored(scores: Marks, lowest: int, highest: int, **known: Any) -> Judgement:
    """The judgement of a scorer's integers: each reward is (score - lowest) / (highest - lowest)."""
    rewards = tuple(None if v is None else (v - lowest) / (highest - lowest) for v in scores.values)
    return Judgement(rewards=rewards, causes=scores.causes, scores=scores.values, **known)


async def _rubric(
    teacher: Teacher, prompt: Prompt, references: Sequence[str], answers: Sequence[str], step: int, design: Design
) -> tuple[Rubric, Lineage]:
    if found := teacher.store.find(prompt.id, step):
        return found
    seen = answers if design.see_rollouts else ()
    rubric = await teacher.induce_rubric(prompt, references, seen, size=design.size)
    template = teacher.template_id("rubric", prompt)
    return rubric, lineage_of(step, teacher.roles["rubric"].model, template, references, seen)


async def judge_pairs(
    teacher: Teacher, prompt: Prompt, answers: Sequence[str], *, step: int, design: Design = _PAPER
) -> Judgement:
    """Judges each answer with its own rubric, from its contrast with one reference (answer i, reference i mod m).

    This is the paper's ablation "per-{teacher, student}-pair rubrics" (Table 6), in which the rewards of one group are
    on different scales. ``Judgement.parts`` has each rubric with its verdicts. It costs one rubric and one verification
    per answer.

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


async def _second_look(
    teacher: Teacher, prompt: Prompt, rubric: Rubric, shown: Sequence[str], key: str, authors: Sequence[str] | None
) -> Repeat | None:
    """A second verification in another order, for a share of the groups that is drawn by hash; None if not drawn.

    A failure does not affect the group: there is no second look, and the failure is counted like any other.
    """
    if not _drawn(f"repeat:{teacher.seed}:{key}", teacher.repeat_frac):
        return None
    first = shuffled(shown, seed=teacher.seed, key=key)
    keys = (f"{key}/again{i}" for i in range(_ORDERS))
    # A key can give the first order by chance; with two answers, this happens in half of the cases.
    other = next((k for k in keys if shuffled(shown, seed=teacher.seed, key=k) != first), None)
    if other is None:  # one answer has one order
        return None
    try:
        verdicts = await teacher.verify(prompt, rubric, shown, key=other, counted=False, look=1, authors=authors)
    except ConfigurationError:
        raise
    except TeacherError:
        return None
    second = shuffled(shown, seed=teacher.seed, key=other)
    return Repeat(verdicts.passed, tuple((first.index(i), second.index(i)) for i in range(len(shown))))


def _drawn(what: str, share: float) -> bool:
    """True for a share of all texts, which are the same in every run."""
    return int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") < share * 2**64
