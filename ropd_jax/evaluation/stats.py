"""Shares with their 95 % intervals. Answers that could not be graded are counted separately, outside the shares."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ropd_jax.data.grader import vote_of

_RIGHT = "\0right"  # the class of all right answers together
Z95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean (or a difference of means) with its 95 % interval; all three are None if nothing could be graded.

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


# ---------------------------------------------------------------------------------------- k samples of each problem


def pass_at_k(right: int, n: int, k: int) -> float:
    """The chance that at least one of k samples is right, unbiased given n samples of which ``right`` were right.

    1 - C(n - right, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, Eq. 1); 1 - (1 - right/n)^k would be too low.

    Raises:
        ValueError: ``k`` is not in 1..n, or ``right`` is not in 0..n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {n} samples, {right} right; expected 1 <= k <= n and 0 <= right <= n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    """1.0 if the most frequent answer is right, 0.0 if not.

    The vote is over classes of equal answers: all right answers are one class, and wrong answers of equal value
    another (`ropd_jax.data.grader.vote_of`). If c classes are equally frequent and the right one is among them, the
    value is 1/c, the expectation of a random draw among them. Samples without an answer (None) have no vote. Without
    any vote the value is 0.

    Args:
        answers: final answers, or the names of their classes (`ropd_jax.evaluation.voting`).
    """
    votes = Counter(
        _RIGHT if ok else vote_of(answer) for answer, ok in zip(answers, right, strict=True) if answer is not None
    )
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [name for name, n in votes.items() if n == most]
    return (_RIGHT in winners) / len(winners)


def clustered(
    values: Sequence[float | None], *, clip: bool = False, share: bool = True, seed: int = 0, draws: int = 10_000
) -> Estimate:
    """The mean of one value per problem, with a percentile bootstrap over problems.

    The problems are the clusters: their k samples are already inside each value, and are never drawn one by one.

    Args:
        values: one per problem; None if it could not be graded. Such a problem is left out and counted.
        clip: clip the mean (of the data and of each draw) to 0..1 *after* averaging, as HealthBench does.
        share: the values are shares. If all are 0, or all are 1, every draw is the same and the bootstrap would have
            zero width; the interval is then Wilson's over the problems.
    """
    known = np.asarray([v for v in values if v is not None], float)
    n, ungraded = len(known), len(values) - len(known)
    if n == 0:
        return Estimate(None, None, None, 0, ungraded)
    if share and not clip and known.min() == known.max() and known[0] in (0.0, 1.0):
        return dataclasses.replace(accuracy([bool(known[0])] * n), ungraded=ungraded)
    bounds = (0.0, 1.0) if clip else (-math.inf, math.inf)
    means = np.clip(known[_picks(n, seed, draws)].mean(axis=1), *bounds)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(np.clip(known.mean(), *bounds)), float(low), float(high), n, ungraded)


def clustered_ratio(tops: Sequence[float], bottoms: Sequence[float], *, seed: int = 0, draws: int = 10_000) -> Estimate:
    """sum(tops) / sum(bottoms) over problems, such as instructions followed / all, with the bootstrap over problems."""
    top, bottom = np.asarray(tops, float), np.asarray(bottoms, float)
    if not len(top) or not bottom.sum():
        return Estimate(None, None, None, 0)
    picks = _picks(len(top), seed, draws)
    low, high = np.percentile(top[picks].sum(axis=1) / bottom[picks].sum(axis=1), [2.5, 97.5])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


def paired_difference(
    a: Mapping[str, float | None], b: Mapping[str, float | None], *, seed: int = 0, draws: int = 10_000
) -> Estimate:
    """Mean of b - a over the problems that both have graded, with its bootstrap interval over those problems.

    Two results on the same problems share the problems' difficulty, so this interval is narrower than the two
    separate intervals suggest. ``ungraded`` counts the problems that only one result has, or that one has ungraded.
    """
    differences = [y - x for i in sorted(a.keys() & b.keys()) if (x := a[i]) is not None and (y := b[i]) is not None]
    left_out = len(a.keys() | b.keys()) - len(differences)
    found = clustered(differences, share=False, seed=seed, draws=draws)
    return dataclasses.replace(found, ungraded=left_out)


def _picks(n: int, seed: int, draws: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n, size=(draws, n))
