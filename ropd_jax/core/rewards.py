"""Rewards before they become advantages: overlong answers, and what a rubric's criteria are worth. Host numbers.

Everything here is on plain Python or numpy values of one group; nothing is traced.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

OVERLONG = ("keep", "mask", "shape")

Row = tuple[bool, ...] | None


def overlong_penalty(length: int, *, max_tokens: int, buffer: int, truncated: bool) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13): 0, then linear to -1 over the last ``buffer`` tokens.

    Args:
        length: tokens of the answer, its stop token included.
        max_tokens: the most it may have.
        buffer: tokens before the limit over which the penalty grows.
        truncated: it was cut at the limit: -1.
    """
    if truncated:
        return -1.0
    return min(0.0, (max_tokens - buffer - length) / buffer)


def pass_rate(weights: Sequence[float], passed: Sequence[bool]) -> float:
    """Weighted pass rate sum(w v) / sum(w) (ROPD Eq. 5) for weights that need not be integers."""
    return sum(w for w, ok in zip(weights, passed, strict=True) if ok) / sum(weights)


def with_exact(
    rewards: Sequence[float | None],
    causes: Sequence[str | None],
    exact: Sequence[bool | None],
    weight: float,
) -> tuple[tuple[float | None, ...], tuple[str | None, ...]]:
    """(rewards, causes) of one group with the exact grade as a part: (1 - w) reward + w exact, of each rollout.

    An unscored reward stays unscored, with its cause. A rollout without an exact grade becomes unscored, cause
    ``ungraded``: its reward could not be compared with the others of its group.
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
    """Points times the reliability of the verdicts on each criterion, as a calibration measured it.

    Args:
        reliability: per criterion 0 (no better than chance) to 1 (always right), or None where it is unknown. There the
            mean of the known ones is taken, so that an unknown criterion is neither favoured nor punished; 1 if none
            is known.
    """
    known = [r for r in reliability if r is not None]
    mean = sum(known) / len(known) if known else 1.0
    return tuple(p * (mean if r is None else r) for p, r in zip(points, reliability, strict=True))


def variance_weights(points: Sequence[float], categories: Sequence[str], passed: Sequence[Row]) -> tuple[float, ...]:
    """Points scaled by 4 p (1 - p), p the share of scored rollouts that pass, each category keeping its sum of points.

    After POW3R (arXiv 2605.20164), adapted: there the variance is averaged over epochs, here it is the group's own,
    because rubrics are made anew. A criterion that all pass or all fail cannot tell rollouts apart and gives its
    weight to the others of its category. A category without any contrast keeps its points as they are.

    Args:
        passed: per rollout its verdicts, None where unscored.
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

    After arXiv 2608.11669, whose abstract says that a part of the rubric is hidden at random. Assumed here: each
    criterion is hidden with the same probability, drawn again for each group, and one is always left.

    Args:
        points: 0 for a criterion that does not count anyway; it is never the one that is left.
        key: names the group: the same key hides the same criteria.
    """
    rng = random.Random(f"dropout:{key}")
    drawn = [rng.random() for _ in points]
    counted = [i for i, w in enumerate(points) if w]
    left = {i for i in counted if drawn[i] >= share} or set(sorted(counted, key=lambda i: -drawn[i])[:1])
    return tuple(float(w) if i in left else 0.0 for i, w in enumerate(points))


def references_pass(passed: Sequence[Row], n_criteria: int, least: float) -> tuple[bool, ...]:
    """Per criterion: does at least the share ``least`` of the scored references pass it? True where none is scored."""
    rows = [row for row in passed if row is not None]
    if not rows:
        return (True,) * n_criteria
    return tuple(sum(column) / len(rows) >= least for column in zip(*rows, strict=True))
