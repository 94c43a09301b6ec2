from __future__ import annotations

import itertools

import numpy as np
import pytest

from ropd_jax.evaluation.stats import (
    Estimate,
    accuracy,
    clustered,
    maj_at_k,
    paired_difference,
    pass_at_k,
)


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


def test_samples_of_one_problem_do_not_count_as_independent():
    rows = [[True] * 8, [False] * 8] * 10
    by_problem = clustered([sum(row) / len(row) for row in rows])
    naive = accuracy([g for row in rows for g in row])
    assert by_problem.value == naive.value == 0.5
    assert by_problem.n == 20
    assert by_problem.high - by_problem.low > 2 * (naive.high - naive.low)
    assert by_problem == clustered([sum(row) / len(row) for row in rows])


def test_a_problem_without_graded_samples_is_left_out():
    got = clustered([1.0, None, 0.5])
    assert (got.value, got.n, got.ungraded) == (0.75, 2, 1)
    assert clustered([None]) == Estimate(None, None, None, 0, 1)


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_pass_at_k_is_the_mean_over_all_subsets_of_k_samples(right, k):
    samples = [True] * right + [False] * (6 - right)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(right, 6, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_pass_at_k_refuses_more_samples_than_there_are():
    with pytest.raises(ValueError, match="pass@8 of 4"):
        pass_at_k(1, 4, 8)


@pytest.mark.parametrize(
    ("answers", "right", "want"),
    [
        (["5", "5", "7"], [True, True, False], 1.0),
        (["5", "7", "7"], [True, False, False], 0.0),
        (["5", "7"], [True, False], 0.5),
        (["5", "7", "8"], [True, False, False], 1 / 3),
        (["1/2", "0.5", r"\frac12", "3/4", "0.75"], [False, False, False, True, True], 0.0),  # 3 against 2
        (["7", "7.0", "5", r"\frac{10}{2}"], [False, False, True, True], 0.5),
        (["5", None, None, None], [True, False, False, False], 1.0),
        ([None, None], [False, False], 0.0),
    ],
)
def test_the_majority_is_taken_among_those_who_answered(answers, right, want):
    assert maj_at_k(answers, right) == want


def test_bootstrap_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(1).uniform(size=400)
    got = clustered(list(values))
    half = 1.96 * values.std() / 20
    assert got.value == pytest.approx(values.mean())
    assert (got.high - got.low) / 2 == pytest.approx(half, rel=0.05)


def test_all_wrong_is_no_certainty():
    got = clustered([0.0] * 16)
    assert (got.value, got.low) == (0.0, 0.0) and got.high == pytest.approx(accuracy([False] * 16).high)
    assert got.high == pytest.approx(0.1936, abs=1e-4)
    assert clustered([1.0] * 10).low == pytest.approx(0.72247, abs=1e-5)
    same = paired_difference({"p": 1.0, "q": 0.0}, {"p": 1.0, "q": 0.0})
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


def test_the_mean_is_clipped_and_not_the_values():
    assert clustered([-1.0, 0.5, 1.0], clip=True).value == pytest.approx(0.5 / 3)
    assert clustered([-1.0, -0.5], clip=True).value == 0.0
    assert clustered([-1.0, None]).ungraded == 1


def test_a_paired_difference_is_narrower_than_two_intervals():
    hard = np.random.default_rng(0).uniform(size=200)
    a = {str(i): float(h) for i, h in enumerate(hard)}
    b = {str(i): float(h) + (0.1 if i % 2 else 0.0) for i, h in enumerate(hard)}
    got = paired_difference(a, b)
    assert got.value == pytest.approx(0.05)
    assert 0.0 < got.low < 0.05 < got.high
    apart = clustered(list(b.values()))
    assert got.high - got.low < (apart.high - apart.low) / 3


def test_a_pair_of_which_one_is_unknown_is_left_out_and_counted():
    got = paired_difference({"p": 0.0, "q": None, "r": 1.0}, {"p": 1.0, "q": 1.0, "s": 0.0})
    assert (got.value, got.n, got.ungraded) == (1.0, 1, 3)
