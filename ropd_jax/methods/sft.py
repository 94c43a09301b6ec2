"""Supervised fine-tuning on the teacher's references, same prompts and same number of references as ROPD.

The student does not sample. A reference that the teacher failed to write has no tokens and does not count.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ropd_jax.core.advantages import Advantages
from ropd_jax.core.batches import TokenSequence
from ropd_jax.methods.base import Method
from ropd_jax.teacher import TeacherError
from ropd_jax.teacher.judge_group import unscored
from ropd_jax.types import Judgement, RolloutGroup


class SFT(Method):
    needs_rollouts = False
    by_group = True

    @property
    def asks(self):
        return {"reference": 1}

    @property
    def sequences_per_prompt(self) -> int:
        return self.cfg.teacher.references

    async def judge(self, teacher, group: RolloutGroup) -> Judgement:
        m = self.sequences_per_prompt
        try:
            references = await teacher.references(group.prompt)
        except TeacherError as error:
            return unscored(error, m)
        missing = m - len(references)
        return Judgement(
            rewards=(1.0,) * len(references) + (None,) * missing,
            causes=(None,) * len(references) + ("duplicate_reference",) * missing,
            references=references,
        )

    def advantages(self, reward_PG, valid_PG, step):
        valid_PG = jnp.asarray(valid_PG)
        return Advantages(valid_PG.astype(jnp.float32), valid_PG, valid_PG)

    def sequences(self, group, judgement, tokenizer):
        stop = tokenizer.stop_ids[0]
        rows = [np.asarray([*tokenizer.encode(text), stop], np.int32) for text in judgement.references]
        rows += [np.zeros((0,), np.int32)] * (self.sequences_per_prompt - len(rows))
        return [TokenSequence(group.prompt_tokens_T, row, np.full(row.shape, np.nan, np.float32)) for row in rows]

    def loss(self, tokens):
        return -tokens.logp_BT, {}


METHOD = SFT
