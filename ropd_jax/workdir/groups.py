"""``groups/step_000012.jsonl``: every group of a step with its judgement, written and read back. Imports no jax.

    for group in read_groups("runs/quickstart", steps=(0, 10)):
        group.prompt, group.answers, group.judgement

``ropd_jax.teacher.health.step_health([g.judgement for g in ...])`` then recomputes what a run logged of its criteria.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ropd_jax.teacher.rubric_store import lineage_from
from ropd_jax.types import THINK, Call, Criterion, Judgement, Message, Prompt, Repeat, RolloutGroup, Rubric, UserError
from ropd_jax.utils.files import finite, write_atomic
from ropd_jax.utils.paths import local_run
from ropd_jax.utils.writing import essential
from ropd_jax.workdir.token_logprobs import OFF, file_of, write_token_logprobs


class GroupsLog:
    """``groups/step_000012.jsonl``: one line per group, with everything that its rewards are computed from.

    The directory has mode 0700 and its files 0600: their texts were paid for, and can be private.

    Args:
        token_logprobs: ``log.token_logprobs``: whether to write `token_logprobs` as well.
        token_bytes_V: see `write_token_logprobs`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        token_logprobs: str = OFF,
        token_bytes_V: np.ndarray | None = None,
    ):
        self.directory = pathlib.Path(workdir) / "groups"
        self._token_logprobs, self._token_bytes_V = token_logprobs, token_bytes_V

    def write(
        self,
        step: int,
        groups: Iterable[RolloutGroup],
        judgements: Iterable[Judgement],
        advantages: Iterable[Sequence[float | None]],
        changes: Sequence[Sequence[np.ndarray]] | None = None,
    ) -> pathlib.Path:
        """Writes the groups of one step, atomically; a resumed run overwrites the step that it repeats.

        Args:
            step: 0, 1, 2, ...
            groups: P groups; judgements: one each; advantages: one per rollout of each (unscored: None or any
                value; it is written as null).
            changes: see `write_token_logprobs`.
        """
        groups = list(groups)
        rows = [group_row(*one) for one in zip(groups, judgements, advantages, strict=True)]
        path = self.directory / f"step_{step:06d}.jsonl"
        with essential(path):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._token_logprobs == OFF:
                file_of(path).unlink(missing_ok=True)  # from an earlier attempt at this step
            else:
                write_token_logprobs(path, groups, self._token_bytes_V, changes)
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), private=True)
        return path


def answer_rows(
    step: int,
    groups: Iterable[RolloutGroup],
    judgements: Iterable[Judgement],
    advantages: Iterable[Sequence[float | None]],
) -> list[dict[str, Any]]:
    """One row per answer of a step, for the tables of trackers."""
    return [
        {
            "step": step,
            "group": row["group"],
            "prompt_id": row["prompt_id"],
            "question": row["question"],
            "gold_answer": row["gold_answer"],
            "answer": answer["text"],
            "reward": answer["reward"],
            "advantage": answer["advantage"],
            "unscored": answer["unscored"],
            "finish_reason": answer["finish_reason"],
            "tokens": answer["tokens"],
        }
        for row in (group_row(*one) for one in zip(groups, judgements, advantages, strict=True))
        for answer in row["answers"]
    ]


def _criteria(judgement: Judgement) -> list[dict[str, Any]]:
    """The criteria of a judgement's rubric, with their effective weights if these are not the points, and the agreement
    of the votes if there are several."""
    criteria = judgement.rubric.criteria if judgement.rubric else ()
    rows = [{"id": c.id, "points": c.points, "category": c.category, "text": c.text} for c in criteria]
    weights = [{"weight": w} for w in judgement.weights] or [{}] * len(rows)
    agreement = [{"agreement": finite(a)} for a in judgement.agreement] or [{}] * len(rows)
    return [row | weight | agreed for row, weight, agreed in zip(rows, weights, agreement, strict=True)]


def _named(judgement: Judgement) -> dict[str, bool] | None:
    """The verdicts on the only answer of a part, by criterion."""
    if judgement.rubric is None or not judgement.passed or judgement.passed[0] is None:
        return None
    return dict(zip([c.id for c in judgement.rubric.criteria], judgement.passed[0], strict=True))


def _alone(part: Judgement) -> dict[str, Any]:
    """The rubric of a single answer (``ropd.rubric_per="pair"``); `_part` reads it back."""
    lineage = {} if part.lineage is None else {"lineage": dataclasses.asdict(part.lineage)}
    return {"rubric": _criteria(part), "verdicts": _named(part), **lineage}


def _part(answer: Mapping[str, Any]) -> Judgement:
    criteria = _rubric(answer["rubric"])
    return Judgement(
        rewards=(answer.get("method_reward", answer["reward"]),),
        causes=(answer["unscored"],),
        rubric=Rubric(criteria) if criteria else None,
        passed=(_verdicts(answer["verdicts"], criteria),) if criteria else (),
        lineage=lineage_from(answer["lineage"]) if "lineage" in answer else None,
    )


def _rubric(rows: Iterable[Mapping[str, Any]]) -> tuple[Criterion, ...]:
    return tuple(Criterion(c["id"], c["text"], c["points"], c["category"]) for c in rows)


def _parts(judgement: Judgement, i: int) -> dict[str, Any]:
    """The components of the reward of answer i, if it has an exact part; `_judgement` reads them back."""
    if not judgement.exact:
        return {}
    return {"exact": judgement.exact[i], "method_reward": finite(judgement.taught[i])}


