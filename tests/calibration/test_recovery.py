"""The calibration of a scripted judge with known noise finds that noise, through prompts, fences and replies."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from ropd_jax import configs
from ropd_jax.calibration.bias import Look, Said
from ropd_jax.calibration.generate import generate
from ropd_jax.calibration.measure import measure
from ropd_jax.calibration.run import Options, calibrate
from ropd_jax.teacher.labels import verdict_rows
from ropd_jax.teacher.scripted.noise import Noise
from ropd_jax.types import UserError

KINDS = {
    "final_result": (0.05, 0.10),
    "intermediate_fact": (0.30, 0.15),
    "method": (0.20, 0.25),
    "form": (0.10, 0.30),
    "constraint": (0.25, 0.05),
    "no_error": (0.45, 0.20),
}
RATES = {kind: {"false_positive": fp, "false_negative": fn} for kind, (fp, fn) in KINDS.items()}
FLAT = {kind: {"false_positive": 0.3, "false_negative": 0.3} for kind in KINDS}


def report_of(noise, questions=None, **options):
    teacher = configs.default().teacher.to_dict()
    questions = generate("dev") if questions is None else questions
    teacher["scripted"] |= {"noise": noise, "labels": list(verdict_rows(questions))}
    teacher["tape"]["mode"] = "off"
    about = {"source": "test", "sha": "0"}
    return calibrate(teacher, questions, about, Options(**options), seed=0, workdir=None)


@functools.lru_cache(maxsize=8)
def report(name):
    return report_of({
        "rates": {"kinds": RATES},
        "halo": {"kinds": RATES, "halo": 0.3},
        "position": {"kinds": FLAT, "position": -0.25},
        "length": {"kinds": FLAT, "length": 0.12},
        "redraw": {"kinds": FLAT, "redraw": 0.5},
        "none": "",
    }[name])  # fmt: skip


def covers(found, value):
    return found["low"] <= value <= found["high"]


def test_error_rates_of_each_kind_are_within_their_intervals():
    found = report("rates")["kinds"]
    inside = [
        (kind, name, covers(found[kind][name], 1 - rate))
        for kind, (fp, fn) in KINDS.items()
        for name, rate in (("specificity", fp), ("sensitivity", fn))
    ]
    assert sum(ok for *_, ok in inside) >= 11, inside  # out of 12 intervals of 95 %
    assert all(found[kind]["n"] > 150 for kind in KINDS)


def test_without_the_noise_the_intervals_do_not_hold_its_rates():
    found = report("none")["kinds"]
    for kind, (fp, fn) in KINDS.items():
        assert found[kind]["sensitivity"]["value"] == found[kind]["specificity"]["value"] == 1.0
        for name, rate in (("specificity", fp), ("sensitivity", fn)):
            if rate > 0.15:  # Wilson's bound of 42 questions without an error is 0.92
                assert not covers(found[kind][name], 1 - rate)


def test_intervals_hold_the_true_rate_as_often_as_they_say():
    """Over 10 sets of questions, with the noise applied directly: about 95 % of 120 intervals."""
    hits = []
    noise = Noise.read({"kinds": RATES})
    for seed in range(10):
        said = [_look(q, noise) for q in generate("dev", seed)]
        found = measure(said, draws=200)["kinds"]
        for kind, (fp, fn) in KINDS.items():
            hits += [covers(found[kind]["specificity"], 1 - fp), covers(found[kind]["sensitivity"], 1 - fn)]
    assert 0.89 < np.mean(hits) < 0.99


def _look(question, noise):
    how = {"kinds": [c.kind for c in question.criteria], "criteria": [c.text for c in question.criteria]}
    rows = tuple(
        tuple(noise.apply(a.truth, question=question.question, answer=a.text, place=0, answers=1, **how))
        for a in question.answers
    )
    return Said(question, Look(rows, (None,) * len(rows), (None,) * len(rows)))


@pytest.mark.parametrize(
    "name, where, value",
    [
        ("halo", ("halo",), 0.3),
        ("rates", ("halo",), 0.0),
        ("position", ("position",), -0.25),
        ("rates", ("position",), 0.0),
        ("length", ("length", "per_doubling"), 0.12),
        ("rates", ("length", "per_doubling"), 0.0),
    ],
)
def test_halo_position_and_length_are_within_their_intervals(name, where, value):
    found = report(name)["bias"]
    for key in where:
        found = found[key]
    assert covers(found, value), found
    assert found["high"] - found["low"] < 0.4
    if value:
        assert not covers(found, 0.0)


def test_a_bias_is_not_found_where_another_one_is():
    assert covers(report("position")["bias"]["halo"], 0.0) or report("position")["bias"]["halo"]["value"] < 0.05
    assert covers(report("length")["bias"]["position"], 0.0)
    assert not covers(report("rates")["bias"]["position"], -0.25)


def test_the_noise_of_a_report_makes_a_judge_that_errs_in_the_same_way():
    """A second judge, made from the first one's report: on ten times as many answers, its figures are within the first
    one's intervals."""
    first = report("halo")
    noise = Noise.read(first["noise"])
    pairs = []
    for seed in range(10):
        for one in (_look(q, noise) for q in generate("dev", seed)):
            for answer, row in zip(one.question.answers, one.first.passed, strict=True):
                pairs += zip(answer.truth, row, strict=True)
    truth, verdict = np.array(pairs).T
    for name, value in (("sensitivity", verdict[truth].mean()), ("specificity", (~verdict[~truth]).mean())):
        assert covers(first["overall"][name], value), (name, value)
    assert noise.halo == first["bias"]["halo"]["value"] and abs(noise.halo - 0.3) < 0.1


