"""RLCF: a checklist of the instruction as the rubric, and no references (arXiv 2507.18624).

The checklist of a prompt is written once, from the instruction and candidate answers: what the instruction demands, and
how the candidates fail (the paper's "candidate-based" extraction, which it finds better than the instruction alone).
Each answer gets a verdict on each item, and the reward is the share of points, as in ROPD (Eq. 5).

Different from the paper: its candidates come from models of several sizes, and here they are the rollouts of the
prompt's first visit; it grades an item from 0 to 100, as a mean of 25 samples and of a verifier program, and here an
item is true or false (``teacher.verifier.votes`` asks several times); it trains by DPO on the pairs that differ most.

Without references nothing shows the teacher's own way, so this is also the baseline of what references add. The
checklists are in the rubric store, so they are part of the checkpoint.
"""

from __future__ import annotations

import dataclasses

from ropd_jax.data.rubrics import PUBLISHED
from ropd_jax.methods.ropd import ROPD
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import judge, unscored
from ropd_jax.teacher.rubric_store import lineage_of
from ropd_jax.types import Judgement, RolloutGroup, UserError

TEMPLATE = "checklist.v1"


class RLCF(ROPD):
    needs_one_rubric = "has one checklist per prompt"
    asks_once = frozenset({"rubric"})

    def __post_init__(self):
        super().__post_init__()
        how, reuse = self.cfg.ropd, self.cfg.teacher.rubric_reuse
        if how.rubrics == PUBLISHED or reuse != "fresh":
            raise UserError(
                f"ropd.rubrics={how.rubrics!r}, teacher.rubric_reuse={reuse!r}; expected 'teacher' and 'fresh', "
                "because method='rlcf' keeps the checklist that it writes at the first visit of a prompt"
            )
        if how.references_pass:
            raise UserError("ropd.references_pass=True; expected False, because method='rlcf' has no references")

    @property
    def asks(self):
        return {"rubric": 1, "verify": 1}

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        answers, store = tuple(r.answer for r in group.rollouts), teacher.store
        template = group.prompt.templates.get("rubric") or teacher.roles["rubric"].template or TEMPLATE
        prompt = dataclasses.replace(group.prompt, templates={**group.prompt.templates, "rubric": template})
        if kept := store.buffer(prompt.id, group.step):
            rubric, _, lineage = kept
        else:
            try:
                rubric = await teacher.induce_rubric(prompt, (), answers, size=self.design.size)
            except TeacherError as error:
                return unscored(error, len(answers))
            made_by = teacher.roles["rubric"].model, teacher.template_id("rubric", prompt)
            lineage = lineage_of(group.step, *made_by, (), answers)
            store.keep(prompt.id, group.step, rubric, len(rubric.criteria), lineage)
        design = dataclasses.replace(self.design, pool_references=False)
        judgement = await judge(
            teacher, prompt, answers, step=group.step, design=design, references=(), rubric=(rubric, lineage)
        )
        return self.reweighted(judgement, group)


METHOD = RLCF
