"""The verifier's wire format: every shared vector, and the official release's cases that the vectors lack."""

from __future__ import annotations

import json
import math
import pathlib

import pytest

from ropd_jax.teacher import MalformedError, parse_verdicts
from ropd_jax.types import Criterion, Rubric

HERE = pathlib.Path(__file__).parent / "vectors"


def rows(name):
    lines = (HERE / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [pytest.param(row, id=row["name"]) for row in map(json.loads, filter(None, lines))]


def rubric_of(weights):
    return Rubric(tuple(Criterion(f"c{n}", f"States fact number {n}.", w) for n, w in enumerate(weights, 1)))


def verdict_text(*answers, **top):
    return json.dumps({"schema_version": "ropd.batch_verifier.v2", "answers": list(answers)} | top)


@pytest.mark.parametrize("row", rows("verdict"))
def test_verdict_vector(row):
    rubric = rubric_of(row["weights"])
    if row["expect"] == "reject":
        with pytest.raises(MalformedError):
            parse_verdicts(row["text"], rubric, row["n_answers"])
        return
    verdicts = parse_verdicts(row["text"], rubric, row["n_answers"])
    scored = row.get("scored", [1] * row["n_answers"])
    assert [int(v is not None) for v in verdicts.passed] == scored
    assert [int(c is None) for c in verdicts.causes] == scored
    if "passed" in row:
        assert [list(map(int, v)) for v in verdicts.passed] == row["passed"]
    if "scores" in row:
        assert list(verdicts.scores(rubric)) == pytest.approx(row["scores"], abs=1e-15)


@pytest.mark.parametrize(
    "values, passed",
    [
        (["true", "no", "yes", "off"], (True, False, True, False)),
        ([1.0, 0, "1", "F"], (True, False, True, False)),
        (["TRUE", "False", "on", "n"], (True, False, True, False)),
        ([True, False, None, False], None),
        ([True, False, "maybe", False], None),
        ([True, False, 0.5, False], None),
        ([True, False, math.nan, False], None),
        ([True, False, [True], False], None),
        ([True] * 5, None),
        ("true", None),
    ],
)
def test_verdict_values(values, passed):
    verdicts = parse_verdicts(verdict_text({"answer_index": 1, "judgement": values}), rubric_of([5, 4, 2, 1]), 1)
    assert verdicts.passed == (passed,)
    assert verdicts.causes == (None if passed else "malformed",)


@pytest.mark.parametrize("said", [12, 99, -3, math.nan, math.inf, "7", None, {"a": 1}])
def test_the_reported_score_is_never_the_reward(said):
    text = verdict_text({"answer_index": 1, "judgement": [True, False, True, False], "final_score": said})
    rubric = rubric_of([5, 4, 2, 1])
    assert parse_verdicts(text, rubric, 1).scores(rubric) == (7 / 12,)


def test_answers_may_come_in_any_order():
    text = verdict_text(
        {"answer_index": 2, "judgement": [False, False, False, True]},
        {"answer_index": 1.0, "judgement": [True, True, True, True]},
    )
    rubric = rubric_of([5, 4, 2, 1])
    assert parse_verdicts(text, rubric, 2).scores(rubric) == (1.0, 1 / 12)


def test_two_different_judgements_of_one_answer_leave_it_unscored():
    yes, no = [True] * 4, [False] * 4
    same = verdict_text({"answer_index": 1, "judgement": yes}, {"answer_index": 1, "judgement": yes})
    different = verdict_text({"answer_index": 1, "judgement": yes}, {"answer_index": 1, "judgement": no})
    rubric = rubric_of([5, 4, 2, 1])
    assert parse_verdicts(same, rubric, 1).passed == ((True,) * 4,)
    both = parse_verdicts(different, rubric, 2)
    assert both.passed == (None, None) and both.causes == ("duplicate", "missing")
    assert both.scores(rubric) == (None, None)


@pytest.mark.parametrize("index", [0, 3, -1, True, None, "x", 1.5, "1²"])
def test_an_index_that_is_not_of_an_answer_spoils_the_reply(index):
    text = verdict_text({"answer_index": index, "judgement": [True] * 4})
    with pytest.raises(MalformedError, match="answer_index"):
        parse_verdicts(text, rubric_of([5, 4, 2, 1]), 2)


@pytest.mark.parametrize("text", [verdict_text(note="x"), verdict_text(schema_version="v1"), verdict_text(answers={})])
def test_a_reply_of_another_schema_is_refused(text):
    with pytest.raises(MalformedError):
        parse_verdicts(text, rubric_of([5, 4, 2, 1]), 2)
