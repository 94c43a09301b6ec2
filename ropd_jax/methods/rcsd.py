"""Self-distillation criterion by criterion: the policy that is shown one criterion teaches the one that is not.

After RCSD (arXiv 2606.19327), which conditions on single criteria instead of the whole rubric. Its rubric generator is
trained; here the teacher's rubricator writes the rubric, as for `ropd_jax.methods.rgsd`. The advantage of token t is
the mean over the shown criteria k of log pi(y_t | x, c_k, y_<t) - log pi(y_t | x, y_<t).

The abstract leaves the choice of criteria open. Assumed here: a plain mean over the ``rcsd.criteria`` criteria with
the most points; of equal ones, the first. Each takes one scoring pass.
"""

from __future__ import annotations

import jax.numpy as jnp

from ropd_jax.methods.conditioning import MEETS, told
from ropd_jax.methods.rgsd import RGSD


class RCSD(RGSD):
    @property
    def contexts(self):
        return tuple(f"criterion_{k}" for k in range(1, self.cfg.rcsd.criteria + 1))

    @property
    def divergence(self):
        return None

    def told(self, group, judgement, tokenizer):
        criteria = sorted(judgement.rubric.criteria, key=lambda c: -c.points)
        return {
            name: told(tokenizer, group.prompt, MEETS, [criterion])
            for name, criterion in zip(self.contexts, criteria, strict=False)
        }

    def gap(self, tokens):
        total_BT, count_BT = jnp.zeros_like(tokens.logp_BT), jnp.zeros_like(tokens.batch.targets_BT)
        for name in self.contexts:
            logp_BT, known_BT = tokens.told(name)
            total_BT += jnp.where(known_BT, logp_BT - tokens.old_logp_BT, 0.0)
            count_BT += known_BT.astype(jnp.int32)
        return total_BT / jnp.maximum(count_BT, 1).astype(jnp.float32), count_BT > 0


METHOD = RCSD
