from __future__ import annotations

import json

import numpy as np
import pytest

from ropd_jax.analysis.signal_study import (
    REWARD,
    analyse,
    auc,
    auc_in_group,
    bad_update,
    criteria_over_training,
    rollouts_of,
)
from ropd_jax.cli.main import main
from ropd_jax.types import Criterion, Judgement, Message, Prompt, Rollout, RolloutGroup, Rubric
from ropd_jax.workdir.groups import GroupsLog, read_groups

RUBRIC = Rubric((Criterion("c1", "sum right", 3, "task"), Criterion("c2", "shows work", 1, "form")))


def write(run, step, rows):
    """One group per row: (prompt id, answers as numbers, verdicts of each answer or None, verdicts of references)."""
    groups, judgements, advantages = [], [], []
    for index, (name, answers, passed, references) in enumerate(rows):
        texts = tuple(Rollout(np.zeros(1, np.int32), np.zeros(1, np.float32), f"Answer: {a}", "stop") for a in answers)
        prompt = Prompt(name, (Message("user", f"q {name}"),), answer="5")
        groups.append(RolloutGroup(prompt, np.zeros(1, np.int32), texts, step, index))
        rewards = tuple(None if v is None else RUBRIC.score(v) for v in passed)
        causes = tuple("missing" if v is None else None for v in passed)
        more = dict(rubric=RUBRIC, passed=tuple(passed), reference_passed=tuple(references))
        judgements.append(Judgement(rewards, causes, references=("r",) * len(references), **more))
        advantages.append([None if r is None else 0.0 for r in rewards])
    GroupsLog(run).write(step, groups, judgements, advantages)


YES, HALF, NO = (True, True), (True, False), (False, False)


@pytest.fixture
def run(tmp_path):
    write(tmp_path, 0, [("p", [5, 4, 5, 3], [YES, NO, HALF, None], [YES, YES]), ("q", [5, 5], [NO, YES], [YES, HALF])])
    write(tmp_path, 1, [("p", [4, 5], [YES, NO], [YES])])
    return tmp_path


def test_auc_is_the_share_of_pairs_in_the_right_order():
    values, right = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False])
    assert auc(values, right) == (1 + 1 + 0.5 + 1) / 4
    assert auc(-values, right) == 1 - 3.5 / 4
    assert auc(values, np.ones(4, bool)) is None
    rng = np.random.default_rng(0)
    values, right = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in values[right] for b in values[~right]]
    assert auc(values, right) == pytest.approx(np.mean(pairs))


def test_within_groups_only_pairs_of_one_prompt_count():
    values, right = np.array([0.2, 0.1, 0.9, 0.8]), np.array([True, False, False, True])
    group = np.array([0, 0, 1, 1])
    assert auc_in_group(values, right, group) == 0.5
    assert auc(values, right) == 0.5
    assert auc_in_group(values, right, np.array([0, 1, 2, 3])) is None


def test_a_bad_update_goes_against_correctness_and_a_zero_advantage_is_none():
    values = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 0.5])
    right = np.array([True, False, True, False, True, False])
    group = np.array([0, 0, 1, 1, 2, 2])
    assert bad_update(values, right, group) == 0.5  # group 1 is wrong way round, group 2 moves nothing
    assert bad_update(values[4:], right[4:], group[4:]) is None


def test_a_run_by_hand(run):
    found, rollouts = analyse(list(read_groups(run)), {})
    study = found["signals"][REWARD]
    assert (study["rollouts"], study["left_out"]) == (7, 1)  # one rollout is unscored
    assert rollouts.right == (True, False, True, False, True, True, False, True)
    # right: 1, 0.75, 0, 1, 0; wrong: 0, 1 -> wins 1 + 0.5 ... of 10 pairs
    assert study["auc"] == pytest.approx((3 + 2 * 0.5 + 2 * 0.5) / 10)
    assert study["auc_interval"][0] <= study["auc"] <= study["auc_interval"][1]
    assert [row["auc"] for row in found["over_training"][REWARD]] == [pytest.approx((3 + 0.5) / 4), 0.0]
    assert study["bad_update"] == pytest.approx(3 / 7)  # q's NO, and both of step 1


def test_criteria_over_training_by_category_and_agreement(run):
    first, second = criteria_over_training(list(read_groups(run)))
    assert first["pass_rate"] == {"form": 2 / 5, "task": 3 / 5}
    # c1: both groups' references say True; c2: p's say True, q's are a tie
    assert first["agreement"] == pytest.approx((3 + 1) / (5 + 3))
    assert second["agreement"] == 0.5 and second["reference_pass_rate"] == 1.0


def test_further_signals_are_joined_by_step_prompt_and_sample(run):
    scores = {(0, "p", 0): {"logp": -1.0}, (0, "p", 1): {"logp": -0.5}, (1, "p", 1): {"logp": -3.0}}
    r = rollouts_of(list(read_groups(run)), scores)
    assert np.isnan(r.signals["logp"]).sum() == 5
    found, _ = analyse(list(read_groups(run)), scores)
    assert found["signals"]["logp"]["auc"] == 0.0 and found["signals"]["logp"]["left_out"] == 5


def test_the_command_leaves_data_and_figures(run, tmp_path, capsys):
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps({"step": 0, "prompt_id": "p", "sample": 0, "logp": -1.0}) + "\n")
    assert main(["analyze", str(run), f"--scores={file}"]) == 0
    assert "rubric" in capsys.readouterr().out
    found = json.loads((run / "analysis" / "analysis.json").read_text())
    assert set(found["signals"]) == {REWARD, "logp"}
    assert (run / "analysis" / "analysis.png").read_bytes()[1:4] == b"PNG"
    file.write_text(json.dumps({"step": 9, "prompt_id": "p", "sample": 0, "logp": -1.0}) + "\n")
    assert main(["analyze", str(run), f"--scores={file}"]) == 2
    assert "matches no stored rollout" in capsys.readouterr().err
    assert main(["analyze"]) == 2 and main(["analyze", str(tmp_path / "none")]) == 2
