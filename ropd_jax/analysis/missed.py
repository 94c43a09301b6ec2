"""What the total reward of a stored group hides: `teacher.health` for a line of ``groups/*.jsonl``. Imports no jax.

Reads only rewards and verdicts, so it is fast enough for a viewer to compute for every group of a run.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.teacher.health import Row, suppressed, unexplored
from ropd_jax.types import Judgement
from ropd_jax.utils.files import finite


@dataclasses.dataclass(frozen=True, slots=True)
class Missed:
    """The result for one group with C criteria and G rollouts.

    Attributes:
        unexplored: per criterion, see `health.unexplored`; empty if unknown (no rollout has verdicts).
        suppressed: per rollout its C verdicts, see `health.suppressed`; None for an unscored rollout.
    """

    unexplored: tuple[bool, ...]
    suppressed: tuple[Row, ...]


def missed(row: Mapping[str, Any]) -> Missed:
    """The unexplored criteria and the suppressed verdicts of a line. A rubric for a single answer has none, because
    nothing is compared under it.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: the line is not a group.
    """
    names, answers = [c["id"] for c in row["rubric"]], row["answers"]
    if not names:
        return Missed((), (None,) * len(answers))
    of = operator.itemgetter(*names) if len(names) > 1 else lambda verdicts: (verdicts[names[0]],)

    def passed(items: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
        return tuple([None if item["verdicts"] is None or "rubric" in item else of(item["verdicts"]) for item in items])

    judgement = Judgement(
        rewards=tuple([finite(a["reward"]) for a in answers]),
        causes=(None,) * len(answers),
        passed=passed(answers),
        reference_passed=passed(row["references"]),
    )
    return Missed(tuple(unexplored(judgement)), tuple(suppressed(judgement)))
