from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax.teacher.roles.marks import Marks
from ropd_jax.teacher.roles.votes import majority


def marks(*rows):
    return Marks(tuple(rows), tuple(None if row is not None else "missing" for row in rows))


def test_the_table_of_the_module():
    joined, agreement = majority([marks((True, True, False)), marks((True, False, False)), marks((False, True, False))])
    assert joined == marks((True, True, False))
    assert agreement == pytest.approx((2 / 3, 2 / 3, 1))


def test_one_vote_is_itself_and_has_no_agreement():
    joined, agreement = majority([marks((True, False), None)])
    assert joined == marks((True, False), None) and agreement == (None, None)


def test_a_tie_and_a_split_are_unscored_and_never_a_number():
    two = [marks((True, True)), marks((True, False))]
    assert majority(two) == (Marks((None,), ("tie",)), (1.0, 0.5))
    three = [marks((True,)), marks((True,)), marks((False,))]
    assert majority(three, min_agreement=0.6)[0] == marks((True,))
    assert majority(three, min_agreement=0.7)[0] == Marks((None,), ("split",))


def test_an_answer_needs_more_than_half_of_its_votes():
    row = (True, False)
    assert majority([marks(row), marks(row), marks(None)])[0] == marks(row)
    assert majority([marks(row), marks(None), marks(None)])[0] == Marks((None,), ("missing",))
    assert majority([marks(row), marks(None)])[0] == Marks((None,), ("missing",))
    assert majority([marks(None), marks(None)]) == (Marks((None,), ("missing",)), ())


@given(st.data())
def test_a_vote_more_for_the_majority_changes_no_verdict(data):
    row = st.tuples(*[st.booleans()] * 3)
    votes = data.draw(st.lists(row, min_size=3, max_size=7).filter(lambda rows: len(rows) % 2 == 1))
    joined, agreement = majority([marks(v) for v in votes])
    assert joined.causes == (None,) and all(0.5 < a <= 1 for a in agreement)
    again, more = majority([marks(v) for v in (*votes, joined.values[0])])
    assert again == joined and all(b >= a for a, b in zip(agreement, more, strict=True))
