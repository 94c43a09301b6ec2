"""Shares with their 95 % intervals. Answers that could not be graded are counted, and are in no share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean in 0..1 with its 95 % interval; all three are None when nothing could be graded.

    Attributes:
        n: graded items.
        ungraded: items left out because they could not be graded.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    ungraded: int = 0

    def __str__(self) -> str:
        if self.value is None:
            return f"unknown (0 of {self.ungraded} graded)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"


def accuracy(grades: Sequence[bool | None]) -> Estimate:
    """The share of True among the graded ones, with the Wilson score interval (Wilson 1927)."""
    known = [g for g in grades if g is not None]
    n, ungraded = len(known), len(grades) - len(known)
    if n == 0:
        return Estimate(None, None, None, 0, ungraded)
    p = sum(known) / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    low = 0.0 if p == 0.0 else centre - half
    high = 1.0 if p == 1.0 else centre + half
    return Estimate(p, low, high, n, ungraded)


def mean_accuracy(grades_PK: Sequence[Sequence[bool | None]], *, seed: int = 0, draws: int = 2000) -> Estimate:
    """The mean over P prompts of the share of right ones among each prompt's K samples, as avg@K.

    The K samples of a prompt are not independent, so the interval is a percentile bootstrap over prompts. A prompt
    none of whose samples could be graded is left out and counted.
    """
    shares = [sum(known) / len(known) for row in grades_PK if (known := [g for g in row if g is not None])]
    ungraded = len(grades_PK) - len(shares)
    if not shares:
        return Estimate(None, None, None, 0, ungraded)
    share_P = np.asarray(shares)
    picks = np.random.default_rng(seed).integers(0, len(shares), size=(draws, len(shares)))
    low, high = np.percentile(share_P[picks].mean(axis=1), [2.5, 97.5])
    return Estimate(float(share_P.mean()), float(low), float(high), len(shares), ungraded)
