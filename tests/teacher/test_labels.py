"""Label files: both forms, and errors that name file and line."""

from __future__ import annotations

import json

import pytest

from ropd_jax.teacher.labels import read_labels, verdict_rows
from ropd_jax.types import UserError

NESTED = {
    "id": "q1",
    "family": "sums",
    "part": "dev",
    "question": "What is 2 + 3?",
    "criteria": [
        {"id": "c1", "text": "The final answer is 5.", "category": "Final result", "kind": "final_result", "points": 5},
        {"id": "c2", "text": "Has one line.", "points": 1},
    ],
    "answers": [
        {"id": "a1", "text": "5", "kind": "right", "correct": True, "truth": [True, True]},
        {"id": "a2", "text": "", "kind": "empty", "correct": False, "truth": [False, None]},
        {"id": "a3", "text": "Well, 5", "correct": True, "truth": [True, True], "like": "a1", "differs": "length"},
    ],
}
FLAT = {"question": "What is 1 + 1?", "answer": "2", "criterion": "The final answer is 2.", "truth": True}


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text)
    return path


def changed(**more):
    return NESTED | more


def test_a_nested_row_is_read_back(tmp_path):
    (question,) = read_labels(write(tmp_path / "a.jsonl", NESTED))
    assert question.as_row()["answers"][0] == NESTED["answers"][0] | {"truth": (True, True)}
    assert read_labels(write(tmp_path / "b.jsonl", question.as_row())) == [question]
    assert [c.kind for c in question.criteria] == ["final_result", None]  # the second without a keyword
    assert question.rubric.weights == (5, 1) and question.prompt.question == "What is 2 + 3?"
    assert question.answers[2].like == "a1" and question.answers[1].truth == (False, None)


def test_flat_rows_of_one_question_become_one_question(tmp_path):
    rows = [
        FLAT | {"correct": True, "family": "sums", "points": 3},
        FLAT | {"answer": "3", "truth": False},
        FLAT | {"criterion": "Every calculation is correct.", "truth": False},
        FLAT | {"question": "What is 4 + 4?", "answer": "8"},
    ]
    rows[1]["points"] = 3
    rows[3]["criterion"] = "The final answer is 8."
    first, second = read_labels(write(tmp_path / "a.jsonl", *rows))
    assert [c.kind for c in first.criteria] == ["final_result", "no_error"]
    assert [(a.text, a.truth, a.correct) for a in first.answers] == [
        ("2", (True, False), True),
        ("3", (False, None), None),  # no row for the second criterion
    ]
    assert first.family == "sums" and second.answers[0].truth == (True,)
    assert len(list(verdict_rows([first, second]))) == 4


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "a.jsonl:2: not JSON"),
        ("[1]", "a.jsonl:2: a JSON list"),
        ({"question": "x"}, "a.jsonl:2: no answer, criterion, truth"),
        (FLAT | {"truth": 1}, "truth is 1; expected true, false or null"),
        (FLAT | {"truth": None}, "truth is null; expected true or false"),
        (FLAT | {"truth": "true"}, "truth is 'true'"),
        (FLAT | {"kind": "facts"}, "kind is 'facts'; expected one of final_result"),
        (FLAT | {"points": 0}, "points is 0; expected a whole number from 1"),
        (FLAT | {"criterion": " "}, "criterion is ' '; expected a non-empty string"),
        (FLAT | {"answer": 3}, "answer is 3; expected a string"),
        (FLAT | {"score": 3}, "unknown key 'score'; expected some of answer"),
        (changed(answers=[]), "answers is []; expected a list"),
        (changed(criteria="c"), "criteria is 'c'; expected a list"),
        (changed(answers=[{"text": "5", "truth": [True]}]), "answer 1: truth is [True]; expected a list of 2"),
        (changed(answers=[NESTED["answers"][0], NESTED["answers"][0]]), "two answers have the same id"),
        (changed(answers=[NESTED["answers"][2]]), "answer a3 has like='a1'"),
        (changed(answers=[NESTED["answers"][2] | {"like": "a3"}]), "answer a3 has like='a3'"),
        (changed(id='"}'), "id is '\"}'; expected 1 to 40 letters"),
        (changed(id="q0"), "id 'q0' is used twice"),
        (changed(family="a\nb"), "family is 'a\\nb'; expected a short string on one line"),
    ],
)
def test_an_error_names_file_line_and_value(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", changed(id="q0"), row)
    with pytest.raises(UserError) as error:
        read_labels(path)
    assert str(error.value).startswith(f"{path}:2") and message in str(error.value)


def test_contradictions_of_flat_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match=r":2: an earlier row has the opposite truth"):
        read_labels(write(tmp_path / "a.jsonl", FLAT, FLAT | {"truth": False}))
    rows = FLAT | {"correct": True}, FLAT | {"criterion": "Other.", "correct": False}
    with pytest.raises(UserError, match=r":2: an earlier row for this answer has the opposite 'correct'"):
        read_labels(write(tmp_path / "b.jsonl", *rows))
    with pytest.raises(UserError, match="another category, kind or points"):
        read_labels(write(tmp_path / "c.jsonl", FLAT, FLAT | {"answer": "3", "points": 4}))


def test_an_empty_or_missing_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no labels"):
        read_labels(write(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match="cannot read"):
        read_labels(tmp_path / "none.jsonl")


def test_an_error_shows_a_foreign_text_cut_short(tmp_path):
    with pytest.raises(UserError) as error:
        read_labels(write(tmp_path / "a.jsonl", FLAT | {"truth": "x" * 10_000}))
    assert len(str(error.value)) < 400
