"""The grammar of a final answer: the tables of docs/graders.md, and cases that are right or wrong by construction."""

from __future__ import annotations

import pathlib
import re
import time
from fractions import Fraction

import pytest

from ropd_jax.data import golds
from ropd_jax.data.choices import last_choice, letter_of
from ropd_jax.data.final_answer import final_answer
from ropd_jax.data.grader import grade
from ropd_jax.data.numbers import quantity
from ropd_jax.evaluation.graders.math_pool import verify_all
from ropd_jax.types import Message, Prompt

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "graders.md"


def rows(heading):
    """The rows of the table under a heading of docs/graders.md, without backticks; a line break for each arrow."""
    section = re.split(r"(?m)^## ", DOCS.read_text(encoding="utf-8"))
    (part,) = [s for s in section if s.startswith(heading)]
    found = [[c.strip() for c in line.strip("|").split(" | ")] for line in part.splitlines() if re.match(r"\| `", line)]
    assert len(found) > 5
    bare = [[re.sub(r"^`|`$", "", c).replace("⏎", "\n") for c in cells] for cells in found]
    return [[None if c == "none" else c for c in cells] for cells in bare]


def right(gold, text):
    return grade(Prompt("q", (Message("user", "?"),), answer=gold), text)


@pytest.mark.parametrize(("text", "want"), rows("Where a text states"))
def test_the_table_of_statements_holds(text, want):
    assert final_answer(text) == want


@pytest.mark.parametrize(("text", "want"), rows("Numbers"))
def test_the_table_of_numbers_holds_in_every_kind_of_statement(text, want):
    got = quantity(text)
    assert (None if got is None else got.value) == (None if want is None else Fraction(want))
    for form in (f"Answer: {text}", f"so\n#### {text}", f"The answer is {text}", rf"\boxed{{{text}}}"):
        assert right(want or "5", form) is (want is not None), form


@pytest.mark.parametrize(("text", "want"), rows("Choices"))
def test_the_table_of_choices_holds_in_every_kind_of_statement(text, want):
    assert letter_of(text) == want
    for form in (f"Answer: {text}", f"Answer:\n{text}", f"The correct option is {text}", f"Answer：{text}"):
        assert last_choice(form) == want, form


@pytest.mark.parametrize(("gold", "kind"), [row[:2] for row in rows("Kinds of gold")])
def test_the_table_of_kinds_holds(gold, kind):
    assert golds.kind(gold) == kind


# ------------------------------------------------------------------------------------------- right by construction

INTEGERS = (0, 2, 5, 7, -3, 12, 100, 2048, 31_400, -1_250_000)
FORMS = (  # of the integer n, each of which states n and nothing else
    "{n}", "{n}.", "{n},", "{n}.0", "${n}$", r"\({n}\)", "**{n}**", "`{n}`", "({n})", "{n} apples", "{n} km/h", "{n}%",
    r"{n}\text{{ cm}}", "x = {n}", "{n:,}", "{u}", "${n}.00", "{n}, because I counted.", "{n} (see above)", "{n}/1",
    "Tom has {n} apples.", "about {n}", "{n} = {n}", r"\frac{{{twice}}}{{2}}", "{n}, not {more}", "{n}e0", "{full}",
)  # fmt: skip
WRONG = (  # none of these states n
    "{more}", "{n} or {more}", "{n}, {more}", "{n} and {more}", "{n}:30", "{n}/7", "{n}x", "{n}x + 2", "{n}^2 + 1",
    "{n} + 1", "{n} to {more}", "{n}.5", "not {n}", "at least {n}", "{n}!", "{n} thirds", "{n}e3", "{n} million",
    "{n} dozen and one", "more than {n}", "{n}, but maybe {more}", "either {n} or {more}", "{n} < x", "-{n}.25",
    "1{n}7",
    "question {n} is hard", "{n}i + 1", r"{n}\sqrt{{2}}", r"{n}\pi", "one of {n}, {more}", "{n} - {more}",
    "{n} x {more}",
)  # fmt: skip


def filled(form, n):
    full = "".join(chr(0xFEE0 + ord(c)) if c.isdigit() else c for c in str(n))
    return form.format(n=n, more=n + 2, twice=2 * n, u=str(n).replace("-", "\u2212"), full=full)


@pytest.mark.parametrize("n", INTEGERS)
def test_what_states_the_gold_is_right_and_what_does_not_is_wrong(n):
    for where in ("Answer: {}", "Answer:\n{}", "#### {}", "The answer is {}", r"So it is \boxed{{{}}}."):
        for form in FORMS:
            text = where.format(filled(form, n))
            assert right(str(n), text) is True, text
        for form in WRONG:
            if n == 0 and form in ("{n}/7", "{n}e3", "{n} million", "{n} thirds"):
                continue  # they are 0, or say so
            text = where.format(filled(form, n))
            assert right(str(n), text) is False, text


