"""A run that cannot learn from its judge says so."""

from __future__ import annotations

import pytest

from ropd_jax.train import train
from ropd_jax.training.flat import GROUPS, FlatRewards
from ropd_jax.types import Criterion, Judgement, Rubric
from tests.runs.test_train import tiny_config

RUBRIC = Rubric((Criterion("c1", "Names 42.", 1), Criterion("c2", "Is short.", 1)))
ALL_TRUE = '{"kinds": {"other": {"false_positive": 1.0, "false_negative": 0.0}}}'


def judged(*rows):
    rewards = tuple(None if row is None else sum(row) / 2 for row in rows)
    return Judgement(rewards=rewards, causes=(None,) * len(rows), rubric=RUBRIC, passed=rows)


def warned(*groups):
    """The warnings after each of the groups: (judgement, whether its rewards differ)."""
    flat, found = FlatRewards(), []
    for judgement, informative in groups:
        flat.add(judgement, informative=informative)
        found.append(flat.warning())
    return [text for text in found if text]


def test_a_judge_that_calls_everything_true_is_named_once():
    always = [(judged((True, True), None, (True, True)), False)] * (3 * GROUPS)
    (text,) = warned(*always)
    assert text.startswith(f"{GROUPS} of the last {GROUPS} scored groups have equal rewards (mean 1.00)")
    assert "calls 100% of all verdicts true" in text and "calibrate-judge" in text


def test_a_judge_that_calls_nothing_true_is_named():
    assert "calls 100% of all verdicts false" in warned(*[(judged((False, False), (False, False)), False)] * GROUPS)[0]


def test_equal_rewards_of_differing_verdicts_or_of_grades_have_another_cause():
    mixed = judged((True, False), (True, False))
    grades = Judgement(rewards=(1.0, 1.0), causes=(None, None))
    own = Judgement(rewards=(0.5, 0.5), causes=(None, None), parts=(mixed, mixed))  # a rubric for each rollout
    for judgement in (mixed, grades, own):
        (text,) = warned(*[(judgement, False)] * GROUPS)
        assert "alike to this judge" in text


def test_no_warning_while_some_groups_differ_and_again_after_they_did():
    flat, differs = (judged((True, True), (True, True)), False), (judged((True, True), (True, False)), True)
    few = (flat,) * (GROUPS - 1)
    assert warned(*few) == [] and warned(*([*[flat] * 6, differs] * 6)) == []
    assert len(warned(*few, flat, *[differs] * 4, *[flat] * GROUPS)) == 1
    assert len(warned(*few, flat, *[differs] * 9, *[flat] * GROUPS)) == 2
    assert (
        warned(*[(Judgement(rewards=(None, None), causes=(None, None)), False)] * 3 * GROUPS) == []
    )  # a method without rewards


@pytest.mark.parametrize("noise", [ALL_TRUE, ""])
def test_a_run_warns_of_equal_rewards(tmp_path, caplog, noise):
    train(tiny_config(steps=4, teacher__scripted__noise=noise, checkpoint__every=4), tmp_path)
    said = [r.getMessage() for r in caplog.records if "equal rewards" in r.getMessage()]
    assert len(said) == (1 if noise else 0)
    assert all(text.startswith("step 3: 16 of the last 16") and "100% of all verdicts true" in text for text in said)
