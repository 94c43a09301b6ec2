"""Classes of equal answers in a vote: which pairs are compared, and how many."""

from __future__ import annotations

import pytest

from ropd_jax.evaluation.voting import MOST_PAIRS, classes


def asked(answers, right, equal=lambda a, b: False):
    seen = []

    def compare(pairs):
        seen.extend(pairs)
        return [equal(a, b) for a, b in pairs]

    return classes({"p": range(len(answers))}, answers, right, compare), seen


def test_equal_wrong_answers_share_a_class_through_others():
    group = {"a1": 1, "a2": 1, "a3": 1, "b": 2}
    names, _ = asked(["a1", "b", "a2", None, "a3", "x", "y"], [False] * 5 + [True, True],
                     lambda a, b: group[a] == group[b])  # fmt: skip
    assert names[0] == names[2] == names[4] != names[1] and names[3] is None


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (["a", "b", "c"], [False] * 3),  # no answer is right
        (["x", "x", "x", "a", "b"], [True, True, True, False, False]),  # no merging can beat the right ones
        (["x", "a", "a", "b"], [True, False, False, False]),  # a wrong class has already won
        (["1/2", "0.5", "x", "x"], [False, False, True, True]),  # equal by value, and nothing else to compare
    ],
)
def test_nothing_is_compared_where_it_cannot_change_the_vote(answers, right):
    assert asked(answers, right)[1] == []


def test_the_number_of_comparisons_is_bounded():
    n = 64
    names, seen = asked([f"w{i}" for i in range(n)] + ["x"] * 2, [False] * n + [True] * 2)
    assert len(seen) == MOST_PAIRS == len(set(seen)) and len(set(names[:n])) == n
