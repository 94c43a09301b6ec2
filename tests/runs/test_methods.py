"""Whole runs of each method, tiny: its requests, its training data, and that a resumed run is the same run."""

from __future__ import annotations

import json

import pytest

from ropd_jax.train import train
from tests.runs.test_train import tiny_config

RUNS = {
    "rlvr": dict(method="rlvr", loss__overlong="mask", sampling__max_tokens=16),
    "ovd": dict(method="ovd", ovd__mode="filter", ovd__threshold=1, teacher__scripted__slip_rate=0.3, loss__is_cap=2.0),
    "rar": dict(method="rar", loss__ratio="sequence", loss__kl_coef=0.01, loss__kl_kind="k2", loss__entropy_coef=0.01),
    "pairs": dict(ropd__rubric_per="pair", loss__aggregation="seq_mean_token_sum_norm"),
    "replaced": dict(method="rlvr", sampling__rollouts=2, sampling__resample=3),
}


def run(name, workdir, **changes):
    train(tiny_config(steps=1, **(RUNS[name] | changes)), workdir)
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {k: v for row in metrics for k, v in row.items()}, json.loads((workdir / "result.json").read_text())


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("rlvr", {}),
        ("ovd", {"reference": 16, "score": 4}),
        ("rar", {"reference": 16, "rubric": 4, "verify": 4}),
    ],
)
def test_a_method_runs_and_asks_what_it_says(name, calls, tmp_path):
    metrics, result = run(name, tmp_path)
    got = {role: int(n) for role in ("reference", "rubric", "verify", "score")
           if (n := result["teacher"].get(f"teacher/calls_{role}"))}  # fmt: skip
    assert got == calls
    assert metrics["update/count"] == 1 and metrics["update/grad_norm"] > 0 and result["groups_unscored"] == 0
    assert metrics["update/logp_gap_max"] < 1e-3  # of what was sampled; demonstrations have no gap


def test_each_rollout_of_a_pair_has_its_own_rubric_in_the_groups_file(tmp_path):
    run("pairs", tmp_path)
    rows = [json.loads(line) for line in next((tmp_path / "groups").glob("*.jsonl")).read_text().splitlines()]
    for answer in (a for row in rows for a in row["answers"]):
        passed = sum(c["points"] for c in answer["rubric"] if answer["verdicts"][c["id"]])
        assert answer["reward"] == pytest.approx(passed / sum(c["points"] for c in answer["rubric"]))


def test_groups_of_equal_rewards_are_replaced_in_place_and_bounded(tmp_path):
    metrics, _ = run("replaced", tmp_path)
    assert 0 < metrics["group/replaced"] <= 4 and metrics["group/replaced"] <= metrics["group/resampled"] <= 12
    rows = [json.loads(line) for line in next((tmp_path / "groups").glob("*.jsonl")).read_text().splitlines()]
    assert [row["group"] for row in rows] == [0, 1, 2, 3] and len({row["prompt_id"] for row in rows}) == 4
    equal = sum(len({a["reward"] for a in row["answers"]}) == 1 for row in rows)
    assert equal / 4 == metrics["group/zero_variance_frac"] < 1