GRADES = {
    "flat": 0.4, "common": [[1.0, 0.75], [0.0, 0.25]],
    "by_quality": [[[0.0, 0.5], [1.0, 0.5]], [[0.0, 0.5], [1.0, 0.5]], [[1.0, 1.0]], [[1.0, 1.0]]],
}  # fmt: skip


def test_the_errors_of_grades_are_found_and_made_again():
    found = report_of({"grades": GRADES}, [q for seed in range(3) for q in numbered(seed)], scorer=True, reorder=False)
    assert found["overall"]["accuracy"]["value"] == 1.0 and found["scorer_auc"]["within"]["value"] < 0.9
    noise = found["noise"]["grades"]
    assert noise["flat"] == pytest.approx(0.4, abs=0.13)  # 126 requests
    assert dict(map(tuple, noise["common"]))[1.0] == pytest.approx(0.75, abs=0.2)
    low, *_, high = noise["by_quality"]
    assert dict(map(tuple, low))[1.0] == pytest.approx(0.5, abs=0.15) and high == [[1.0, 1.0]]
    again = report_of(found["noise"], numbered(5), scorer=True, reorder=False)
    assert covers(again["scorer_auc"]["within"], found["scorer_auc"]["within"]["value"])


def numbered(seed):
    """The questions of a seed, whose texts differ from those of other seeds."""
    return [
        dataclasses.replace(q, id=f"{q.id}.{seed}", question=f"{q.question} ({seed})") for q in generate("dev", seed)
    ]


def test_without_a_scorer_the_noise_has_no_grades():
    assert report("rates")["noise"]["grades"] is None


def test_flips_come_from_the_bias_of_position_alone():
    assert report("rates")["flips"]["value"] == 0.0
    assert 0.03 < report("position")["flips"]["value"] < 0.25
    assert report_of("", generate("dev")[:3], reorder=False)["flips"]["value"] is None


def test_what_is_redrawn_is_told_from_what_is_moved():
    assert report("redraw")["flips"]["value"] == pytest.approx(0.5 * 2 * 0.3 * 0.7, abs=0.05)
    assert report("redraw")["noise"]["redraw"] == pytest.approx(0.5, abs=0.12)
    assert report("position")["noise"]["redraw"] < 0.1 and report("rates")["noise"]["redraw"] == 0.0


def test_the_ranking_suffers_with_the_noise():
    assert report("none")["auc"]["within"]["value"] > 0.85  # form criteria also give points
    assert report("rates")["auc"]["within"]["value"] < report("none")["auc"]["within"]["value"]


def test_a_question_that_the_scripted_teacher_does_not_know_stays_unscored():
    teacher = configs.default().teacher.to_dict()
    teacher["tape"]["mode"] = "off"
    questions = generate("dev")[:2]
    found = calibrate(teacher, questions, {"source": "t", "sha": "0"}, Options(), seed=0, workdir=None)
    assert found["overall"]["accuracy"]["value"] is None and found["noise"] is None
    assert found["unscored"]["share"] == 1.0 and found["unscored"]["causes"] == {"malformed": 28}
    assert found["recommendation"][0].startswith("Do not train with this verifier: no verdict could be read")


def test_a_wrong_key_of_the_teacher_stops_at_once():
    teacher = configs.default().teacher.to_dict() | {"provider": "nobody"}
    with pytest.raises(UserError, match="nobody"):
        calibrate(teacher, generate("dev")[:1], {}, Options(), seed=0, workdir=None)
