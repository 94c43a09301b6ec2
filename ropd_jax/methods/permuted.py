"""Control: ROPD with the rewards permuted within the batch. Whatever it learns does not come from the rewards.

All else (references, rubrics, verdicts, update) is ROPD's. The control must not improve.
"""

from __future__ import annotations

import numpy as np

from ropd_jax.methods.ropd import ROPD
from ropd_jax.types import UserError


class Permuted(ROPD):
    def __post_init__(self):
        super().__post_init__()
        if self.cfg.ropd.advantage != "total":
            raise UserError(
                f"method='permuted' permutes rewards, which ropd.advantage={self.cfg.ropd.advantage!r} does not use; "
                "set ropd.advantage='total'"
            )

    def advantages(self, reward_PG, valid_PG, step):
        order = np.random.default_rng([self.cfg.seed, step]).permutation(reward_PG.size)
        return super().advantages(
            reward_PG.reshape(-1)[order].reshape(reward_PG.shape),
            valid_PG.reshape(-1)[order].reshape(valid_PG.shape) & valid_PG,
            step,
        )


METHOD = Permuted
