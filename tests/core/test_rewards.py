"""Rewards before they become advantages, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from ropd_jax.core.rewards import overlong_penalty, pass_rate, references_pass, reliability_weights, variance_weights


@pytest.mark.parametrize(
    ("length", "truncated", "want"), [(50, False, 0.0), (80, False, 0.0), (90, False, -0.5), (100, True, -1.0)]
)
def test_overlong_punishment_by_hand(length, truncated, want):
    assert overlong_penalty(length, max_tokens=100, buffer=20, truncated=truncated) == pytest.approx(want)


def test_pass_rate_by_hand():
    assert pass_rate((5, 2.5, 2.5), (True, False, True)) == 0.75


def test_variance_weights_move_points_to_what_separates_and_keep_each_categorys_mass():
    passed = ((True, True, False, True), (True, False, False, True), (True, False, True, True), None)
    #          p = 1   p = 1/3          p = 1/3        p = 1
    got = variance_weights((4, 2, 5, 1), ("step", "step", "result", "form"), passed)
    assert got == pytest.approx((0.0, 6.0, 5.0, 1.0))  # 'form' has no contrast at all and keeps its point
    half = variance_weights((2, 2), ("a", "a"), ((True, True), (False, True), (False, True), (False, False)))
    assert half == pytest.approx((2 * 0.75 * 4 / 3, 2 * 0.75 * 4 / 3))  # 4p(1-p) = 3/4 for p = 1/4 and for p = 3/4
    assert variance_weights((3, 1), ("a", "a"), (None, None)) == (3.0, 1.0)


def test_criteria_that_references_fail_by_hand():
    passed = ((True, False, True), (True, False, False), None)
    assert references_pass(passed, 3, 0.5) == (True, False, True)
    assert references_pass(passed, 3, 0.6) == (True, False, False)
    assert references_pass((None,), 3, 0.5) == (True, True, True)


def test_an_unknown_reliability_is_the_mean_of_the_known_ones():
    assert reliability_weights((4, 2, 1), (1.0, 0.5, None)) == (4.0, 1.0, 0.75)
    assert reliability_weights((4, 2), (None, None)) == (4.0, 2.0)
    assert reliability_weights((4, 2), (0.0, None)) == (0.0, 0.0)
