"""Stored answers: JSONL of ``{"id", "response"}``, k lines per problem.

Two more keys are read if they are there: ``finish_reason`` (``length`` is a truncated answer) and ``truncated``. The
order of a problem's lines tells which of its k samples a line is.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Collection, Sequence

from ropd_jax.types import UserError
from ropd_jax.utils.files import numbered_rows


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to the problem ``id``. ``truncated`` is None if the file does not tell."""

    id: str
    response: str
    truncated: bool | None = None


def read_answers(path: str | os.PathLike[str], known: Collection[str]) -> list[Answer]:
    """The answers of a file, in its order.

    Args:
        known: ids of the benchmark's problems.

    Raises:
        UserError: unreadable, a line without id and response, an id that the benchmark does not have.
    """
    answers = []
    for n, (_, row) in enumerate(numbered_rows(path), 1):
        if not isinstance(row.get("response"), str) or "id" not in row:
            raise UserError(f"{path}: row {n} has the keys {', '.join(row)}; expected id and response, a text")
        if str(row["id"]) not in known:
            raise UserError(
                f"{path}: row {n} answers {row['id']!r}, which is not among the benchmark's problems; "
                f"expected ids like {next(iter(known), 'none')!r}"
            )
        answers.append(Answer(str(row["id"]), row["response"], _truncated(row)))
    if not answers:
        raise UserError(f'{path} is empty; expected lines of {{"id": ..., "response": ...}}')
    return answers


def by_problem(answers: Sequence[Answer]) -> dict[str, list[int]]:
    """For each problem the positions of its answers, in order."""
    places: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        places.setdefault(answer.id, []).append(i)
    return places


def samples_of(answers: Sequence[Answer]) -> tuple[int, int]:
    """(fewest, most) answers that a problem has."""
    counts = Counter(a.id for a in answers).values()
    return min(counts), max(counts)


def _truncated(row: dict) -> bool | None:
    if isinstance(row.get("truncated"), bool):
        return row["truncated"]
    reason = row.get("finish_reason")
    return None if reason is None else reason == "length"
