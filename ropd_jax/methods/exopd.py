"""ExOPD (arXiv 2602.12125): on-policy distillation with the reward extrapolated beyond the teacher.

The advantage of a token is -[(log pi_S - log pi_ref) - lambda (log pi_T - log pi_ref)] with pi_ref the initial student:
what the teacher does more often than the initial student is reinforced lambda times as much. lambda = 1 is LOPD. The
default is 1.25, as in the authors' example; ROPD's paper does not say which lambda its table used.
"""

from __future__ import annotations

from ropd_jax.methods.lopd import LOPD
from ropd_jax.types import UserError


class ExOPD(LOPD):
    needs_initial = True

    def __post_init__(self):
        super().__post_init__()
        if self.cfg.lopd.mode != "sampled":
            raise UserError(f"lopd.mode={self.cfg.lopd.mode!r} with method=exopd; expected 'sampled'")

    def token_advantage(self, tokens):
        scale = self.cfg.exopd.scale
        return scale * tokens.extras["teacher"] + (1.0 - scale) * tokens.ref_logp_BT - tokens.old_logp_BT


METHOD = ExOPD
