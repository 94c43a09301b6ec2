"""On-policy verbal distillation (OVD, arXiv 2601.21968): the teacher grades each rollout with one digit, 0 to 9.

Its paper and its use as a baseline leave the reward open, so both readings are here (``ovd.mode``):

- ``reward``: the reward is digit / 9.
- ``filter``: the digit only decides which rollouts stay, a(y) = 1[digit >= threshold]; a demonstration by the teacher
  replaces each rejected rollout. The reward is the exact outcome, for rollouts and demonstrations alike, so gold
  answers are needed; ROPD does not need them. A demonstration was not sampled from the student, so its importance
  ratio is 1. If the threshold rejects every wrong rollout, all rewards of the group are 1 and GRPO has no gradient: a
  lower threshold keeps more wrong but promising rollouts next to the demonstrations.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np

from ropd_jax.core.batches import TokenSequence
from ropd_jax.data.grader import grade
from ropd_jax.methods.base import Method
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import scored, unscored
from ropd_jax.types import Judgement, Prompt, RolloutGroup, UserError

HIGHEST = 9


class OVD(Method):
    def __post_init__(self):
        how = self.cfg.ovd
        if how.mode not in ("reward", "filter"):
            raise UserError(f"ovd.mode={how.mode!r}; expected 'reward' or 'filter'")
        if how.mode == "filter" and self.cfg.loss.overlong == "shape":
            raise UserError(
                "loss.overlong='shape' penalizes long rollouts, but ovd.mode='filter' replaces some of them with "
                "demonstrations; set loss.overlong='mask' or 'keep'"
            )
        if not 0 <= how.threshold <= HIGHEST:
            raise UserError(f"ovd.threshold={how.threshold}; expected a digit, 0 to {HIGHEST}")

    @property
    def teaches_text(self):
        return self.cfg.ovd.mode == "filter"

    @property
    def exact_rewards(self):
        return self.cfg.ovd.mode == "filter"

    @property
    def asks(self):
        return {"reference": 1, "score": 1} if self.cfg.ovd.mode == "filter" else {"score": 1}

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        known: dict = {}
        answers = [r.answer for r in group.rollouts]
        try:
            if self.cfg.ovd.mode == "filter":
                known["references"] = await teacher.references(group.prompt)
            digits = await teacher.score(
                group.prompt,
                answers,
                key=f"{group.step}/{group.prompt.id}",
                lowest=0,
                highest=HIGHEST,
                template="score_verbal.v3",
            )
        except TeacherError as error:
            return unscored(error, len(answers), **known)
        judgement = scored(digits, 0, HIGHEST, **known)
        if self.cfg.ovd.mode == "reward":
            return judgement
        texts = [demonstration or answer for demonstration, answer in zip(self.shown(judgement), answers, strict=True)]
        right = await asyncio.to_thread(_grades, group.prompt, digits.values, texts)  # a hostile answer takes seconds
        causes = [c or ("ungraded" if ok is None else None) for c, ok in zip(digits.causes, right, strict=True)]
        rewards = tuple(None if ok is None else float(ok) for ok in right)
        return dataclasses.replace(judgement, rewards=rewards, causes=tuple(causes))

    def shown(self, judgement: Judgement) -> list[str | None]:
        """Per rollout the demonstration that takes its place, the references in turn; None where the rollout stays."""
        digits, references = judgement.scores or (None,) * len(judgement.rewards), list(judgement.references)
        rejected = [d is not None and d < self.cfg.ovd.threshold for d in digits]
        return [references[sum(rejected[:i]) % len(references)] if out else None for i, out in enumerate(rejected)]

    def sequences(self, group, judgement, tokenizer):
        rows = super().sequences(group, judgement, tokenizer)
        if self.cfg.ovd.mode == "reward":
            return rows
        for i, text in enumerate(self.shown(judgement)):
            if text is not None:
                tokens_T = np.asarray([*tokenizer.encode(text), tokenizer.stop_ids[0]], np.int32)
                rows[i] = TokenSequence(group.prompt_tokens_T, tokens_T, np.full(tokens_T.shape, np.nan, np.float32))
        return rows


def _grades(prompt: Prompt, digits: Sequence[int | None], texts: Sequence[str]) -> list[bool | None]:
    """The exact grade of each text that has a digit."""
    return [None if d is None else grade(prompt, t) for d, t in zip(digits, texts, strict=True)]


METHOD = OVD