def group_row(group: RolloutGroup, judgement: Judgement, advantages: Sequence[float | None]) -> dict[str, Any]:
    """One group as plain data, in reading order: question, references, rubric, then each answer with its verdicts.

    With ``rewards.exact_weight`` an answer has both parts of its reward, ``method_reward`` and ``exact``. If known, the
    row has the ``model`` of a reference, the second verification (``again``, with the ``places`` in both), the
    rubric's ``lineage``, and ``calls``: role and tape key of each request. `read_groups` reads all of it back.
    """
    ids = [c.id for c in judgement.rubric.criteria] if judgement.rubric else []

    def verdicts(passed: Sequence[tuple[bool, ...] | None], i: int) -> dict[str, bool] | None:
        row = passed[i] if i < len(passed) else None
        return None if row is None else dict(zip(ids, row, strict=True))

    def again(i: int) -> dict[str, Any]:
        repeat = judgement.repeat
        return (
            {}
            if repeat is None or i >= len(repeat.places)
            else {"again": verdicts(repeat.passed, i), "places": list(repeat.places[i])}
        )

    answers = []
    for i, (rollout, reward, advantage) in enumerate(zip(group.rollouts, judgement.rewards, advantages, strict=True)):
        alone = judgement.parts[i] if judgement.parts else None
        answers.append(
            {
                "text": rollout.text,
                **({"opened": True} if rollout.opened else {}),
                "finish_reason": rollout.finish_reason,
                "tokens": len(rollout.tokens_T),
                "verdicts": verdicts(judgement.passed, i),
                "reward": finite(reward),
                "advantage": None if reward is None else finite(advantage),
                "unscored": judgement.causes[i],
                **({"score": judgement.scores[i]} if judgement.scores else {}),
                **_parts(judgement, i),
                **({} if alone is None else _alone(alone)),
                **again(i),
            }
        )
    models = [{"model": m} for m in judgement.reference_models] or [{}] * len(judgement.references)
    row = {
        "step": group.step,
        "group": group.index,
        "prompt_id": group.prompt.id,
        "question": group.prompt.question,
        "gold_answer": group.prompt.answer,
        "references": [
            {"text": text, **models[i], "verdicts": verdicts(judgement.reference_passed, i), **again(len(answers) + i)}
            for i, text in enumerate(judgement.references)
        ],
        "rubric": _criteria(judgement),
        "answers": answers,
    }
    if judgement.calls:
        row["calls"] = [[call.role, call.key] for call in judgement.calls]
    return row if judgement.lineage is None else row | {"lineage": dataclasses.asdict(judgement.lineage)}


# ------------------------------------------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class StoredGroup:
    """One group of a run.

    Attributes:
        prompt: id, question and gold answer; the question as the teacher saw it.
        answers: the rollouts' texts, starting with the ``<think>`` if the chat template has opened it.
        advantages: as the run computed them; None if unscored.
        judgement: of the teacher.
        group: its place in the step.
    """

    step: int
    prompt: Prompt
    answers: tuple[str, ...]
    advantages: tuple[float | None, ...]
    judgement: Judgement
    group: int = 0


def read_groups(run: str | os.PathLike[str], *, steps: tuple[int, int] | None = None) -> Iterator[StoredGroup]:
    """The groups of a run's directory, step by step.

    Args:
        steps: (first, end) of the steps to read, end excluded; None for all.

    Raises:
        UserError: no groups, none of those steps, or a line that is not a group.
    """
    directory = local_run(run) / "groups"
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
                    raise UserError(f"{file}:{n} is not a group of a run ({what}); delete the file") from error


def group_from(row: Mapping[str, Any]) -> StoredGroup:
    """The group that `group_row` wrote."""
    answers, references = row["answers"], row["references"]
    return StoredGroup(
        step=row["step"],
        prompt=Prompt(row["prompt_id"], (Message("user", row["question"]),), answer=row.get("gold_answer")),
        answers=tuple(THINK + a["text"] if a.get("opened") else a["text"] for a in answers),
        advantages=tuple(a["advantage"] for a in answers),
        judgement=_judgement(row, answers, references),
        group=row["group"],
    )


def _judgement(row: Mapping[str, Any], answers: Sequence[Mapping], references: Sequence[Mapping]) -> Judgement:
    criteria = _rubric(row["rubric"])
    everything = [*answers, *references]
    repeat = None
    if everything and all("again" in item for item in everything):
        repeat = Repeat(
            tuple(_verdicts(item["again"], criteria) for item in everything),
            tuple((item["places"][0], item["places"][1]) for item in everything),
        )
    models = tuple(r["model"] for r in references if "model" in r)
    with_exact = bool(answers) and all("exact" in a for a in answers)
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
        parts=tuple(_part(a) for a in answers) if answers and all("rubric" in a for a in answers) else (),
        exact=tuple(a["exact"] for a in answers) if with_exact else (),
        method_rewards=tuple(a["method_reward"] for a in answers) if with_exact else (),
        agreement=tuple(c["agreement"] for c in row["rubric"]) if "agreement" in (row["rubric"] or [{}])[0] else (),
        calls=tuple(Call(role, key) for role, key in row.get("calls", ())),
    )


def _verdicts(named: Mapping[str, bool] | None, criteria: Sequence[Criterion]) -> tuple[bool, ...] | None:
    return None if named is None else tuple(named[c.id] for c in criteria)
