"""Criteria quality: pure functions of ``Judgement``, logged at each step as ``health/...``.

    pass_rate               share of (rollout, criterion) verdicts that are true
    discriminative_frac     share of criteria that one scored rollout of the group passes and another fails
    reference_pass_rate     the same as pass_rate, for the references
    reference_fails_frac    share of references that fail a criterion with the highest points of their own rubric
    reference_below_frac    share of groups whose references have a lower mean score than their rollouts
    unexplored_frac         share of criteria that a reference passes but no scored rollout: no reward teaches them
    suppressed_frac         share of scored rollouts that pass a criterion which another fails, but whose reward is
                            not above the group's mean: what they did well is not taught

The last two follow CriPO (arXiv 2607.18082). Two conditions are additions: a reference passes an unexplored criterion,
and not every rollout passes a suppressed one.

If each verdict has several votes (``teacher.verifier.votes``, ``teacher.verifier.panel``):

    agreement               mean over the criteria of the share of votes that agree with the majority
    contested_frac          share of criteria on which fewer than three quarters of the votes agree on average

If a group was verified twice in different orders (``teacher.health.repeat_frac``):

    flip_frac               share of verdicts that changed
    order_bias              mean score of an answer at its later position, minus its score at its earlier position
    rank_changed_frac       share of groups in which the order of two rollouts by score changed

One group of three rollouts and four criteria (1 true, 0 false)::

    rollout a   1 1 0 0      pass_rate            (2 + 1 + 3) / 12
    rollout b   1 0 0 0      discriminative_frac  2 / 4: all rollouts pass criterion 1, none passes criterion 3
    rollout c   1 1 0 1

Unknown values (no group with a rubric, no group verified twice) are None, never a number. All values can be computed
from a finished run: ``ropd_jax.workdir.groups.read_groups`` reads the judgements from ``groups/*.jsonl``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ropd_jax.types import Judgement, Rubric

Row = tuple[bool, ...] | None
CONTESTED = 0.75  # share of agreeing votes


def step_health(judgements: Sequence[Judgement]) -> dict[str, float | None]:
    """All of the above over the groups of one step, as ``health/...``; the later tables only if they apply."""
    rubrics = [j for j in judgements if j.rubric is not None]
    rollouts = [v for j in rubrics for row in j.passed if row is not None for v in row]
    references = [v for j in rubrics for row in j.reference_passed if row is not None for v in row]
    out = {
        "health/criteria_mean": _mean(len(j.rubric.criteria) for j in rubrics if j.rubric),
        "health/pass_rate": _mean(rollouts),
        "health/discriminative_frac": _mean(d for j in rubrics for d in discriminative(j)),
        "health/reference_pass_rate": _mean(references),
        "health/reference_fails_frac": _mean(f for j in rubrics for f in references_fail(j)),
        "health/reference_below_frac": _mean(b for j in rubrics if (b := references_below(j)) is not None),
        "health/unexplored_frac": _mean(u for j in rubrics for u in unexplored(j)),
        "health/suppressed_frac": _mean(any(row) for j in rubrics for row in suppressed(j) if row is not None),
    }
    agreed = [a for j in rubrics for a in j.agreement if a is not None]
    if agreed:
        out |= {
            "health/agreement": _mean(agreed),
            "health/contested_frac": _mean(a < CONTESTED for a in agreed),
        }
    twice = [j for j in rubrics if j.repeat is not None]
    if twice:
        out |= {
            "health/repeated_groups": float(len(twice)),
            "health/flip_frac": _mean(f for j in twice for f in flips(j)),
            "health/order_bias": _mean(d for j in twice for d in order_gains(j)),
            "health/rank_changed_frac": _mean(r for j in twice if (r := rank_changed(j)) is not None),
        }
    return out


def discriminative(judgement: Judgement) -> list[bool]:
    """For each criterion: do two scored rollouts differ on it? Empty if there are fewer than two scored rollouts."""
    rows = [row for row in judgement.passed if row is not None]
    if len(rows) < 2:
        return []
    return [len(set(column)) > 1 for column in zip(*rows, strict=True)]


def references_fail(judgement: Judgement) -> list[bool]:
    """For each reference with verdicts: does it fail a criterion with the highest points of its rubric?"""
    if judgement.rubric is None:
        return []
    top = max(judgement.rubric.weights)
    decisive = [k for k, w in enumerate(judgement.rubric.weights) if w == top]
    return [not all(row[k] for k in decisive) for row in judgement.reference_passed if row is not None]


def references_below(judgement: Judgement) -> bool | None:
    """Is the references' mean score below the rollouts'? None if either side has no verdicts."""
    rubric = judgement.rubric
    if rubric is None:
        return None
    references = _mean(rubric.score(row) for row in judgement.reference_passed if row is not None)
    rollouts = _mean(rubric.score(row) for row in judgement.passed if row is not None)
    return None if references is None or rollouts is None else references < rollouts - 1e-9


def unexplored(judgement: Judgement) -> list[bool]:
    """For each criterion: does no scored rollout pass it, although a reference does (or none was verified)?

    Empty if no rollout is scored.
    """
    rows = [row for row in judgement.passed if row is not None]
    shown = [row for row in judgement.reference_passed if row is not None]
    if not rows:
        return []
    reached = [any(column) for column in zip(*shown, strict=True)] if shown else [True] * len(rows[0])
    return [can and not any(column) for can, column in zip(reached, zip(*rows, strict=True), strict=True)]


def suppressed(judgement: Judgement) -> list[Row]:
    """For each rollout: which criteria does it pass that another fails, while its reward is not above the mean?

    The mean is that of the group. None for an unscored rollout. If all rewards of a group are equal, nothing is
    suppressed.
    """
    rewards = [r for r in judgement.rewards if r is not None]
    rows = [row for row in judgement.passed if row is not None]
    if not judgement.passed:
        return []
    differ = [len(set(column)) > 1 for column in zip(*rows, strict=True)]
    mean, uneven = (sum(rewards) / len(rewards) if rewards else 0.0), len(set(rewards)) > 1
    none = (False,) * len(differ)
    found: list[Row] = []
    for reward, row in zip(judgement.rewards, judgement.passed, strict=True):
        if reward is None or row is None:
            found.append(None)
        else:
            below = uneven and reward <= mean + 1e-9
            found.append(tuple([ok and d for ok, d in zip(row, differ, strict=True)]) if below else none)
    return found


def flips(judgement: Judgement) -> list[bool]:
    """For each verdict given in both looks: did it change?"""
    return [a != b for first, second, _ in _both(judgement) for a, b in zip(first, second, strict=True)]


def order_gains(judgement: Judgement) -> list[float]:
    """For each answer scored at different positions in both looks: the score at the later position minus the other."""
    rubric, gains = judgement.rubric, []
    for first, second, (before, after) in _both(judgement):
        if rubric is not None and before != after:
            gain = rubric.score(second) - rubric.score(first)
            gains.append(gain if after > before else -gain)
    return gains


def rank_changed(judgement: Judgement) -> bool | None:
    """Did the order of two rollouts by score change (a broken tie counts)? None if both looks scored fewer than two."""
    rubric, n = judgement.rubric, len(judgement.passed)
    if rubric is None or judgement.repeat is None:
        return None
    pairs = zip(judgement.passed, judgement.repeat.passed[:n], strict=True)
    scores = [(rubric.score(a), rubric.score(b)) for a, b in pairs if a is not None and b is not None]
    if len(scores) < 2:
        return None
    return any(_sign(x[0] - y[0]) != _sign(x[1] - y[1]) for i, x in enumerate(scores) for y in scores[:i])


def cohens_kappa(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Agreement of two verifiers beyond chance, (p_o - p_e) / (1 - p_e); None if all their verdicts are the same.

    >>> cohens_kappa([True, True, False, False], [True, False, False, False])
    0.5
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} verdicts; expected equal numbers")
    if not a:
        return None
    n, yes_a, yes_b = len(a), sum(a), sum(b)
    agreed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    chance = (yes_a * yes_b + (n - yes_a) * (n - yes_b)) / n**2
    return None if yes_a == yes_b and yes_a in (0, n) else (agreed - chance) / (1 - chance)


def saturated(rubric: Rubric, passed: Sequence[Row]) -> bool:
    """True if the rubric no longer discriminates: there are two or more scored rollouts, all with the same score."""
    scores = {rubric.score(row) for row in passed if row is not None}
    return len(scores) == 1 and sum(row is not None for row in passed) >= 2


def _both(judgement: Judgement) -> Iterable[tuple[tuple[bool, ...], tuple[bool, ...], tuple[int, int]]]:
    if judgement.repeat is None:
        return
    first = (*judgement.passed, *judgement.reference_passed)
    for a, b, places in zip(first, judgement.repeat.passed, judgement.repeat.places, strict=True):
        if a is not None and b is not None:
            yield a, b, places


def _sign(x: float) -> int:
    return 0 if abs(x) < 1e-9 else 1 if x > 0 else -1


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
