"""Votes: several verdicts on each criterion of each answer become one, by majority.

Votes of one model differ in the seed and in the order of the answers; a panel has several models::

    criterion            c1  c2  c3
    vote 1               1   1   0
    vote 2               1   0   0
    vote 3               0   1   0
    verdict              1   1   0
    agreement            2/3 2/3 3/3

An answer is unscored, never 0, if the votes on one of its criteria are tied (cause ``tie``) or their agreement is
below ``min_agreement`` (cause ``split``), or if half or more of its votes are missing (their most common cause).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ropd_jax.teacher.roles.marks import Marks, failures


def majority(votes: Sequence[Marks], *, min_agreement: float = 0.5) -> tuple[Marks, tuple[float | None, ...]]:
    """The joined marks, and for each criterion the mean share of votes that agree with the majority.

    The agreement is a mean over the answers with at least two votes, including unscored ones; None if there are none.

    Args:
        votes: rows of verdicts on the same answers, in the same order; one entry per vote.
        min_agreement: minimum share of votes that must agree, 0.5 to 1.
    """
    rows, causes = [], []
    shares: list[list[float]] = []
    for i in range(len(votes[0].values)):
        cast = [vote.values[i] for vote in votes if vote.values[i] is not None]
        row, cause, agreed = _joined(cast, min_agreement)
        if 2 * len(cast) <= len(votes):
            row, cause = None, _commonest([c for vote in votes if (c := vote.causes[i]) is not None])
        rows.append(row)
        causes.append(cause)
        if len(cast) > 1:
            shares.append(agreed)
    agreement = tuple(sum(column) / len(column) for column in zip(*shares, strict=True))
    n = next((len(row) for vote in votes for row in vote.values if row is not None), 0)
    return Marks(tuple(rows), tuple(causes)), agreement or (None,) * n


def votes_of(found: Sequence[Marks | BaseException], n_answers: int) -> list[Marks]:
    """The marks of each vote. A failed vote has no marks, only the cause of the failure.

    Raises:
        TeacherError: the first failure, if every vote failed. A ``ConfigurationError`` or any other error immediately.
    """
    failed = failures(found)
    if len(failed) == len(found):
        raise failed[0]
    return [
        vote if isinstance(vote, Marks) else Marks((None,) * n_answers, (getattr(vote, "cause", None),) * n_answers)
        for vote in found
    ]


def _joined(
    cast: Sequence[tuple[bool, ...]], min_agreement: float
) -> tuple[tuple[bool, ...] | None, str | None, list[float]]:
    """Verdicts, cause and agreement for one answer; no verdicts if a criterion is undecided."""
    fors = [sum(column) / len(cast) for column in zip(*cast, strict=True)]
    agreed = [max(share, 1 - share) for share in fors]
    if 0.5 in fors:
        return None, "tie", agreed
    if any(share < min_agreement for share in agreed):
        return None, "split", agreed
    return tuple(share > 0.5 for share in fors), None, agreed


def _commonest(causes: Sequence[str]) -> str:
    return Counter(causes).most_common(1)[0][0]