RIGHT_PAIRS = [  # (gold, answer)
    ("1/2", "0.5"), ("1/2", r"\frac{1}{2}"), ("1/2", r"\dfrac12"), ("1/2", "2/4"), ("1/2", ".5"), ("0.25", "1/4"),
    ("3/2", "1.5"), ("3/2", r"1\frac{1}{2}"), ("3/2", "1 1/2"), ("-3/4", "-0.75"), ("-3/4", r"-\frac{3}{4}"),
    ("-3/4", r"\frac{-3}{4}"), ("100000", "10^5"), ("100000", "1e5"), ("0.001", "10^{-3}"), ("0.001", "1e-3"),
    ("1024", "2^{10}"), ("1000000", "1,000,000"), ("1000000", r"1{,}000{,}000"), ("1000000", r"1\,000\,000"),
    ("3400", "3,400"), ("120", "120.00"), ("7", "x=7"), ("7", r"7\text{ apples}"), ("90", r"90^\circ"), ("18.9",
    r"\$18.90"),
    ("3x+2", "2+3x"), ("x^2-1", "(x-1)(x+1)"), ("2x", "x+x"), (r"\frac{x}{2}", "x/2"), ("(1, 2)", "(1,2)"),
    ("(1/2, 3)", r"\left(\frac{1}{2}, 3\right)"), ("1, -2", "1,-2"), ("Evelyn", r"\text{Evelyn}"), ("even", "Even"),
    (r"\sqrt{2}", r"\sqrt 2"), (r"\sqrt{8}", r"2\sqrt{2}"), (r"2\pi", r"2 \pi"),
]  # fmt: skip
WRONG_PAIRS = [
    ("1/2", "1/3"), ("1/2", "0.50001"), ("1/2", "5"), ("1/2", "1"), ("11/2", "1 1/2"), ("11/2", r"1\frac{1}{2}"),
    ("100121", "100, 121"), ("3400", "3, 400"), ("3", "3x+2"), ("10", "10:30"), ("2", "2^{10}"), ("1", "1e5"), ("5",
    "5/6"),
    ("5", "5 or 7"), ("7", "5 or 7"), ("5", "5, 7"), ("3", "1/3"), ("-5", "5"), ("5", "-5"), ("5.0", "50"),
    ("3x+2", "3x"), ("3x+2", "3x-2"), ("x^2-1", "x^2+1"), ("2x", "2"), ("(1, 2)", "(2, 1)"), ("(1, 2)", "1"),
    ("(1, 2)", "[1, 2]"), ("1, -2", "1"), ("1, -2", "1, 2"), ("Evelyn", "Navin"), ("Evelyn", "Evelyn or Navin"),
    (r"\sqrt{2}", "2"), (r"2\pi", "2"), ("2", r"2\pi"), ("3400", "3.400"), ("52", "52_8"), ("5", "5!"),
]  # fmt: skip
# where math-verify's own verdict is wrong
MATH_VERIFY_ERRS = {
    ("3/2", "1 1/2"), ("100000", "1e5"), ("0.001", "1e-3"), ("1000000", r"1\,000\,000"), ("even", "Even"), ("52",
    "52_8"),
    *((str(n), f"{n}{end}") for n in (5, -3, 2048) for end in ".,"),
}  # fmt: skip


def test_formulas_lists_and_fractions_are_compared_by_value():
    for gold, answer in RIGHT_PAIRS:
        assert right(gold, f"Answer: {answer}") is True, (gold, answer)
    for gold, answer in WRONG_PAIRS:
        assert right(gold, f"Answer: {answer}") is False, (gold, answer)


def test_math_verify_agrees_except_where_it_errs():
    pairs = [(p, True) for p in RIGHT_PAIRS] + [(p, False) for p in WRONG_PAIRS]
    pairs += [((str(n), filled(f, n)), True) for n in (5, -3, 2048) for f in FORMS[:6] + FORMS[14:16] + FORMS[23:24]]
    pairs += [((str(n), filled(f, n)), False) for n in (5, -3) for f in WRONG]
    verdicts = verify_all([p for p, _ in pairs], workers=1, timeout_s=30)
    differ = {p for (p, want), v in zip(pairs, verdicts, strict=True) if v.right is not want}
    assert differ == MATH_VERIFY_ERRS


def test_a_dollar_sign_does_not_reach_into_the_next_line():
    assert right("18", "Answer: $18\n\nShe has $3 left.") is True
    assert right("18", "The answer is $18.\nBob has $3.") is True
    assert right("18", "Answer:\n```\n18\n```\nfor $5") is True


def test_hostile_texts_cost_no_time():
    begin = time.monotonic()
    for text in (
        "answer is " * 20_000, "Answer: " * 20_000, "**" * 30_000, " " * 100_000, "#" * 100_000,
        "answer" + " " * 50_000,
        "\\boxed{1} and " * 10_000, "Answer:\n" * 10_000, "Answer: " + "(" * 200, "Answer: " + "1," * 99,
        "the " * 30_000,
        "Answer: " + "x = " * 50, "Answer: " + "5 or " * 39, "Answer: " + "5 a " * 49, "Answer: A" + " or A" * 30_000,
    ):  # fmt: skip
        final_answer(text)
        last_choice(text)
        right("5", text)
    assert time.monotonic() - begin < 20
