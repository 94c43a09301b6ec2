"""Labelled verdicts: answers to questions, criteria, and whether each answer meets each criterion.

A file is JSONL in one of two forms, which can be mixed. Nested, one question per line::

    {"id": "q1", "family": "sums", "part": "dev", "question": "What is 2 + 3?",
     "criteria": [{"id": "c1", "text": "The final answer is 5.", "category": "Final result", "kind": "final_result",
                   "points": 5}],
     "answers": [{"id": "a1", "text": "5", "kind": "right", "correct": true, "truth": [true]},
                 {"id": "a2", "text": "It is 5. Yes, 5.", "kind": "right", "correct": true, "truth": [true],
                  "like": "a1", "differs": "length"}]}

Flat, one verdict per line; rows with the same question text belong together::

    {"question": "What is 2 + 3?", "answer": "5", "criterion": "The final answer is 5.", "truth": true}

Optional: ``id``, ``family``, ``part``, ``category``, ``kind``, ``points``, ``correct``, ``like``, ``differs``. An
unknown truth is ``null`` (nested) or has no row (flat). ``like`` and ``differs`` mean that an answer differs from an
earlier one only in length or style: such pairs measure bias.

The texts are untrusted. They are only compared, and sent in fences.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ropd_jax.teacher.roles.kinds import KINDS, kind_of
from ropd_jax.types import Criterion, Message, Prompt, Rubric, UserError
from ropd_jax.utils.files import numbered_rows
from ropd_jax.utils.paths import local_file

DIFFERS = ("length", "style")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_FLAT = {"question", "answer", "criterion", "truth"}
_FLAT_KEYS = _FLAT | {"family", "part", "kind", "category", "points", "correct", "id"}
_QUESTION_KEYS = {"id", "family", "part", "question", "criteria", "answers"}
_CRITERION_KEYS = {"id", "text", "category", "kind", "points"}
_ANSWER_KEYS = {"id", "text", "kind", "correct", "truth", "like", "differs"}


@dataclasses.dataclass(frozen=True)
class LabelledCriterion:
    """One criterion; ``kind`` is one of `KINDS`, or None if it is not clear."""

    id: str
    text: str
    category: str = ""
    kind: str | None = None
    points: int = 1


@dataclasses.dataclass(frozen=True)
class LabelledAnswer:
    """One answer and its labels.

    Attributes:
        kind: how the answer was made, any word: ``right``, ``empty``, ...
        correct: True if it is a correct answer to the question; None if unknown.
        truth: for each criterion of the question, True if the answer meets it; None if unknown.
        like, differs: the id of an answer from which it differs only in ``length`` or ``style``; "" for none.
    """

    id: str
    text: str
    kind: str = ""
    correct: bool | None = None
    truth: tuple[bool | None, ...] = ()
    like: str = ""
    differs: str = ""


@dataclasses.dataclass(frozen=True)
class LabelledQuestion:
    """One question with its criteria and its labelled answers."""

    id: str
    question: str
    criteria: tuple[LabelledCriterion, ...]
    answers: tuple[LabelledAnswer, ...]
    family: str = ""
    part: str = ""

    @property
    def prompt(self) -> Prompt:
        """The question in the teacher's type."""
        return Prompt(self.id, (Message("user", self.question),))

    @property
    def rubric(self) -> Rubric:
        """The criteria in the teacher's type."""
        return Rubric(tuple(Criterion(c.id, c.text, c.points, c.category) for c in self.criteria))

    def as_row(self) -> dict[str, Any]:
        """The object of the nested form."""
        row = dataclasses.asdict(self)
        for answer in row["answers"]:
            if not answer["like"]:
                del answer["like"], answer["differs"]
        keys = ("id", "family", "part", "question", "criteria", "answers")
        return {key: row[key] for key in keys}


def labels_sha(path: str | os.PathLike[str]) -> str:
    """Content hash of a labels file, first 16 hex digits."""
    return hashlib.sha256(local_file(path).read_bytes()).hexdigest()[:16]


