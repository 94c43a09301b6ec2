from __future__ import annotations

import pytest

from ropd_jax.evaluation.stats import Estimate, accuracy, mean_accuracy


def test_wilson_interval_equals_the_worked_example():
    # 15 of 20: centre (0.75 + 3.8415/40) / (1 + 3.8415/20) = 0.70972, half width 0.17858
    got = accuracy([True] * 15 + [False] * 5)
    assert (got.value, got.n) == (0.75, 20)
    assert got.low == pytest.approx(0.53130, abs=1e-5)
    assert got.high == pytest.approx(0.88814, abs=1e-5)


def test_ungraded_answers_are_in_no_share():
    assert accuracy([True, None, False, None]).value == 0.5
    assert accuracy([True, None, False, None]).ungraded == 2
    assert accuracy([None, None]) == Estimate(None, None, None, 0, 2)
    assert str(accuracy([None])) == "unknown (0 of 1 graded)"


def test_the_ends_of_the_scale_are_kept():
    assert accuracy([True] * 10).high == 1.0
    assert accuracy([True] * 10).low == pytest.approx(0.72247, abs=1e-5)
    assert accuracy([False] * 10).low == 0.0


def test_samples_of_one_prompt_do_not_count_as_independent():
    rows = [[True] * 8, [False] * 8] * 10
    clustered, naive = mean_accuracy(rows), accuracy([g for row in rows for g in row])
    assert clustered.value == naive.value == 0.5
    assert clustered.n == 20
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)
    assert mean_accuracy(rows) == clustered


def test_a_prompt_without_graded_samples_is_left_out():
    got = mean_accuracy([[True, None], [None, None], [False, True]])
    assert (got.value, got.n, got.ungraded) == (0.75, 2, 1)
    assert mean_accuracy([[None]]) == Estimate(None, None, None, 0, 1)
