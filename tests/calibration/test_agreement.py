"""Accuracy, kappa and AUC against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropd_jax.calibration.agreement import agreement, auc, cells, kappa
from ropd_jax.calibration.bootstrap import Bootstrap
from ropd_jax.calibration.measure import measure
from ropd_jax.teacher.health import cohens_kappa
from tests.calibration.helpers import said

T, F = True, False


def test_cells_and_measures_by_hand():
    # 4 true: 3 found. 6 false: 4 found. p_o = 0.7, p_e = (4 * 5 + 6 * 5) / 100 = 0.5
    truth = np.array([T] * 4 + [F] * 6)
    verdict = np.array([T, T, T, F, T, T, F, F, F, F])
    counts = cells(np.zeros(10, int), truth, verdict, 1)
    assert counts.tolist() == [[3, 2, 1, 4]]
    found = agreement(counts, Bootstrap(1))
    assert found["n"] == 10 and found["true"] == 4
    assert found["accuracy"]["value"] == 0.7
    assert found["sensitivity"]["value"] == 0.75 and found["specificity"]["value"] == pytest.approx(4 / 6)
    assert found["kappa"]["value"] == pytest.approx(0.4)
    assert found["reliability"] == pytest.approx(0.75 + 4 / 6 - 1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_kappa_is_that_of_the_run_s_own_health(pairs):
    truth, verdict = (np.array(c) for c in zip(*pairs, strict=True))
    found = kappa(cells(np.zeros(len(pairs), int), truth, verdict, 1)[0])
    expected = cohens_kappa(truth.tolist(), verdict.tolist())
    assert np.isnan(found) if expected is None else found == pytest.approx(expected)


def test_a_verifier_that_says_nothing_has_no_reliability_and_one_kind_of_truth_no_specificity():
    truth, yes = np.array([T, T, F, F]), np.ones(4, bool)
    found = agreement(cells(np.arange(4), truth, yes, 4), Bootstrap(4))
    assert found["reliability"] == 0.0 and found["kappa"]["value"] == 0.0
    only = agreement(cells(np.arange(2), truth[:2], yes[:2], 2), Bootstrap(2))
    assert only["specificity"] == {"value": None, "low": None, "high": None, "n": 0}
    assert only["reliability"] is None and only["kappa"]["value"] is None
    none = agreement(np.zeros((2, 4)), Bootstrap(2))
    assert none["n"] == 0 and none["accuracy"]["value"] is None and none["kappa"]["value"] is None


def test_auc_counts_ties_half():
    # correct: 0.9, 0.5; incorrect: 0.5, 0.1  ->  (1 + 1 + 0.5 + 1) / 4
    found = auc(np.array([0, 0, 0, 0]), np.array([0.9, 0.5, 0.5, 0.1]), np.array([T, T, F, F]), Bootstrap(1), 1)
    assert found["all"]["value"] == 3.5 / 4 == found["within"]["value"]


def test_auc_within_compares_only_answers_of_one_question():
    # Question 0 is generous, question 1 is strict; each ranks its own answers correctly.
    of, value = np.array([0, 0, 1, 1]), np.array([0.9, 0.8, 0.4, 0.3])
    found = auc(of, value, np.array([T, F, T, F]), Bootstrap(2), 2)
    assert found["within"]["value"] == 1.0 and found["within"]["n"] == 2
    assert found["all"]["value"] == 3 / 4
    assert auc(of, value, np.array([T, T, T, T]), Bootstrap(2), 2)["all"]["value"] is None


def test_the_reward_of_the_auc_is_the_weighted_pass_rate():
    # points 5 and 1: the correct answer meets the 5-point criterion, the incorrect one the 1-point criterion
    one = said([[T, F], [F, T]], [[T, F], [F, T]], points=(5, 1), correct=(T, F))
    assert measure([one])["auc"]["all"]["value"] == 1.0
    other = said([[T, F], [F, T]], [[T, F], [F, T]], points=(1, 5), correct=(T, F))
    assert measure([other])["auc"]["all"]["value"] == 0.0


def test_certainty_is_not_believed():
    counts = cells(np.arange(10), np.array([T, F] * 5), np.array([T, F] * 5), 10)
    found = agreement(counts, Bootstrap(10))
    assert found["accuracy"]["value"] == 1.0 and found["accuracy"]["low"] == pytest.approx(0.722, abs=1e-3)
    assert found["kappa"]["low"] == pytest.approx(2 * 0.722 - 1, abs=2e-3) and found["kappa"]["high"] == 1.0


def test_intervals_are_over_questions_and_not_over_verdicts():
    """Ten equal verdicts on each question: an interval over questions is three times as wide as one over verdicts."""
    right = np.repeat(np.array([T, F] * 10), 10)
    question = np.repeat(np.arange(20), 10)
    clustered = agreement(cells(question, np.ones(200, bool), right, 20), Bootstrap(20))["accuracy"]
    single = agreement(cells(np.arange(200), np.ones(200, bool), right, 200), Bootstrap(200))["accuracy"]
    width = [x["high"] - x["low"] for x in (clustered, single)]
    assert width[0] / width[1] == pytest.approx(10**0.5, rel=0.15)


def test_a_question_that_was_asked_in_groups_is_drawn_whole():
    rows = [said([[T]], [[i % 2 == 0]], id=f"q{i}") for i in range(10)]
    split = [said([[T]], [[i % 2 == 0]], id=f"q{i}") for i in range(10) for _ in range(4)]
    one, four = (measure(r)["overall"]["accuracy"] for r in (rows, split))
    assert (four["low"], four["high"]) == (one["low"], one["high"]) and four["n"] == 4 * one["n"]
    assert measure(split)["questions"] == 10


def test_verdicts_without_truth_or_without_reading_are_in_no_share():
    one = said([[T, None], [F, F]], [[T, T], None])
    found = measure([one])
    assert found["overall"]["n"] == 1 and found["overall"]["accuracy"]["value"] == 1.0
    assert found["verdicts"] == 2
    assert found["unscored"] == {"asked": 2, "answers": 1, "share": 0.5, "causes": {"missing": 1}}


def test_nothing_read_makes_everything_unknown():
    found = measure([said([[T], [F]], [None, None], correct=(T, F))])
    assert found["overall"]["accuracy"]["value"] is None and found["noise"] is None
    assert found["auc"]["all"]["value"] is None and found["bias"]["halo"]["value"] is None
    assert found["kinds"] == {} and found["scorer_auc"] is None


def test_the_scorer_has_an_auc_of_its_own():
    one = said([[T], [F], [F]], [[T], [T], [T]], correct=(T, F, F), scores=(7, 9, 2))
    found = measure([one])
    assert found["auc"]["all"]["value"] == 0.5 and found["scorer_auc"]["all"]["value"] == 0.5
    unread = said([[T], [F]], [[T], [T]], correct=(T, F), scores=(7, None))
    assert measure([unread])["scorer_auc"]["all"]["value"] is None
