from __future__ import annotations

import io

import numpy as np
import pytest

from ropd_jax.training.drift import alarms, drift_at
from ropd_jax.workdir.metrics import Metrics, read_metrics
from ropd_jax.workdir.progress import Progress
from ropd_jax.workdir.result import final_table


def series(accuracies, rewards, *, n=500, every=10):
    """Evaluations at 0, every, ...; one reward per step from step 1 on."""
    steps = [every * i for i in range(len(accuracies))]
    return {
        "eval/accuracy": (steps, accuracies),
        "eval/accuracy_n": (steps, [n] * len(steps)),
        "reward/mean": (list(range(1, len(rewards) + 1)), rewards),
    }


def rewards(*levels, every=10):
    return [level + 0.01 * (i % 3) for level in levels for i in range(every)]


def test_reward_up_and_accuracy_down_rings_with_the_numbers():
    got = drift_at(series([0.4, 0.6, 0.5], rewards(0.3, 0.6)), 20)
    assert got.alarm and (got.step, got.since, got.measure) == (20, 10, "accuracy")
    assert got.change == pytest.approx(-0.1)
    assert got.reward_change == pytest.approx(0.3)
    assert str(got) == "step 20: reward +0.300 and held-out accuracy -10.0% since step 10"


@pytest.mark.parametrize(
    ("accuracies", "levels"),
    [
        ([0.4, 0.6, 0.59], (0.3, 0.6)),  # a fall within the noise: 1 point, standard error 3.1
        ([0.4, 0.6, 0.5], (0.6, 0.3)),  # both fall: not drift but a bad run
        ([0.4, 0.5, 0.6], (0.3, 0.6)),
        ([0.4, 0.6, 0.5], (0.6, 0.6)),
    ],
)
def test_it_is_silent_where_one_of_the_two_does_not_hold(accuracies, levels):
    assert drift_at(series(accuracies, rewards(*levels)), 20).alarm is False


def test_a_slow_fall_is_measured_from_the_best_evaluation():
    falling = [0.4, 0.60, 0.56, 0.52, 0.48]
    got = drift_at(series(falling, rewards(0.3, 0.4, 0.5, 0.6)), 40)
    assert got.alarm and got.since == 10 and got.change == pytest.approx(-0.12)


@pytest.mark.parametrize("looks", [6, 18])
def test_few_runs_ring_whose_student_stays_as_it_is(looks):
    rng, rang, runs = np.random.default_rng(0), 0, 200
    rising = [0.01 * i for i in range(10 * looks)]
    for _ in range(runs):
        run = series((rng.binomial(100, 0.85, looks) / 100).tolist(), rising, n=100)
        rang += any(drift_at(run, 10 * look).alarm for look in range(1, looks))
    assert rang <= 0.1 * runs


def test_nothing_is_said_where_nothing_is_known():
    assert drift_at(series([0.4], rewards(0.3)), 0) is None
    assert drift_at(series([None, None, None], rewards(0.3, 0.6)), 20) is None
    assert drift_at(series([0.4, 0.5], [None] * 10), 10) is None
    assert drift_at({}, 10) is None


def judged(grades, *, error=0.02):
    steps = [10 * i for i in range(len(grades))]
    return {"eval/judge": (steps, grades), "eval/judge_error": (steps, [None if g is None else error for g in grades])}


def test_without_gold_answers_the_independent_judge_is_the_measure():
    nothing = series([None, None, None], rewards(0.3, 0.6), n=0)
    got = drift_at(nothing | judged([0.4, 0.6, 0.5]), 20)
    assert got.alarm and (got.since, got.measure) == (10, "judge") and got.change == pytest.approx(-0.1)
    assert str(got) == "step 20: reward +0.300 and the judge's grade -0.100 since step 10"
    assert got.as_metrics()["eval/drift_judge_change"] == pytest.approx(-0.1)
    assert drift_at(nothing | judged([0.4, 0.6, 0.5], error=0.05), 20).alarm is False  # 0.1 is 1.4 standard errors
    assert drift_at(nothing | judged([0.4, 0.6, None]), 20) is None


def test_the_exact_grader_goes_before_the_judge():
    got = drift_at(series([0.4, 0.6, 0.61], rewards(0.3, 0.6)) | judged([0.4, 0.6, 0.5]), 20)
    assert got.measure == "accuracy" and got.alarm is False


def test_it_is_shown_in_the_line_the_metrics_and_the_result(tmp_path):
    found = drift_at(series([0.4, 0.6, 0.5], rewards(0.3, 0.6)), 20)
    log = Metrics(tmp_path)
    log.log(20, found.as_metrics())
    log.close()
    assert alarms(read_metrics(tmp_path)) == [20]
    progress = Progress(30, file=io.StringIO())
    progress.note(found.as_metrics())
    assert "DRIFT since step 10" in progress.line()
    labels = [str(c) for c in final_table({"drift_alarms": [20], "seed": 0}).columns[0].cells]
    assert "drift alarm at steps" in labels
    assert "drift alarm at steps" not in [str(c) for c in final_table({"drift_alarms": []}).columns[0].cells]


def test_a_judge_is_the_measure_if_most_golds_are_free_text():
    run = series([0.4, 0.6, 0.5], rewards(0.3, 0.6))
    judged = {"eval/judge": ([0, 10, 20], [0.5, 0.6, 0.7]), "eval/judge_error": ([0, 10, 20], [0.01] * 3)}
    few = {"eval/accuracy_ungraded": ([0, 10, 20], [20] * 3)}
    many = {"eval/accuracy_ungraded": ([0, 10, 20], [200] * 3)}
    assert drift_at({**run, **judged, **few}, 20).measure == "accuracy"
    got = drift_at({**run, **judged, **many}, 20)
    assert got.measure == "judge" and not got.alarm and got.change == pytest.approx(0.1)
    assert drift_at({**run, **many}, 20).measure == "accuracy"  # no judge was used
