"""Rewards before they become advantages: overlong answers, and the weights of a rubric's criteria. Host numbers.

Everything here uses plain Python or numpy values of one group; nothing is traced.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

OVERLONG = ("keep", "mask", "shape")

Row = tuple[bool, ...] | None


def overlong_penalty(length: int, *, max_tokens: int, buffer: int, truncated: bool) -> float:
    """DAPO's soft overlong penalty (arXiv 2503.14476, Eq. 13): 0, then linear to -1 over the last ``buffer`` tokens.

    Args:
        length: tokens of the answer, including its stop token.
        max_tokens: the maximum length.
        buffer: tokens before the limit over which the penalty grows.
        truncated: it was cut at the limit; gives -1.
    """
    if truncated:
        return -1.0
    return min(0.0, (max_tokens - buffer - length) / buffer)


def pass_rate(weights: Sequence[float], passed: Sequence[bool]) -> float:
    """Weighted pass rate sum(w v) / sum(w) (ROPD Eq. 5) the weights need not be integers."""
    return sum(w for w, ok in zip(weights, passed, strict=True) if ok) / sum(weights)


def with_exact(
    rewards: Sequence[float | None],
    causes: Sequence[str | None],
    exact: Sequence[bool | None],
    weight: float,
) -> tuple[tuple[float | None, ...], tuple[str | None, ...]]:
    """(rewards, causes) of one group with the exact grade as a part: (1 - w) reward + w exact, for each rollout.

    An unscored reward stays unscored, with its cause. A rollout without an exact grade becomes unscored, with cause
    ``ungraded``, because its reward would not be comparable with the others of its group.
    """
    mixed: list[float | None] = []
    why: list[str | None] = []
    for reward, cause, right in zip(rewards, causes, exact, strict=True):
        if reward is None or right is None:
            mixed.append(None)
            why.append(cause if reward is None else "ungraded")
        else:
            mixed.append((1.0 - weight) * reward + weight * right)
            why.append(cause)
    return tuple(mixed), tuple(why)


def reliability_weights(points: Sequence[float], reliability: Sequence[float | None]) -> tuple[float, ...]:
    """Points times the reliability of the verdicts on each criterion, as measured by a calibration.

    Args:
        reliability: per criterion 0 (no better than chance) to 1 (always right), or None if unknown. Unknown ones get
            the mean of the known ones, so that they are neither favoured nor penalized; 1 if none is known.
    """
    known = [r for r in reliability if r is not None]
    mean = sum(known) / len(known) if known else 1.0
    return tuple(p * (mean if r is None else r) for p, r in zip(points, reliability, strict=True))


def variance_weights(points: Sequence[float], categories: Sequence[str], passed: Sequence[Row]) -> tuple[float, ...]:
    """Points scaled by 4 p (1 - p), p the share of scored rollouts that pass; each category keeps its sum of points.

    After POW3R (arXiv 2605.20164), with a change: there the variance is averaged over epochs, here it is the group's
    own, because rubrics are newly written. A criterion that all pass or all fail cannot distinguish rollouts and gives
    its weight to the others of its category. A category without any contrast keeps its points unchanged.

    Args:
        passed: per rollout its verdicts, None if unscored.
    """
    rows = [row for row in passed if row is not None]
    if not rows:
        return tuple(map(float, points))
    rates = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    scaled = [w * 4 * p * (1 - p) for w, p in zip(points, rates, strict=True)]
    mass, kept = dict.fromkeys(categories, 0.0), dict.fromkeys(categories, 0.0)
    for w, s, c in zip(points, scaled, categories, strict=True):
        mass[c] += s
        kept[c] += w
    return tuple(
        s * kept[c] / mass[c] if mass[c] else float(w) for w, s, c in zip(points, scaled, categories, strict=True)
    )


def shown_criteria(points: Sequence[float], share: float, key: str) -> tuple[float, ...]:
    """The points, with 0 for those of the ``share`` of criteria that are hidden from the reward: Rubric Dropout.

    After arXiv 2608.11669, whose abstract states that a part of the rubric is hidden at random. Assumed here: each
    criterion is hidden with the same probability, drawn again for each group, and at least one always stays.

    Args:
        points: 0 for a criterion that does not count; such a criterion is never the one that stays.
        key: names the group: the same key hides the same criteria.
    """
    rng = random.Random(f"dropout:{key}")
    drawn = [rng.random() for _ in points]
    counted = [i for i, w in enumerate(points) if w]
    left = {i for i in counted if drawn[i] >= share} or set(sorted(counted, key=lambda i: -drawn[i])[:1])
    return tuple(float(w) if i in left else 0.0 for i, w in enumerate(points))


def references_pass(passed: Sequence[Row], n_criteria: int, least: float) -> tuple[bool, ...]:
    """Per criterion, whether at least the share ``least`` of the scored references pass it; True if none is scored."""
    rows = [row for row in passed if row is not None]
    if not rows:
        return (True,) * n_criteria
    return tuple(sum(column) / len(rows) >= least for column in zip(*rows, strict=True))
