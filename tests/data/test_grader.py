from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from ropd_jax.data import grader, grader_worker
from ropd_jax.data.grader import BrokenScorer, final_answer, grade, last_box, number, same
from ropd_jax.types import Message, Prompt


def prompt(answer, task="chain_sum", entry=None):
    metadata = {} if entry is None else {"reasoning_gym": entry}
    return Prompt(id="p", messages=(Message("user", "q"),), answer=answer, task=task, metadata=metadata)


@pytest.mark.parametrize(
    "text, want",
    [
        ("9 + 5 = 14\n14 - 1 = 13\nAnswer: 13", "13"),
        ("Answer: 12\nAnswer: 13", "13"),
        ("answer: 13\nsome words", "13"),
        ("**Answer:** 13", "13"),
        ("**Final answer: 13**", "13"),
        ("- Answer: $1,000.", "$1,000."),
        ("so it is\n#### 70", "70"),
        (r"\boxed{5}. Wait, no: \boxed{7}", "7"),
        (r"Answer: $\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"Answer: 3\nthen \boxed{4}", r"4"),
        (r"\boxed{5} but \boxed{6", "5"),
        ("so 3 cases giving 5", None),
        ("Answer:", None),
        ("The answer is 70", "70"),
        ("in all 70", None),
        ("", None),
        ("Answer: " + "9" * 300, None),
    ],
)
def test_the_last_marked_answer_counts_and_an_unmarked_one_does_not(text, want):
    assert final_answer(text) == want


@pytest.mark.parametrize(
    "found, gold, want",
    [
        ("13", "13", True),
        ("13.0", "13", True),
        ("+13", "13", True),
        ("\u221213", "-13", True),
        ("1,000", "1000", True),
        ("$70.", "70", True),
        ("1/2", "0.5", True),
        ("13 apples", "13", True),
        ("13 apples", "13 pears", False),
        ("656 nm", "656 nm", True),
        ("656 nanometers", "656 nm", True),
        ("656 m", "656 nm", False),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("113", "13", False),
        ("1e1", "10", True),
        ("1 1/2", "11/2", False),
        ("100, 121", "100121", False),
        ("3, 400", "3400", False),
        ("1/0", "1", False),
        ("1,00", "100", False),
        ("Ziuqer ", "ziuqer", True),
        ("2 × 41", "2 × 41", True),
        ("", "13", False),
    ],
)
def test_answers_are_compared_as_exact_numbers_or_else_as_text(found, gold, want):
    assert same(found, gold) is want


@pytest.mark.parametrize(
    "text",
    [
        "Answer: {g}\nor {w}",
        "#### {g}\nor {w}",
        "The answer is {g}\nor maybe {w}",
        "\\boxed{{{g}}}\nor {w}",
        "<answer>{g}</answer> or {w}",
        "Answer: {g}\n**Alternatively**, {w}",
        "Answer:\n$$\n{g}\n$$\nor {w}",
    ],
)
@pytest.mark.parametrize(("g", "w"), [("34", "68"), ("3x + 2", "4x + 7"), ("C", "D"), ("yes", "no"), ("Eve", "Tom")])
def test_another_answer_on_the_next_line_is_a_hedge(text, g, w):
    one = Prompt("p", (Message("user", "q"),), answer=g)
    assert grade(one, text.format(g=g, w=w)) is False


def test_the_same_value_on_the_next_line_is_no_hedge():
    one = Prompt("p", (Message("user", "q"),), answer="34")
    assert grade(one, "Answer: 34\nOr 34.0") is True and grade(one, "\\boxed{34}\nOr, equivalently, 68/2.") is True
    assert grade(one, "Answer: 34\n\nOr is it? No doubt about it.") is False  # read as an alternative
    assert grade(one, "Answer: 34\nOrdering the parts is not needed.") is True


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("yes", "yes, possibly no"),
        ("yes", "yes, or perhaps no."),
        ("yes", "yes. No, wait: no."),
        ("yes", "no = yes"),
        ("Eve", "Eve. No, wait: Tom."),
        ("C", "C. No, wait: D."),
        ("C", "C. Actually, it is (D)."),
        ("5 meters", "7 meters = 5 meters"),
        ("50%", "25% = 50%"),
    ],
)
def test_an_answer_that_is_taken_back_or_doubted_is_wrong(gold, text):
    assert grade(Prompt("p", (Message("user", "q"),), answer=gold), f"Answer: {text}") is False


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("yes", "yes. No prime divides it."),
        ("yes", "yes, it is prime"),
        ("C", "C. No change in the pressure"),
        ("C", "C. Actually a decrease in cost"),
        ("500 cm", "5 m = 500 cm"),
        ("5 apples", "3 apples + 2 apples = 5 apples"),
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"),
        (r"\frac{\sqrt{3}}{2}", r"\frac{1}{2}\sqrt3"),
        (r"\frac{\sqrt{3}}{2}", "\u221a3/2"),
        ("\u221a12", r"2\sqrt{3}"),
        (r"\frac{\frac{x}{2}}{3}", "x/6"),
        (r"2\pi", "2\u03c0"),
        (r"2\pi r", "2\u03c0r"),
        (r"2\pi", r"2\pi \text{ cm}"),
        ("(1, 2)", "(x, y) = (1, 2)"),
        ("{1, 2, 2}", r"\{2, 1, 2\}"),
        ("the derivative", "derivative"),
        ("Hague", "The Hague"),
    ],
)
def test_another_spelling_of_the_gold_answer_is_right(gold, text):
    assert grade(Prompt("p", (Message("user", "q"),), answer=gold), f"Answer: {text}") is True


