"""Kinds of gold answers, golds that are rejected when they are loaded, and golds that need a judge."""

from __future__ import annotations

import json

import pytest

from ropd_jax.data import golds
from ropd_jax.data.golds import check_judged, gold_text, kind
from ropd_jax.data.grader import grade
from ropd_jax.data.load import load_prompts
from ropd_jax.types import Message, Prompt, UserError

SENTENCE = "The rate doubles because the concentration of A doubles."


def prompt(answer, **more):
    return Prompt("q", (Message("user", "?"),), answer=answer, **more)


@pytest.mark.parametrize(
    ("gold", "want"),
    [
        ("5", "number"), ("-1,250.5", "number"), ("656 nm", "number"), (r"\\frac{1}{2}", "number"), ("1e-05", "number"),
        ("50%", "number"), ("C", "choice"), ("(C)", "choice"), (r"\\text{(C)}", "choice"), ("3x+2", "expression"),
        ("(1, 2)", "expression"), (r"x \\in [-2,7]", "expression"), (r"\\sqrt{2}", "expression"), ("Evelyn", "name"),
        ("nitric acid", "name"), ("c", "name"), ("apple, banana, cherry, date", "name"), (SENTENCE, "free_text"),
        ("Because the reaction is exothermic", "free_text"), ("Aspirin inhibits COX-1 and COX-2.", "free_text"),
    ],
)  # fmt: skip
def test_a_gold_answer_has_one_kind(gold, want):
    assert kind(gold.replace("\\\\", "\\")) == want


def write(tmp_path, answers):
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"problem": "What is {i}?", "answer": {a}}}\n' for i, a in enumerate(answers)]
    path.write_text("".join(lines))
    return str(path)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity", "1e999", '""', '" "', '"nan"', '"1/0"', "true", "[5]"])
def test_a_gold_that_nothing_equals_is_refused_with_its_row(tmp_path, bad):
    with pytest.raises(UserError, match=r"rows\.jsonl:2: answer is ") as error:
        load_prompts(source="jsonl", path=write(tmp_path, ["5", bad]))
    assert "\n" not in str(error.value)


def test_a_small_number_stays_readable(tmp_path):
    loaded = load_prompts(source="jsonl", path=write(tmp_path, ["0.00001", "1e-7", "5", "null", "1e30", "0.1"]))
    assert [p.answer for p in loaded] == ["0.00001", "0.0000001", "5", None, "1e+30", "0.1"]
    for text in ("0.00001", "1e-05", "1e-5", "10^{-5}", "1/100000"):
        assert grade(loaded[0], f"Answer: {text}") is True
    assert grade(loaded[0], "Answer: 0.0001") is False


def test_a_quantity_against_itself_is_right_and_free_text_is_not_compared():
    for text in ("656 nm", "Answer: 656 nm", r"\boxed{656\text{ nm}}", "The answer is 656 nanometers."):
        assert grade(prompt("656 nm"), text) is True, text
    for text in ("655 nm", "Answer: 656 m", "Answer: 656 nm or 486 nm"):
        assert grade(prompt("656 nm"), text) is False, text
    assert grade(prompt(SENTENCE), f"Answer: {SENTENCE}") is None
    assert grade(prompt(SENTENCE, task="exact"), f"Answer: {SENTENCE}") is True
    assert grade(prompt("C"), "Answer: (C) 5 m/s") is True and grade(prompt("C"), "Answer: C or D") is False


def test_free_text_golds_need_a_judge_and_no_exact_reward():
    free, exact = [prompt(SENTENCE)] * 3, [prompt("5")] * 27
    with pytest.raises(UserError, match=r"3 of 3 gold answers are free text .*teacher\.judge\.model") as error:
        check_judged(exact, free, judge=False)
    assert "\n" not in str(error.value)
    check_judged(free, free, judge=True)
    check_judged(exact, exact + free, judge=False)  # a tenth stays ungraded
    check_judged(exact, [prompt(None)], judge=False)
    check_judged(free, [prompt(SENTENCE, task="exact")], judge=False)
    with pytest.raises(UserError, match="method=rlvr rewards by exact comparison"):
        check_judged(free, free, judge=True, exact_method="rlvr")
    rar = prompt(None, solution="Because.", metadata={"criteria": ()})
    assert golds.reference_of(rar) == "Because." and golds.reference_of(prompt("5")) == ""
    with pytest.raises(UserError, match="1 of 1 gold answers are free text"):
        check_judged(exact, [rar], judge=False)


def test_a_gold_is_a_text_a_number_or_null():
    assert [gold_text(a, "row") for a in (None, 5, 2.5, "x")] == [None, "5", "2.5", "x"]
    json.dumps(gold_text(1e-300, "row"))
