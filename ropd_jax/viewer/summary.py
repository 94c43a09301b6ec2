"""One stored group in short: its rewards, and notable properties. Works on a line of ``groups/*.jsonl``.

    zero_variance       all scored answers have the same reward: nothing to learn from
    below               a reference scored lower than a rollout did
    flipped             a verdict changed in the second verification
    unexplored          a criterion that a reference passes and no scored rollout does (`analysis.missed`)
    suppressed          an answer passes a criterion which another one fails, and its reward is not above the mean

`graded` compares the answers with the gold answer, at about 1 ms per answer, so it is computed separately:

    punished            a right answer with a negative advantage
    rewarded            a wrong answer with a positive advantage

Right and wrong are known if the gold answer is a number or a choice: these are compared exactly, in this process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.analysis.missed import missed
from ropd_jax.data import golds
from ropd_jax.data.grader import grade
from ropd_jax.teacher.rubric_store import text_sha
from ropd_jax.types import Message, Prompt, answer_of
from ropd_jax.utils.files import finite

SHORT = 160  # characters of a question in a list


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """A group in short.

    Attributes:
        step, group: its step, and its place in the step.
        prompt_id, question: the question is cut to `SHORT` characters.
        answers: number of rollouts; ``references``, ``criteria`` likewise.
        reward: mean of the scored rollouts; None if there are none.
        spread: largest minus smallest reward; None likewise.
        reference: mean weighted pass rate of the references; None without verdicts on them.
        unscored, truncated: number of rollouts without a reward, and of those cut at the token limit.
        causes: why rollouts are unscored, each cause once.
        unexplored: number of unexplored criteria; ``suppressed``: number of rollouts with a suppressed verdict.
    """

    step: int
    group: int
    prompt_id: str
    question: str
    answers: int
    references: int
    criteria: int
    reward: float | None
    spread: float | None
    reference: float | None
    unscored: int
    truncated: int
    causes: tuple[str, ...]
    zero_variance: bool
    below: bool
    flipped: bool
    unexplored: int
    suppressed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Graded:
    """A group against its gold answer.

    Attributes:
        right: per answer whether it is right; None if no exact comparison in this process is possible.
        punished, rewarded: number of right answers with a negative advantage, of wrong ones with a positive one.
    """

    right: tuple[bool | None, ...]
    punished: int
    rewarded: int


def summary(row: Mapping[str, Any]) -> Summary:
    """The group of a line.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: the line is not a group.
    """
    answers, references = row["answers"], row["references"]
    _check(row["rubric"], (*answers, *references))
    hidden = missed(row)  # every answer with verdicts has one for each criterion
    rewards = [r for a in answers if (r := finite(a["reward"])) is not None]
    scores = [s for r in references if (s := pass_rate(row["rubric"], r["verdicts"])) is not None]
    return Summary(
        step=int(row["step"]),
        group=int(row["group"]),
        prompt_id=str(row["prompt_id"]),
        question=" ".join(str(row["question"])[: 4 * SHORT].split())[:SHORT],
        answers=len(answers),
        references=len(references),
        criteria=len(row["rubric"]),
        reward=sum(rewards) / len(rewards) if rewards else None,
        spread=max(rewards) - min(rewards) if rewards else None,
        reference=sum(scores) / len(scores) if scores else None,
        unscored=len(answers) - len(rewards),
        truncated=sum([a["finish_reason"] == "length" for a in answers]),
        causes=tuple(dict.fromkeys([str(a["unscored"]) for a in answers if a["unscored"] is not None])),
        zero_variance=bool(rewards) and max(rewards) == min(rewards),
        below=bool(rewards and scores) and min(scores) < max(rewards),
        flipped=any(
            item["again"] is not None and item["verdicts"] is not None and item["again"] != item["verdicts"]
            for item in (*answers, *references)
            if "again" in item
        ),
        unexplored=sum(hidden.unexplored),
        suppressed=sum([True in verdicts for verdicts in hidden.suppressed if verdicts]),
    )


def _check(rubric: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]]) -> None:
    """Check what the views rely on: strings and numbers; `missed` finds missing verdicts."""
    for one in (*rubric, *items):
        if not isinstance(one["text"], str):
            raise TypeError("a text is not a string")
    [finite(item["advantage"]) for item in items if "advantage" in item or "reward" in item]


def pass_rate(rubric: Sequence[Mapping[str, Any]], verdicts: Mapping[str, bool] | None) -> float | None:
    """Weighted pass rate of one answer with the effective weights of the criteria; None if it is unscored."""
    if not rubric or verdicts is None:
        return None
    weights = [c.get("weight", c["points"]) for c in rubric]
    total = sum(weights)
    return sum(w for w, c in zip(weights, rubric, strict=True) if verdicts[c["id"]]) / total if total else None


def sources(row: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """The references (R0, R1, ...) and answers (0, 1, ...) of the group that the rubric was induced from; None if its
    lineage is unknown. A reused rubric comes from the answers of another visit."""
    lineage = row.get("lineage")
    if not isinstance(lineage, Mapping):
        return None
    references = [f"R{i}" for i, r in enumerate(row["references"]) if text_sha(r["text"]) in lineage["references"]]
    answers = [str(i) for i, a in enumerate(row["answers"]) if text_sha(answer_of(a["text"])) in lineage["answers"]]
    return {"references": references, "answers": answers}


def graded(row: Mapping[str, Any]) -> Graded:
    """The answers of a line against its gold answer."""
    gold, answers = row.get("gold_answer"), row["answers"]
    right: tuple[bool | None, ...] = (None,) * len(answers)
    if isinstance(gold, str) and golds.kind(gold) in (golds.NUMBER, golds.CHOICE):
        prompt = Prompt(str(row["prompt_id"]), (Message("user", ""),), answer=gold)
        texts = [answer_of(a["text"], opened=a.get("opened", False)) for a in answers]
        of = {text: grade(prompt, text) for text in set(texts)}
        right = tuple(of[text] for text in texts)
    pushes = [finite(a["advantage"]) or 0.0 for a in answers]
    return Graded(
        right,
        punished=sum(ok is True and push < 0 for ok, push in zip(right, pushes, strict=True)),
        rewarded=sum(ok is False and push > 0 for ok, push in zip(right, pushes, strict=True)),
    )
