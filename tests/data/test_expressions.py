from __future__ import annotations

from fractions import Fraction

import pytest

from ropd_jax.data import grader, grader_worker
from ropd_jax.data.expressions import NotAFormula, TooLarge, numbers, parse, to_sympy, value
from ropd_jax.types import Message, Prompt


@pytest.mark.parametrize(
    "text, want",
    [
        ("42*(30 - 4 - 23)", 126),
        ("49*(85 - 1)/14 - 42 - 73", 179),
        ("1/3 + 1/6", Fraction(1, 2)),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("-2**2", -4),
        ("2**-2", Fraction(1, 4)),
        ("2**3**2", 512),
        (" +7 ", 7),
    ],
)
def test_the_value_is_exact(text, want):
    assert value(parse(text)) == want


OUTSIDE = """
1 +|2x|3!|4 = 4|x.y|f(1)|sin(1, 2)|sin(x=1)|[1]|'1'|True|1j|a if b else c|x^2|1 // 2|7 % 2|1 < 2|not 1|~1|lambda: 1
(1, 2)|x[0]|*x|f'{1}'|__import__('os')|(y := 1)|await x|...|open('x', 'w')|{1: 2}|[x for x in y]|print(1)|exit()
""".replace("\n", "|").split("|")  # the first is ""
HUGE = ["(" * 5000, "[" * 300 + "]" * 300, "-" * 3000, "9" * 5000, "1\n2", "\0", "\ud800"]


@pytest.mark.parametrize("text", OUTSIDE + HUGE)
def test_what_is_outside_the_grammar_is_refused(text):
    with pytest.raises(NotAFormula):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "2**100000",
        "2**(1/2)",
        "(2**1000)**1000",
        "1e999",
        "*".join(["10**1000"] * 4),
        "2**-9999",
    ],
)
def test_what_is_too_large_is_neither_right_nor_wrong(text):
    with pytest.raises(TooLarge):
        value(parse(text))


@pytest.mark.parametrize("text", ["x + 9**9**9**9", "x**5000", "(7**900)**900", "1/3**99999"])
def test_the_numbers_of_a_sympy_formula_are_bounded_too(text):
    with pytest.raises(TooLarge):
        to_sympy(parse(text))


def test_the_numbers_of_a_formula_are_those_that_are_written():
    assert sorted(numbers(parse("94*4 - 61 - -6 + 1.5"))) == [1.5, 4, 6, 61, 94]


def test_a_sympy_formula_is_the_one_that_its_text_means():
    import sympy

    x, c = sympy.symbols("x C")
    assert to_sympy(parse("-6*x**3 + log(x, 2)/3 + E**x*cos(pi*x) + C")) == (
        -6 * x**3 + sympy.log(x, 2) / 3 + sympy.exp(x) * sympy.cos(sympy.pi * x) + c
    )


def entry(answer="", **metadata):
    return {"question": "q", "answer": answer, "metadata": metadata}


NUMBERS = entry(numbers=[6, 61, 94, 4], target=309)
FOUR = entry(numbers=[8, 5, 10, 6])
INTEGRAL = entry(integrand="2 - 18*x**2", variable="x")
WAVE = entry(integrand="2*exp(x)*cos(x)", variable="x")
PRODUCT = entry("x**2 + 3*x + 2")


@pytest.mark.parametrize(
    "task, item, answer, want",
    [
        ("countdown", NUMBERS, "94*4 - 61 - 6", True),
        ("countdown", NUMBERS, "(94*4) - (61 + 6)", True),
        ("countdown", NUMBERS, "309", False),  # not the given numbers
        ("countdown", NUMBERS, "94*4 - 61 - 6 + 0", False),
        ("countdown", NUMBERS, "94*4 - 61 + 6", False),
        ("countdown", NUMBERS, "94/(4 - 4)*61*6", False),
        ("countdown", entry(numbers=[3, 3, 8, 8], target=24), "8/(3 - 8/3)", True),  # exact, not in floats
        ("puzzle24", FOUR, "10*(8 - 5) - 6", True),
        ("puzzle24", FOUR, "8*3*1*1", False),  # other numbers than the given ones
        ("puzzle24", FOUR, "10*5/8*6", False),
        ("puzzle24", FOUR, "(10 - 8)*(5 + 6) + x", False),
        ("simple_integration", INTEGRAL, "-6*x**3 + 2*x + C", True),
        ("simple_integration", INTEGRAL, "2*x*(1 - 3*x**2) + 7", True),
        ("simple_integration", INTEGRAL, "-6*x**3 + 2*x + x", False),
        ("simple_integration", INTEGRAL, "Integral(2 - 18*x**2, x)", False),  # the question again
        ("simple_integration", INTEGRAL, "-6x^3 + 2x", False),
        (
            "intermediate_integration",
            entry(integrand="2*exp(x)*cos(x)", variable="x"),
            "exp(x)*(sin(x) + cos(x))",
            True,
        ),
        ("polynomial_multiplication", PRODUCT, "2 + x**2 + 3*x", True),
        ("polynomial_multiplication", PRODUCT, "x*x + x + 2*x + 2", True),
        ("polynomial_multiplication", PRODUCT, "(x + 1)*(x + 2)", False),  # not multiplied out
        ("polynomial_multiplication", PRODUCT, "x**2 + 3*x + 3", False),
    ],
)
def test_the_five_tasks_that_we_check_ourselves(task, item, answer, want):
    assert grader_worker.right(task, item, answer) is want


def test_where_no_formula_may_exist_an_answer_outside_the_grammar_is_ungraded():
    item = entry(integrand="exp(x**2)", variable="x") | {"answer": "Integral(exp(x**2), x)"}
    for answer in (item["answer"], "I cannot integrate this"):
        with pytest.raises(grader_worker.NoFormula):
            grader_worker.right("intermediate_integration", item, answer)
    assert grader_worker.right("intermediate_integration", item, "exp(x**2)") is False
    prompt = Prompt("1", (Message("user", "?"),), "gold", "intermediate_integration", "", {"reasoning_gym": item})
    assert grader.grade(prompt, f"Answer: {item['answer']}") is None


@pytest.mark.parametrize("task", grader_worker.CHECKS)
def test_their_gold_answers_are_right(task):
    import reasoning_gym

    for item in reasoning_gym.create_dataset(task, size=8, seed=11):
        if "Integral" not in item["answer"]:
            assert grader_worker.right(task, item, item["answer"]) is True