def read_labels(path: str | os.PathLike[str]) -> list[LabelledQuestion]:
    """The labelled questions in a file, from nested and flat rows, in file order.

    Raises:
        UserError: the file is unreadable or empty, or a row cannot be used; the message names file and line.
    """
    questions: dict[str, LabelledQuestion] = {}
    flat: dict[str, _Flat] = {}
    for number, row in numbered_rows(path, file="a JSONL file of labels", row="a labelled question or verdict"):
        where = f"{path}:{number}"
        if "answers" in row or "criteria" in row:
            question = _nested(row, where, default_id=f"q{number}")
            if question.id in questions:
                raise UserError(f"{where}: id {question.id!r:.60} is used twice; expected a different one for each row")
            questions[question.id] = question
        elif row.keys() >= _FLAT:
            _refuse_unknown(row, _FLAT_KEYS, where)
            flat.setdefault(_text(row, "question", where), _Flat()).add(row, where)
        else:
            missing = ", ".join(sorted(_FLAT - row.keys()))
            raise UserError(
                f"{where}: no {missing}; expected an object with question, criteria and answers, or one verdict with "
                "question, answer, criterion and truth (docs/judge.md)"
            )
    for number, (text, rows) in enumerate(flat.items(), 1):
        question = rows.question(text, f"flat{number}")
        if question.id in questions:
            raise UserError(f"{path}: id {question.id!r} is used twice; expected a different one for each question")
        questions[question.id] = question
    if not questions:
        raise UserError(f"{path} has no labels; expected one labelled question or verdict per line (docs/judge.md)")
    return list(questions.values())


def verdict_rows(questions: Sequence[LabelledQuestion]) -> Iterator[tuple[str, str, str, bool, str | None]]:
    """(question, answer, criterion, truth, kind of the criterion) for every known truth."""
    for question in questions:
        for answer in question.answers:
            for criterion, truth in zip(question.criteria, answer.truth, strict=True):
                if truth is not None:
                    yield question.question, answer.text, criterion.text, truth, criterion.kind


# ------------------------------------------------------------------------------------------------------ nested rows


def _nested(row: dict[str, Any], where: str, default_id: str) -> LabelledQuestion:
    _refuse_unknown(row, _QUESTION_KEYS, where)
    criteria = tuple(_criterion(item, f"{where}: criterion {n}", f"c{n}") for n, item in _items(row, "criteria", where))
    answers = tuple(
        _answer(item, f"{where}: answer {n}", f"a{n}", len(criteria)) for n, item in _items(row, "answers", where)
    )
    for what, ids in (("criteria", [c.id for c in criteria]), ("answers", [a.id for a in answers])):
        if len(set(ids)) < len(ids):
            raise UserError(f"{where}: two {what} have the same id; expected a different one for each")
    known = {a.id for a in answers}
    for a in answers:
        if bool(a.like) != bool(a.differs) or (a.like and (a.like not in known - {a.id} or a.differs not in DIFFERS)):
            raise UserError(
                f"{where}: answer {a.id} has like={a.like!r:.40}, differs={a.differs!r:.40}; expected the id of "
                f"another answer of this question and one of {', '.join(DIFFERS)}, or neither"
            )
    return LabelledQuestion(
        _id(row, where, default_id),
        _text(row, "question", where),
        criteria,
        answers,
        _word(row, "family", where),
        _word(row, "part", where),
    )


def _items(row: dict[str, Any], key: str, where: str) -> list[tuple[int, dict[str, Any]]]:
    items = row.get(key)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{where}: {key} is {items!r:.60}; expected a list of one or more objects")
    return list(enumerate(items, 1))


def _criterion(row: dict[str, Any], where: str, default_id: str) -> LabelledCriterion:
    _refuse_unknown(row, _CRITERION_KEYS, where)
    text, category = _text(row, "text", where), _word(row, "category", where)
    return LabelledCriterion(
        _id(row, where, default_id), text, category, _kind(row, category, text, where), _points(row, where)
    )


