"""Which labels a calibration uses: a part of the set that ships with the package, or the user's own file."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from ropd_jax.teacher.labels import LabelledQuestion, labels_sha, read_labels
from ropd_jax.types import UserError

SHIPPED = pathlib.Path(__file__).with_name("labels")
PARTS = ("dev", "heldout")


def load(file: str = "", *, part: str = "dev", limit: int = 0) -> tuple[list[LabelledQuestion], str, str]:
    """The labelled questions, the name of their source, and the content hash of the file.

    Args:
        file: the user's own labels (`teacher.labels`); "" for the package's.
        part: part of the package's labels, or of the user's if their rows name parts.
        limit: use only the first ``limit`` questions; 0 for all. The package's questions alternate between families.

    Raises:
        UserError: the part is unknown, the file cannot be used, or it has no question of this part.
    """
    if part not in PARTS:
        raise UserError(f"--part={part} is unknown; expected {' or '.join(PARTS)}")
    path = file or SHIPPED / f"{part}.jsonl"
    questions = read_labels(path)
    named = [q for q in questions if q.part]
    if named:
        questions = [q for q in questions if q.part in ("", part)]
        if not questions:
            raise UserError(f"{path} has no question in part {part!r}; use --part {named[0].part}")
    return questions[: limit or None], str(path) if file else f"ropd_jax {part}", labels_sha(path)


def groups(question: LabelledQuestion, most: int) -> list[LabelledQuestion]:
    """Splits a question into groups of at most ``most`` answers, about the size of a training group.

    An answer and its longer or styled versions stay together.
    """
    twins: dict[str, str] = {a.id: a.like for a in question.answers if a.like}

    def root(name: str) -> str:
        seen = set()
        while name in twins and name not in seen:
            seen.add(name)
            name = twins[name]
        return name

    families: dict[str, list] = {}
    for answer in question.answers:
        families.setdefault(root(answer.id), []).append(answer)
    parts: list[list] = [[]]
    for family in families.values():
        if parts[-1] and len(parts[-1]) + len(family) > most:
            parts.append([])
        parts[-1] += family
    return [_with(question, part) for part in parts]


def _with(question: LabelledQuestion, answers: Sequence) -> LabelledQuestion:
    if len(answers) == len(question.answers):
        return question
    return LabelledQuestion(
        question.id, question.question, question.criteria, tuple(answers), question.family, question.part
    )
