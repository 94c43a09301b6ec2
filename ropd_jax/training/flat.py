"""Notices a run that pays for judgements it cannot learn from: nearly all groups have equal rewards."""

from __future__ import annotations

import collections

import numpy as np

from ropd_jax.types import Judgement

GROUPS = 16  # scored groups, the last ones
FLAT = 0.9  # share of them with equal rewards
AGAIN = 0.5  # below this share the next warning is possible
SAME = 0.95  # share of verdicts that are equal


class FlatRewards:
    """Watches the last `GROUPS` scored groups. A warning is given once, and again after most rewards have differed."""

    def __init__(self) -> None:
        self._groups: collections.deque[tuple[bool, float, int, int]] = collections.deque(maxlen=GROUPS)
        self._warned = False

    def add(self, judgement: Judgement, *, informative: bool) -> None:
        """Add a scored group, unless its method has no rewards.

        Args:
            informative: the rewards differ.
        """
        rewards = [r for r in judgement.taught if r is not None]
        rows = [row for one in (judgement, *judgement.parts) for row in one.passed if row is not None]
        verdicts = [v for row in rows for v in row]
        if rewards:
            self._groups.append((not informative, float(np.mean(rewards)), sum(verdicts), len(verdicts)))

    def warning(self) -> str:
        """What to tell the user now; "" for nothing."""
        if len(self._groups) < GROUPS:
            return ""
        flat, means, true, count = zip(*self._groups, strict=True)
        if self._warned or sum(flat) < FLAT * GROUPS:
            self._warned = self._warned and sum(flat) >= AGAIN * GROUPS
            return ""
        self._warned = True
        share = sum(true) / sum(count) if sum(count) else None
        if share is not None and max(share, 1 - share) >= SAME:
            said = "true" if share >= SAME else "false"
            cause = (
                f"the verifier calls {max(share, 1 - share):.0%} of all verdicts {said}; look at answers with `ropd "
                "show`, and measure the verifier with `ropd calibrate-judge`"
            )
        else:
            cause = (
                "its answers are all alike to this judge; look at them with `ropd show`, and try other questions, more "
                "rollouts or another judge"
            )
        return (
            f"{sum(flat)} of the last {GROUPS} scored groups have equal rewards (mean {np.mean(means):.2f}), so the "
            f"student learns nothing from them: {cause}"
        )
