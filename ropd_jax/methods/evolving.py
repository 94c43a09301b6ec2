"""Evolving rubrics: the criteria of a prompt grow with the student, after RLER (DR Tulu; open-instruct).

The first visit of a prompt makes its *persistent* criteria, as ROPD does. Each later visit requests at most
``evolving.new`` new ones, from the contrast of the references with the rollouts of that visit. The rubric of a visit
has persistent, *active* and new criteria; a new one with the words of an old one is left out. After the verdicts, the
criteria that are not persistent are ranked by the variance of their verdicts among the rollouts. At most
``evolving.active`` stay active, and one whose verdicts are all equal is dropped::

    visit 1   persistent a b c d                      new: none
    visit 2   persistent a b c d   active             new e f      verdicts of e 1 0 1 0, of f 1 1 1 1: f leaves
    visit 3   persistent a b c d   active e           new g        e 1 1 1 1, g 0 0 1 0: e leaves

Its sources (open-instruct's pull requests 1460 and 1581) name the buffer, its five active criteria and the removal by
low variance. Assumed here: the first rubric is the persistent part, all criteria count by their points in one weighted
pass rate, the rubricator does not see the existing criteria, and of two with equal variance the older one stays.

The buffer is in the rubric store, so it is part of the checkpoint, and a repeated step begins with the same criteria.
It only affects prompts that are visited more than once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ropd_jax.core.rewards import Row
from ropd_jax.data.rubrics import PUBLISHED
from ropd_jax.methods.ropd import ROPD
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import judge, unscored
from ropd_jax.teacher.rubric_store import lineage_of
from ropd_jax.types import Criterion, Judgement, RolloutGroup, Rubric, UserError


class Evolving(ROPD):
    needs_one_rubric = "keeps one rubric per prompt and changes it from step to step"

    def __post_init__(self):
        super().__post_init__()
        how, own = self.cfg.ropd, self.cfg.evolving
        if how.rubrics == PUBLISHED or self.cfg.teacher.rubric_reuse != "fresh":
            raise UserError(
                f"ropd.rubrics={how.rubrics!r}, teacher.rubric_reuse={self.cfg.teacher.rubric_reuse!r}; expected "
                "'teacher' and 'fresh', because method='evolving' manages rubrics itself"
            )
        if own.new < 1 or own.active < 1:
            raise UserError(
                f"evolving.new={own.new}, evolving.active={own.active}; expected at least 1 each, or method='ropd' "
                "with teacher.rubric_reuse for a rubric that does not change"
            )

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        own, prompt, design = self.cfg.evolving, group.prompt, self.design
        answers = tuple(r.answer for r in group.rollouts)
        kept = teacher.store.buffer(prompt.id, group.step)
        size = (1, own.new) if kept else design.size
        try:
            references = await teacher.reference_samples(prompt)
            texts = tuple(r.text for r in references)
            seen = answers if design.see_rollouts else ()
            new = await teacher.induce_rubric(prompt, texts, seen, size=size)
        except TeacherError as error:
            return unscored(error, len(answers))
        lineage = lineage_of(
            group.step, teacher.roles["rubric"].model, teacher.template_id("rubric", prompt), texts, seen
        )
        known, persistent, _ = kept or (None, len(new.criteria), lineage)
        rubric = joined(known, new)
        judgement = await judge(
            teacher, prompt, answers, step=group.step, design=design, references=references, rubric=(rubric, lineage)
        )
        if any(row is not None for row in judgement.passed):
            after = Rubric(evolved(rubric.criteria, persistent, judgement.passed, own.active))
            teacher.store.keep(prompt.id, group.step, after, persistent, lineage)
        return self.reweighted(judgement, group)


def joined(known: Rubric | None, new: Rubric) -> Rubric:
    """Both rubrics' criteria, the known ones first, each text once, with the ids c1, c2, ..."""
    found: dict[str, Criterion] = {}
    for criterion in (*(known.criteria if known else ()), *new.criteria):
        found.setdefault(" ".join(criterion.text.lower().split()), criterion)
    return Rubric(tuple(dataclasses.replace(c, id=f"c{n}") for n, c in enumerate(found.values(), 1)))


def evolved(
    criteria: Sequence[Criterion], persistent: int, passed: Sequence[Row], active: int
) -> tuple[Criterion, ...]:
    """The criteria that the next visit begins with: the first ``persistent`` ones, and of the others the ``active``
    ones whose verdicts vary most among the scored rollouts; none that does not vary."""
    rows = [row for row in passed if row is not None]
    rates = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    variance = [p * (1 - p) for p in rates]
    ranked = sorted(range(persistent, len(criteria)), key=lambda k: (-variance[k], k))
    stay = {k for k in ranked[:active] if variance[k] > 0}
    return tuple(c for k, c in enumerate(criteria) if k < persistent or k in stay)


METHOD = Evolving
