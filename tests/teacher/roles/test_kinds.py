"""Kinds of criteria by keywords."""

from __future__ import annotations

import pytest

from ropd_jax.calibration.generate import SEEDS, generate
from ropd_jax.teacher.roles.kinds import KINDS, kind_of
from ropd_jax.teacher.scripted import criteria


@pytest.mark.parametrize(
    "category, text, kind",
    [
        ("Final result", "Says 42.", "final_result"),
        ("FINAL_ANSWER", "", "final_result"),
        ("Reasoning", "The final answer is 3.", "method"),  # the category counts first
        ("Absence of errors", "", "no_error"),
        ("Constraint", "", "constraint"),
        ("Essential", "The final answer is 12.", "final_result"),
        ("", "Every calculation in the answer is correct.", "no_error"),
        ("", "Contains no arithmetic mistake.", "no_error"),
        ("", "Uses at most 40 words.", "constraint"),
        ("", "Is at most 2,000 characters long.", "constraint"),
        ("", "Does not mention the price.", "constraint"),
        ("", "Is formatted as a bullet list.", "form"),
        ("", "States that 17 pens are left.", "intermediate_fact"),
        ("", "Compares both offers before it chooses.", "method"),
        ("Essential", "Is good.", None),
        ("", "", None),
    ],
)
def test_a_kind_follows_from_category_and_then_from_text(category, text, kind):
    assert kind_of(category, text) == kind


def test_the_shipped_criteria_have_their_kind_by_category():
    for part in SEEDS:
        for c in (c for q in generate(part) for c in q.criteria):
            assert kind_of(c.category, c.text) == c.kind


def test_most_shipped_criteria_have_their_kind_by_their_text_alone():
    rows = [c for q in generate("dev") for c in q.criteria]
    right = [kind_of("", c.text) == c.kind for c in rows]
    assert sum(right) / len(right) > 0.5
    assert {kind_of("", c.text) for c in rows} <= {*KINDS, None}


def test_the_scripted_wordings_have_kinds():
    fixed = (criteria.CORRECT, criteria.SHOWN, criteria.SHORT, criteria.ONE_FINAL, criteria.EQUATIONS)
    found = {text: kind_of("", text) for text in fixed}
    assert found[criteria.CORRECT] == found[criteria.EQUATIONS] == "no_error"
    assert found[criteria.SHOWN] == "method" and found[criteria.SHORT] == "constraint"
    assert kind_of("", criteria.FINAL.format("17")) == "final_result"
    assert kind_of("", criteria.VALUE.format("17")) == "intermediate_fact"


def test_a_long_text_is_read_in_linear_time():
    assert kind_of("x" * 200_000, "every " * 50_000) is None
