"""One claim or several: what math-verify would accept because it finds the gold answer somewhere in the text."""

from __future__ import annotations

import pytest

from ropd_jax.data.claims import is_retracted, is_single
from ropd_jax.data.grader import grade
from ropd_jax.types import Message, Prompt


def math(gold, text):
    return grade(Prompt("p", (Message("user", "q"),), answer=gold, task="math"), f"Answer: {text}")


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("34", r"\neq 34"),
        ("34", "> 34"),
        ("34", r"\geq 34"),
        ("34", "68 (or 34)"),
        ("34", "68 <!-- 34 -->"),
        ("34", r"34 \text{ is wrong}"),
        ("34", r"\text{not } 34"),
        ("34", "68 = 34"),
        (r"\frac{\sqrt{3}}{2}", r"\frac{1}{2} = \frac{\sqrt{3}}{2}"),
        ("3x + 2", "4x + 7 = 3x + 2"),
        ("3x + 2", r"3x + 2 \text{ is wrong}"),
        ("(1, 2)", "(1, 2) or (2, 1)"),
    ],
)
def test_math_refuses_a_text_that_only_contains_the_gold_answer(gold, text):
    assert math(gold, text) is False


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("34", "17 + 17 = 34"),
        ("34", r"\frac{68}{2} = 34"),
        ("34", "x = 34"),
        ("3x + 2", "f(x) = 3x + 2"),
        ("3x + 2", "y = 2x + x + 2 = 3x + 2"),
        ("1, -1", r"1 \text{ or } -1"),
        (r"\pm 1", r"1 \text{ or } -1"),
        ("x > 3", "x > 3"),
        (r"\frac{1}{2}", "0.5"),
    ],
)
def test_math_accepts_one_claim_in_any_form(gold, text):
    assert math(gold, text) is True


def test_words_and_relations_of_the_gold_answer_may_be_in_the_answer():
    assert is_single("3 < x < 5", "(3, 5)") and is_single(r"x \geq 2", r"[2, \infty)") and not is_single("x > 5", "5")
    assert is_single("at least 5", "at least 5") and not is_single("at least 5", "5")
    assert is_single("x < 3", r"x \leq 3") and not is_single("x < 3", "3")
    assert is_single("left", "right") and is_single(r"\left(1, 2\right)", "1") and is_single(r"\notin A", "A")


@pytest.mark.parametrize("text", [". No, wait: 7", ". Actually, 7", ". Sorry, 7", ". That is wrong: 7", ", nope"])
def test_a_text_that_begins_with_a_retraction(text):
    assert is_retracted(text)


@pytest.mark.parametrize("text", ["", ". No prime divides it", ". It is not even", ". Waiting is best"])
def test_a_text_that_explains_is_not_a_retraction(text):
    assert not is_retracted(text)