def test_a_set_has_no_order_but_a_pair_has():
    one, pair = (Prompt("p", (Message("user", "q"),), answer=gold) for gold in ("{1, 2, 2}", "(1, 2)"))
    assert grade(one, "Answer: {1, 1, 2}") is False and grade(one, "Answer: {1, 2}") is False
    assert grade(pair, "Answer: (2, 1)") is False


@pytest.mark.parametrize("text", [r"2\pi \text{ is wrong}", r"2\pi \text{ or } \pi", r"\pi \text{ cm}", "2\u03c0r"])
def test_a_unit_does_not_hide_another_answer(text):
    assert grade(Prompt("p", (Message("user", "q"),), answer=r"2\pi"), f"Answer: {text}") is False


def test_number_of_a_hostile_text_is_none_at_once():
    begin = time.process_time()
    assert number("9" * 100_000) is None
    assert number("1e999999999") is None
    assert last_box("\\boxed{" * 20_000) == (-1, None)
    assert time.process_time() - begin < 3


def test_grade_says_right_wrong_or_cannot_say():
    assert grade(prompt("13"), "Answer: 13") is True
    assert grade(prompt("13"), "Answer: 14") is False
    assert grade(prompt("13"), "13") is False
    assert grade(prompt(None), "Answer: 13") is None


def entry_of(task, **options):
    import reasoning_gym

    return reasoning_gym.create_dataset(task, size=1, seed=42, **options)[0]


def test_an_answer_that_only_contains_the_gold_is_wrong():
    entry = entry_of("spell_backward")
    p = prompt(entry["answer"], "spell_backward", entry)
    assert grade(p, f"Answer: {entry['answer']}") is True
    assert grade(p, f"Answer: {entry['answer']} and more") is False
    assert grade(p, "no answer here") is False


def test_a_scorer_that_raises_on_malformed_text_means_wrong():
    entry = entry_of("prime_factorization")
    p = prompt(entry["answer"], "prime_factorization", entry)
    assert grade(p, f"Answer: {entry['answer']}") is True
    assert grade(p, "Answer: two times × x") is False


def test_a_scorer_that_fails_on_its_own_gold_is_not_hidden(monkeypatch):
    import reasoning_gym

    def broken(answer, entry):
        raise ValueError("signal only works in main thread")

    monkeypatch.setattr(reasoning_gym, "get_score_answer_fn", lambda task: broken)
    monkeypatch.setattr(grader, "_child", SimpleNamespace(ask=grader_worker.answer))  # in this process, to patch it
    entry = {"question": "q", "answer": "x", "metadata": {}}
    with pytest.raises(BrokenScorer, match="ValueError: signal only works in main thread"):
        grade(prompt("x", "broken_task", entry), "Answer: x")


@pytest.mark.parametrize("task", ["chain_sum", "products", "gcd", "lcm", "simple_equations", "gsm_symbolic"])
def test_every_gold_of_a_number_task_is_accepted(task):
    import reasoning_gym

    for entry in reasoning_gym.create_dataset(task, size=50, seed=3):
        assert grade(prompt(entry["answer"], task, entry), f"Answer: {entry['answer']}") is True


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("14 + 4 = 18\nThe answer is 18.", True),
        ("The final answer is: $1,018", False),
        ("The answer is 18, no, wait.\nAnswer: 17", False),
        ("so the answer is 17 or, in full, the answer is **18**", True),
        ("The answer is large. 18", False),
    ],
)
def test_answer_given_in_a_sentence(text, right):
    assert grade(Prompt("q", (Message("user", "?"),), answer="18"), text) is right
