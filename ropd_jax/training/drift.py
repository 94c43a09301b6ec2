"""The drift alarm: the training reward rises while a measure that is not trained on gets worse on held-out answers.

A rubric reward can be gamed (criteria met only in words). The student cannot game a measure that it is not trained on:
the gold answers of the held-out set, or an independent judge (``teacher.judge``: another model, given the same
``eval.judged`` questions each time). The judge is used if the exact grader can grade fewer than nine in ten answers:
free-text golds are ungraded, and the accuracy on the few others would not represent the set. At each held-out
evaluation the alarm compares the current values with the best evaluation before it:

    reward     mean of the steps since the evaluation before this one, against the steps up to that best one
    measure    accuracy, or the judge's mean grade from 0 to 1, of this evaluation, against the best one's

It fires if the reward is higher by more than 1.645 of its standard errors (5 %, one-sided) and the measure is lower by
more than chance explains. The measure's test treats the two evaluations as independent samples, which is conservative,
since both use the same questions. The best of t evaluations is partly lucky, and the test is repeated at every
evaluation, so evaluation t spends 0.05 / t(t+1), divided equally over its t comparisons. Of the runs whose students
do not change, it fires in at most 5 %, however long they are. (At 5 % per evaluation it would be 38 % of those with 6
evaluations, and 97 % with 24.) Without gold answers and without a judge there is no result, rather than "no drift".
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.05  # maximum share of runs without a change in which the alarm fires
COVERED = 0.9  # share of the held-out answers that must have an exact grade for accuracy to be the measure
Series = Mapping[str, tuple[Sequence[int], Sequence[float | None]]]


@dataclasses.dataclass(frozen=True)
class Drift:
    """The result of the alarm at ``step``: changes since the best evaluation, at step ``since``.

    Attributes:
        measure: ``accuracy`` or ``judge``.
        change: of that measure, as a share.
    """

    step: int
    since: int
    measure: str
    change: float
    reward_change: float
    alarm: bool

    def as_metrics(self) -> dict[str, float]:
        return {
            "eval/drift": float(self.alarm),
            "eval/drift_since": float(self.since),
            f"eval/drift_{self.measure}_change": self.change,
            "eval/drift_reward_change": self.reward_change,
        }

    def __str__(self) -> str:
        what = {"accuracy": f"held-out accuracy {self.change:+.1%}", "judge": f"the judge's grade {self.change:+.3f}"}
        return f"step {self.step}: reward {self.reward_change:+.3f} and {what[self.measure]} since step {self.since}"


def drift_at(series: Series, step: int) -> Drift | None:
    """The alarm at the evaluation of ``step``; None without an earlier evaluation, a measure or a reward.

    Args:
        series: metrics by name as (steps, values), see ``report.read_metrics``: ``eval/accuracy``, ``eval/accuracy_n``
            or else ``eval/judge``, ``eval/judge_error``; and ``reward/mean``.
    """
    rewards = {s: r for s, r in _points(series, "reward/mean").items() if s <= step}
    exact, judged = _accuracies(series), _grades(series)
    measure, known = ("accuracy", exact) if step in exact and _covers(series, step) else ("judge", judged)
    before = {s: value for s, (value, _) in known.items() if s < step}
    if step not in known or not before:
        return None
    best = max(before, key=lambda s: (before[s], -s))
    early = [r for s, r in rewards.items() if s <= best] or [r for s, r in rewards.items() if s <= min(rewards) + 1]
    late = [r for s, r in rewards.items() if s > max(before)]
    if len(early) < 2 or len(late) < 2:
        return None
    fall = before[best] - known[step][0]
    error = math.sqrt(known[best][1] + known[step][1])
    rise = float(np.mean(late) - np.mean(early))
    reward_error = math.sqrt(np.var(early, ddof=1) / len(early) + np.var(late, ddof=1) / len(late))
    t = len(before)
    alarm = fall > _quantile(LEVEL / (t * t * (t + 1))) * error and rise > _quantile(LEVEL) * reward_error
    return Drift(step, best, measure, -fall, rise, bool(alarm))


def _quantile(above: float) -> float:
    """The point of the standard normal distribution that is exceeded with this probability."""
    return statistics.NormalDist().inv_cdf(1.0 - above)


def _points(series: Series, name: str) -> dict[int, float]:
    """A metric by step, only steps at which it is known."""
    return {s: v for s, v in zip(*series.get(name, ((), ())), strict=True) if v is not None}


def _accuracies(series: Series) -> dict[int, tuple[float, float]]:
    """(accuracy, its variance) by step, for steps at which some answers have an exact grade."""
    n = _points(series, "eval/accuracy_n")
    return {s: (p, p * (1 - p) / n[s]) for s, p in _points(series, "eval/accuracy").items() if n.get(s)}


def _covers(series: Series, step: int) -> bool:
    """Whether nine in ten answers have an exact grade; always true without a judge."""
    graded = _points(series, "eval/accuracy_n").get(step, 0)
    ungraded = _points(series, "eval/accuracy_ungraded").get(step, 0)
    return step not in _grades(series) or graded >= COVERED * (graded + ungraded)


def _grades(series: Series) -> dict[int, tuple[float, float]]:
    """(the independent judge's mean grade, its variance) by step."""
    error = _points(series, "eval/judge_error")
    return {s: (grade, error[s] ** 2) for s, grade in _points(series, "eval/judge").items() if s in error}


def alarms(series: Series) -> list[int]:
    """The steps at which the alarm fired."""
    return [s for s, value in zip(*series.get("eval/drift", ((), ())), strict=True) if value]
