"""Whole runs on several sources, with a curriculum and with exact grades in the reward, and that they resume."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest

from ropd_jax.teacher.scripted.client import ScriptedClient
from ropd_jax.train import train
from ropd_jax.utils.interrupt import Interrupted
from tests.helpers import trees_max_diff
from tests.runs.test_train import finished_params, groups_of, tiny_config

SOURCES = (
    {"name": "two", "options": {"min_terms": 2, "max_terms": 2, "max_digits": 1}, "weight": 1, "size": 12},
    {"name": "three", "options": {"min_terms": 3, "max_terms": 3, "max_digits": 1}, "weight": 3, "size": 40},
)


def test_a_run_logs_each_part_and_resamples_on_the_mixed_reward(tmp_path):
    cfg = tiny_config(steps=2, rewards__exact_weight=0.5, sampling__resample=1)
    train(cfg, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [r for r in rows if "reward/mean" in r]
    assert len(seen) == 2
    for row in seen:
        mixed = 0.5 * row["reward/rubric_mean"] + 0.5 * row["reward/exact_mean"]
        assert row["reward/mean"] == pytest.approx(mixed, abs=1e-6) and row["reward/without_exact_frac"] == 0.0
    for file in (tmp_path / "groups").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            for a in json.loads(line)["answers"]:
                assert math.isclose(a["reward"], 0.5 * a["method_reward"] + 0.5 * a["exact"], abs_tol=1e-9)
    assert np.isfinite(seen[-1]["update/loss"])


@pytest.mark.parametrize("staleness", (0, 1))
def test_a_mixture_with_a_curriculum_and_exact_grades_resumes_bit_for_bit(staleness, tmp_path, monkeypatch):
    cfg = tiny_config(
        steps=4, data__sources=SOURCES, data__curriculum=4.0, data__heldout_size=8, stream__staleness=staleness,
        stream__groups=2 * staleness, checkpoint__every=1, checkpoint__keep=9, rewards__exact_weight=0.3,
    )  # fmt: skip
    train(cfg, tmp_path / "whole")
    real, seen, sent = ScriptedClient.chat, [], []

    async def chat(self, request):
        if request.purpose == "verify":
            seen.append(1)
            if len(seen) == 4 * 2 + 1 and not sent:  # in the third step
                sent.append(1)
                os.kill(os.getpid(), signal.SIGTERM)
        return await real(self, request)

    monkeypatch.setattr(ScriptedClient, "chat", chat)
    with pytest.raises(Interrupted):
        train(cfg, tmp_path / "run")
    train(cfg, tmp_path / "run")
    assert groups_of(tmp_path / "run") == groups_of(tmp_path / "whole")
    assert trees_max_diff(finished_params(tmp_path / "run", 4), finished_params(tmp_path / "whole", 4)) == 0.0
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    rows = [r for r in rows if "source/two_groups" in r]
    assert [(r["source/two_groups"], r["source/three_groups"]) for r in rows] == [(1, 3)] * 4
    assert all(r["source/three_share"] == 0.75 and r["source/two_reward_mean"] is not None for r in rows)
    assert all(r["reward/exact_mean"] is not None for r in rows)
    assert rows[-1]["curriculum/seen_frac"] > 0 and 0.25 <= rows[-1]["curriculum/factor_min"] <= 1
