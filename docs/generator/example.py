"""One group of a stored run as tables, for the page that walks through a step."""

from __future__ import annotations

import pathlib

from docs.generator.markdown import code, table
from ropd_jax.workdir.groups import read_groups

RUN = pathlib.Path(__file__).parents[2] / "notebooks" / "mini_run"
STEP, GROUP = 9, 0
MARK = "<!-- here: one group -->"  # what `insert` replaces


def insert(text: str) -> str:
    """``text`` with the group in place of the mark; unchanged without the mark."""
    return text.replace(MARK, _shown()) if MARK in text else text


def _shown() -> str:
    found = next(g for g in read_groups(RUN, steps=(STEP, STEP + 1)) if g.group == GROUP)
    judgement = found.judgement
    rows = list(zip(found.answers, judgement.passed, judgement.rewards, found.advantages, strict=True))
    answers = [
        (str(i), f"`{_line(answer)}`", "unscored" if reward is None else f"{reward:.2f}", _signed(advantage))
        for i, (answer, _, reward, advantage) in enumerate(rows)
    ]
    criteria = judgement.rubric.criteria if judgement.rubric else ()
    head = ("Points", "Criterion", *(str(i) for i in range(len(rows))), "References")
    matrix = [
        (str(c.points), c.text, *("" if row is None else _mark(row[k]) for _, row, _, _ in rows),
         " ".join(_mark(row[k]) for row in judgement.reference_passed if row is not None))
        for k, c in enumerate(criteria)
    ]  # fmt: skip
    return "\n\n".join(
        [
            "**The question**",
            code(found.prompt.question),
            f"**One of the {len(judgement.references)} references**",
            code(judgement.references[0]),
            "**The rubric and the verdicts.** Columns 0 to 7 are the student's answers.",
            table(head, matrix),
            "**Answers, rewards and advantages**",
            table(("", "Answer", "Reward", "Advantage"), answers),
        ]
    )


def _mark(passed: bool) -> str:
    return "✓" if passed else "✗"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _line(text: str) -> str:
    return " / ".join(text.split("\n")).replace("`", "'")
