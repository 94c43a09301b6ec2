"""What a method is: the few places where ROPD and its rivals differ. A new one is one file in this folder.

A step asks a method four things, in this order:

1. `Method.judge`: what does the teacher say of this group? (asyncio, on the teacher's loop, group by group)
2. `Method.advantages`: rewards of all groups -> advantages.
3. `Method.sequences`: which token sequences is the student trained on?
4. `Method.loss`: the loss of each token, from the student's log-probs. Traced by jit.

The defaults here are GRPO on the student's own rollouts.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
import pathlib
from typing import TYPE_CHECKING

import jax
import numpy as np
from ml_collections import ConfigDict

from ropd_jax.core import advantages as advantages_lib
from ropd_jax.core import losses
from ropd_jax.data.batches import Sequence, TrainBatch
from ropd_jax.types import Judgement, RolloutGroup, UserError

if TYPE_CHECKING:
    from ropd_jax.teacher import Teacher
    from ropd_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """GRPO on rewards that `judge` gives."""

    cfg: ConfigDict
    needs_rollouts = True

    @property
    def sequences_per_prompt(self) -> int:
        return self.cfg.sampling.rollouts

    @abc.abstractmethod
    async def judge(self, teacher: Teacher, group: RolloutGroup) -> Judgement:
        """The teacher's judgement of one group. What it fails to say is unscored, with a cause; never 0.0."""

    def advantages(self, reward_PG: np.ndarray, valid_PG: np.ndarray, step: int) -> advantages_lib.Advantages:
        """Advantages of a step from its rewards (NaN where ``valid_PG`` is False)."""
        loss = self.cfg.loss
        return advantages_lib.group_advantages(
            reward_PG, valid_PG, normalize_std=loss.normalize_std, min_scored=loss.min_scored
        )

    def sequences(self, group: RolloutGroup, judgement: Judgement, tokenizer: Tokenizer) -> list[Sequence]:
        """The `sequences_per_prompt` sequences to train on, in the order of the advantages."""
        return [Sequence(group.prompt_tokens_T, r.tokens_T, r.logp_T) for r in group.rollouts]

    def loss(self, logp_BT: jax.Array, batch: TrainBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss_BT, metrics_BT): token losses, and token values whose means are logged."""
        loss = self.cfg.loss
        loss_BT, clipped_BT = losses.policy_loss(
            logp_BT,
            batch.old_logp_BT,
            batch.advantage_BT,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
        )
        return loss_BT, {"clip_frac": clipped_BT}


def load_method(name: str, cfg: ConfigDict) -> Method:
    """The method of a name (a file in this folder) or of the path of a .py file that defines ``METHOD``.

    Raises:
        UserError: no such method or file, or the file defines no ``METHOD``.
    """
    here = pathlib.Path(__file__).parent
    path = pathlib.Path(name) if name.endswith(".py") else here / f"{name}.py"
    names = sorted(p.stem for p in here.glob("*.py") if p.stem not in ("base", "__init__"))
    if not path.is_file():
        raise UserError(f"method={name!r} is not known; expected one of {', '.join(names)}, or the path of a .py file")
    if path.parent == here:
        module = importlib.import_module(f"ropd_jax.methods.{path.stem}")
    else:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if not hasattr(module, "METHOD"):
        raise UserError(
            f"method file {path} defines no METHOD; expected METHOD = <your subclass of methods.base.Method>"
        )
    return module.METHOD(cfg)
