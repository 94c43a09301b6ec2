"""Stored answers: JSONL of ``{"id", "response"}``, k lines per problem.

Two more keys are read if present: ``finish_reason`` (``length`` marks a truncated answer) and ``truncated``. The sample
number of a line is its ``sample``, or else its position among the lines of its problem. Files written by ``ropd eval``
have ``sample``: they grow by one line whenever an answer ends (`append`), and are sorted once all answers are there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import IO

from ropd_jax.types import THINK, Prompt, Rollout, UserError
from ropd_jax.utils.files import numbered_rows, write_atomic


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to the problem ``id``. ``truncated`` is None if the file does not state it."""

    id: str
    response: str
    truncated: bool | None = None


def read_answers(path: str | os.PathLike[str], known: Collection[str]) -> list[Answer]:
    """The answers in a file, in file order.

    Args:
        known: ids of the benchmark's problems.

    Raises:
        UserError: the file is unreadable, a line lacks id or response, or an id is not in the benchmark.
    """
    answers = []
    for n, (_, row) in enumerate(numbered_rows(path), 1):
        if not isinstance(row.get("response"), str) or "id" not in row:
            raise UserError(f"{path}: row {n} has the keys {', '.join(row)}; expected id and response (a string)")
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
    """The positions of each problem's answers, in order."""
    places: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        places.setdefault(answer.id, []).append(i)
    return places


def samples_of(answers: Sequence[Answer]) -> tuple[int, int]:
    """(fewest, most) answers that a problem has."""
    counts = Counter(a.id for a in answers).values()
    return min(counts), max(counts)


# ------------------------------------------------------------------------------------- the file of an evaluation


def append(file: IO[str], prompt: Prompt, sample: int, rollout: Rollout) -> None:
    """Writes one answer. It is on disk when this returns."""
    text = THINK + rollout.text if rollout.opened else rollout.text  # a cut thought looks like an answer
    row = {"id": prompt.id, "sample": sample, "response": text, "finish_reason": rollout.finish_reason,
           "tokens": len(rollout.tokens_T)}  # fmt: skip
    file.write(json.dumps(row, ensure_ascii=True) + "\n")
    file.flush()
    os.fsync(file.fileno())


def missing(path: pathlib.Path, prompts: Sequence[Prompt], k: int) -> dict[int, list[int]]:
    """The samples that the file lacks, by problem index. A line left half-written by a kill is removed.

    Raises:
        UserError: as `read_answers`, or a line whose sample is not in 0..k - 1.
    """
    lines = _whole_lines(path, prompts, k)
    return {i: absent for i, p in enumerate(prompts) if (absent := [n for n in range(k) if (p.id, n) not in lines])}


def put_in_order(path: pathlib.Path, prompts: Sequence[Prompt], k: int) -> None:
    """Sorts the complete file by problem and sample, so that interruptions leave no trace."""
    lines = _whole_lines(path, prompts, k)
    write_atomic(path, "".join(lines[p.id, n] for p in prompts for n in range(k)))


def _whole_lines(path: pathlib.Path, prompts: Sequence[Prompt], k: int) -> Mapping[tuple[str, int], str]:
    """The complete lines of the file by (id, sample); of duplicates, the first."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        write_atomic(path, data[:end].decode("utf-8"))
    if not end:
        return {}
    read_answers(path, {p.id for p in prompts})  # raises if a line is not an answer
    found: dict[tuple[str, int], str] = {}
    for number, row in numbered_rows(path):
        sample = row.get("sample")
        if not isinstance(sample, int) or not 0 <= sample < k:
            raise UserError(
                f"{path}:{number}: sample {sample!r}; expected 0 to {k - 1}, as in ropd eval; choose another --out"
            )
        found.setdefault((str(row["id"]), sample), json.dumps(row, ensure_ascii=True) + "\n")
    return found


def _truncated(row: dict) -> bool | None:
    if isinstance(row.get("truncated"), bool):
        return row["truncated"]
    reason = row.get("finish_reason")
    return None if reason is None else reason == "length"
