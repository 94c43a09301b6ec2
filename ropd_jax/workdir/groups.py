"""Reading ``groups/step_*.jsonl`` back: the groups of a run as the teacher judged them. No jax.

    for group in read_groups("runs/quickstart", steps=(0, 10)):
        group.prompt, group.answers, group.judgement

``ropd_jax.teacher.health.step_health([g.judgement for g in ...])`` then says again what a run logged of its criteria.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ropd_jax.teacher.rubric_store import lineage_from
from ropd_jax.types import Criterion, Judgement, Message, Prompt, Repeat, Rubric, UserError


@dataclasses.dataclass(frozen=True)
class StoredGroup:
    """One group of a run.

    Attributes:
        prompt: id, question and gold answer; the question is what the teacher was shown.
        answers: the rollouts' texts.
        advantages: as the run computed them; None where unscored.
        judgement: what the teacher said.
    """

    step: int
    prompt: Prompt
    answers: tuple[str, ...]
    advantages: tuple[float | None, ...]
    judgement: Judgement


def read_groups(run: str | os.PathLike[str], *, steps: tuple[int, int] | None = None) -> Iterator[StoredGroup]:
    """The groups of a run's directory, step by step.

    Args:
        steps: (first, end) of the steps wanted, the end not among them; None for all.

    Raises:
        UserError: no groups there, none of those steps, or a line that is no group.
    """
    directory = pathlib.Path(run) / "groups"
    files = sorted(directory.glob("step_*.jsonl"))
    numbers = [int(found[1]) if (found := re.search(r"step_(\d+)", f.name)) else -1 for f in files]
    if not files:
        raise UserError(f"{directory} holds no groups; expected the directory of a run with log.groups=True")
    wanted = [f for f, n in zip(files, numbers, strict=True) if steps is None or steps[0] <= n < steps[1]]
    if not wanted:
        assert steps is not None
        raise UserError(f"{directory} has no step in {steps[0]}:{steps[1]}; it has {min(numbers)} to {max(numbers)}")
    for file in wanted:
        for n, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
            if line:
                try:
                    yield group_from(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    what = f"{type(error).__name__}: {error}"
                    raise UserError(f"{file}:{n} is no group of a run ({what}); delete the file") from error


def group_from(row: Mapping[str, Any]) -> StoredGroup:
    """The group that ``report.group_row`` wrote."""
    answers, references = row["answers"], row["references"]
    return StoredGroup(
        step=row["step"],
        prompt=Prompt(row["prompt_id"], (Message("user", row["question"]),), answer=row.get("gold_answer")),
        answers=tuple(a["text"] for a in answers),
        advantages=tuple(a["advantage"] for a in answers),
        judgement=_judgement(row, answers, references),
    )


def _judgement(row: Mapping[str, Any], answers: Sequence[Mapping], references: Sequence[Mapping]) -> Judgement:
    criteria = tuple(Criterion(c["id"], c["text"], c["points"], c["category"]) for c in row["rubric"])
    everything = [*answers, *references]
    repeat = None
    if everything and all("again" in item for item in everything):
        repeat = Repeat(
            tuple(_verdicts(item["again"], criteria) for item in everything),
            tuple((item["places"][0], item["places"][1]) for item in everything),
        )
    models = tuple(r["model"] for r in references if "model" in r)
    return Judgement(
        rewards=tuple(a["reward"] for a in answers),
        causes=tuple(a["unscored"] for a in answers),
        references=tuple(r["text"] for r in references),
        rubric=Rubric(criteria) if criteria else None,
        passed=tuple(_verdicts(a["verdicts"], criteria) for a in answers) if criteria else (),
        reference_passed=tuple(_verdicts(r["verdicts"], criteria) for r in references) if criteria else (),
        reference_models=models if len(models) == len(references) else (),
        repeat=repeat,
        lineage=lineage_from(row["lineage"]) if "lineage" in row else None,
    )


def _verdicts(named: Mapping[str, bool] | None, criteria: Sequence[Criterion]) -> tuple[bool, ...] | None:
    return None if named is None else tuple(named[c.id] for c in criteria)
