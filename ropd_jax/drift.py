"""The drift alarm: the training reward climbs while the exact grader sees held-out accuracy fall.

A rubric reward can be gamed (criteria met in words alone); the gold answers of the held-out set cannot. At each
held-out evaluation the alarm compares now with the best evaluation before it:

    reward     mean of the steps since the evaluation before this one, against the steps up to that best one
    accuracy   of this evaluation, against the best one's

It rings when the accuracy is lower by more than 1.645 standard errors of the difference (5 % one-sided, of two
independent samples: careful, since both ask the same questions) and the reward is higher by more than 1.645 of its own.
Without gold answers there is no accuracy, and the alarm says nothing rather than "no drift".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

Z = 1.6448536269514722  # the normal distribution's 95 % point
Series = Mapping[str, tuple[Sequence[int], Sequence[float | None]]]


@dataclasses.dataclass(frozen=True)
class Drift:
    """What the alarm found at ``step``: changes since the best evaluation, at step ``since``."""

    step: int
    since: int
    accuracy_change: float
    reward_change: float
    alarm: bool

    def as_metrics(self) -> dict[str, float]:
        return {
            "eval/drift": float(self.alarm),
            "eval/drift_since": float(self.since),
            "eval/drift_accuracy_change": self.accuracy_change,
            "eval/drift_reward_change": self.reward_change,
        }

    def __str__(self) -> str:
        return (
            f"step {self.step}: reward {self.reward_change:+.3f} and held-out accuracy {self.accuracy_change:+.1%} "
            f"since step {self.since}"
        )


def drift_at(series: Series, step: int) -> Drift | None:
    """The alarm at the evaluation of ``step``; None where nothing can be said (no earlier one, no gold, no reward).

    Args:
        series: metrics by name as (steps, values), see ``report.read_metrics``: ``eval/accuracy``, ``eval/accuracy_n``
            and ``reward/mean``.
    """
    accuracy, n = (dict(zip(*series.get(name, ((), ())), strict=True)) for name in ("eval/accuracy", "eval/accuracy_n"))
    rewards = {s: r for s, r in zip(*series.get("reward/mean", ((), ())), strict=True) if r is not None and s <= step}
    before = {s: a for s, a in accuracy.items() if s < step and a is not None and n.get(s)}
    now, now_n = accuracy.get(step), n.get(step)
    if now is None or not now_n or not before:
        return None
    best = max(before, key=lambda s: (before[s], -s))
    early = [r for s, r in rewards.items() if s <= best] or [r for s, r in rewards.items() if s <= min(rewards) + 1]
    late = [r for s, r in rewards.items() if s > max(before)]
    if len(early) < 2 or len(late) < 2:
        return None
    fall = before[best] - now
    error = math.sqrt(before[best] * (1 - before[best]) / n[best] + now * (1 - now) / now_n)
    rise = float(np.mean(late) - np.mean(early))
    reward_error = math.sqrt(np.var(early, ddof=1) / len(early) + np.var(late, ddof=1) / len(late))
    alarm = fall > Z * error and rise > Z * reward_error
    return Drift(step, best, -fall, rise, bool(alarm))


def alarms(series: Series) -> list[int]:
    """The steps at which the alarm rang."""
    return [s for s, value in zip(*series.get("eval/drift", ((), ())), strict=True) if value]
