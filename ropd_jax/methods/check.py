"""Checks what `Method.judge` returned, so that a mistake in a method is one line and not a failure much later."""

from __future__ import annotations

import inspect
import math
import numbers

from ropd_jax.methods.base import Method
from ropd_jax.types import Judgement, RolloutGroup, UserError
from ropd_jax.utils.user_module import line_of


def check_judgement(method: Method, judgement: object, group: RolloutGroup) -> Judgement:
    """The judgement itself, if it fits the group.

    One reward and one cause belong to each rollout; for a method that trains on the teacher's texts
    (``needs_rollouts = False``) to each of its `Method.sequences_per_prompt` sequences. A reward is a finite number, or
    None for an unscored rollout.

    Raises:
        UserError: it is not a `Judgement`, or a number of rewards or causes or a reward is wrong; with the line of the
            method's ``judge``.
    """
    where = f"{line_of(inspect.unwrap(type(method).judge))}: {type(method).__name__}.judge"
    at = f"for the group of prompt {group.prompt.id!r}"
    if not isinstance(judgement, Judgement):
        raise UserError(
            f"{where} returned a {type(judgement).__name__} {at}; expected ropd_jax.types.Judgement(rewards=, causes=)"
        )
    n = len(group.rollouts) if method.needs_rollouts else method.sequences_per_prompt
    for name, values in (("rewards", judgement.rewards), ("causes", judgement.causes)):
        if not isinstance(values, tuple | list) or len(values) != n:
            shown = f"{len(values)} {name}" if isinstance(values, tuple | list) else f"{name}={values!r:.60}"
            raise UserError(f"{where} returned {shown} {at}; expected a tuple of {n}, one per rollout")
    for i, reward in enumerate(judgement.rewards):
        if reward is not None and not _is_number(reward):
            raise UserError(
                f"{where} returned reward {reward!r:.60} ({type(reward).__name__}) for rollout {i} {at}; expected a "
                "finite float, or None for a rollout without a score"
            )
    return judgement


def _is_number(x: object) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool) and math.isfinite(x)