def _answer(row: dict[str, Any], where: str, default_id: str, n_criteria: int) -> LabelledAnswer:
    _refuse_unknown(row, _ANSWER_KEYS, where)
    truth = row.get("truth")
    if not isinstance(truth, list) or len(truth) != n_criteria:
        raise UserError(f"{where}: truth is {truth!r:.60}; expected a list of {n_criteria}, one for each criterion")
    return LabelledAnswer(
        _id(row, where, default_id),
        _text(row, "text", where, empty=True),
        _word(row, "kind", where),
        _truth(row.get("correct"), f"{where}: correct"),
        tuple(_truth(value, f"{where}: truth {n}") for n, value in enumerate(truth, 1)),
        _word(row, "like", where),
        _word(row, "differs", where),
    )


# -------------------------------------------------------------------------------------------------------- flat rows


class _Flat:
    """The flat rows of one question."""

    def __init__(self) -> None:
        self.criteria: dict[str, LabelledCriterion] = {}
        self.truths: dict[str, dict[str, bool]] = {}  # answer -> criterion -> truth
        self.correct: dict[str, bool | None] = {}
        self.family = self.part = self.id = ""

    def add(self, row: dict[str, Any], where: str) -> None:
        answer, text = _text(row, "answer", where, empty=True), _text(row, "criterion", where)
        truth, correct = _truth(row["truth"], f"{where}: truth"), _truth(row.get("correct"), f"{where}: correct")
        if truth is None:
            raise UserError(f"{where}: truth is null; expected true or false, or omit the row")
        category = _word(row, "category", where)
        new = LabelledCriterion(
            f"c{len(self.criteria) + 1}", text, category, _kind(row, category, text, where), _points(row, where)
        )
        seen = self.criteria.setdefault(text, new)
        if dataclasses.replace(seen, id="") != dataclasses.replace(new, id=""):
            raise UserError(
                f"{where}: the criterion has another category, kind or points than in an earlier row; expected the same"
            )
        if self.truths.setdefault(answer, {}).setdefault(text, truth) != truth:
            raise UserError(f"{where}: an earlier row has the opposite truth for this answer and criterion; remove one")
        if correct is not None and self.correct.setdefault(answer, correct) != correct:
            raise UserError(f"{where}: an earlier row for this answer has the opposite 'correct'; remove one")
        self.family, self.part = (
            old or _word(row, key, where) for old, key in ((self.family, "family"), (self.part, "part"))
        )
        self.id = self.id or (_id(row, where, "") if "id" in row else "")

    def question(self, text: str, default_id: str) -> LabelledQuestion:
        answers = tuple(
            LabelledAnswer(f"a{n}", answer, "", self.correct.get(answer), tuple(map(truths.get, self.criteria)))
            for n, (answer, truths) in enumerate(self.truths.items(), 1)
        )
        criteria = tuple(self.criteria.values())
        return LabelledQuestion(self.id or default_id, text, criteria, answers, self.family, self.part)


# ------------------------------------------------------------------------------------------------------------ values


def _refuse_unknown(row: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(row.keys() - known):
        raise UserError(f"{where}: unknown key {unknown[0]!r:.60}; expected some of {', '.join(sorted(known))}")


def _text(row: dict[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise UserError(f"{where}: {key} is {value!r:.60}; expected {'a string' if empty else 'a non-empty string'}")
    return value


def _word(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key) or ""
    if not isinstance(value, str) or len(value) > 100 or "\n" in value:
        raise UserError(f"{where}: {key} is {value!r:.60}; expected a short string on one line")
    return value


def _id(row: dict[str, Any], where: str, default: str) -> str:
    value = row.get("id", default)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise UserError(f"{where}: id is {value!r:.60}; expected 1 to 40 letters, digits, '.', '_' or '-'")
    return value


def _kind(row: dict[str, Any], category: str, text: str, where: str) -> str | None:
    value = row.get("kind") or kind_of(category, text)
    if value is not None and value not in KINDS:
        raise UserError(f"{where}: kind is {value!r:.60}; expected one of {', '.join(KINDS)}")
    return value


def _points(row: dict[str, Any], where: str) -> int:
    value = row.get("points", 1)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
        raise UserError(f"{where}: points is {value!r:.60}; expected a whole number from 1 to 100")
    return value


def _truth(value: Any, where: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{where} is {value!r:.60}; expected true, false or null")
    return value
