"""A finished run read back with `open_run`: config, groups, metrics, result, student, and tables for pandas."""

from __future__ import annotations

import json
import sys
import types

import jax
import numpy as np
import pytest

import ropd_jax as ropd
from experiments import quickstart
from tests.runs.test_train import tiny_config


def tiny_run():
    """Two steps of the quickstart that write no checkpoint between them."""
    every = quickstart.get_config().checkpoint.every
    return tiny_config(eval__prompts_at_once=32, eval__sampled=False, checkpoint__every=every).unlock()


@pytest.fixture(scope="module")
def student():
    return ropd.load_student("tiny")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(directory, result) of a run of two steps, with a class as its method."""
    where = tmp_path_factory.mktemp("api") / "run"
    return where, ropd.train(tiny_run(), where, method=Length)


class Length(ropd.Method):
    """Short answers are better; the last rollout is never scored."""

    asks = types.MappingProxyType({})

    async def judge(self, teacher, group):
        rewards = tuple(1 / len(r.tokens_T) for r in group.rollouts[:-1])
        return ropd.Judgement((*rewards, None), (*(None for _ in rewards), "malformed"))


def test_train_takes_a_class(finished):
    where, result = finished
    assert result.workdir == where and result["steps"] == 2
    assert json.loads((where / "config.json").read_text())["method"].endswith(".Length")
    assert "optimizer steps" in str(result)
    assert ropd.train(tiny_run(), where, method=Length).values == result.values  # a finished run returns at once


def test_a_finished_run_is_read_back(finished, student):
    where, result = finished
    run = ropd.open_run(str(where))
    assert run.config.sampling.rollouts == 4 and run.config.data.prompts_per_step == 4
    assert run.result.values == json.loads(json.dumps(result.values))
    assert [g.step for g in run.groups()] == [0] * 4 + [1] * 4
    (group, *_) = run.groups(steps=(1, 2))
    assert group.step == 1 and group.judgement.rewards[-1] is None and group.judgement.causes[-1] == "malformed"
    assert group.judgement.rewards[0] > 0 and group.prompt.answer is not None
    steps, values = run.metrics()["reward/mean"]
    assert steps == [1, 2] and values[0] == pytest.approx(
        np.mean([r for g in run.groups(steps=(0, 1)) for r in g.judgement.rewards[:-1]]), rel=1e-5
    )
    trained, initial = run.student(), run.student(step=0)
    jax.tree.map(np.testing.assert_array_equal, initial.params, student.params)
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), trained.params, initial.params)
    assert max(jax.tree.leaves(changed)) > 0
    with pytest.raises(ropd.UserError, match=r"has no config.json; expected the directory of a run"):
        ropd.open_run(where / "groups")
    with pytest.raises(ropd.UserError, match="no checkpoint after step 7"):
        run.student(step=7)


class Frame:
    """The few calls of pandas that the tables make, on plain Python."""

    def __init__(self, data):
        self.data, self.types, self.name, self.sorted = data, {}, None, False

    def sort_index(self):
        self.sorted = True
        return self

    def rename_axis(self, name):
        self.name = name
        return self

    def astype(self, types):
        self.types = types
        return self


def test_tables_for_pandas(finished, monkeypatch):
    run = ropd.open_run(finished[0])
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    table = run.groups_frame()
    assert len(table.data) == 2 * 4 * 4 and table.types == {"reward": float, "advantage": float}
    first, last = table.data[0], table.data[3]
    assert (first["step"], first["rollout"], last["rollout"]) == (0, 0, 3)
    assert first["reward"] > 0 and last["reward"] is None and last["unscored"] == "malformed"
    assert set(first) == {"step", "prompt_id", "rollout", "question", "gold_answer", "answer", "reward", "advantage",
                          "unscored"}  # fmt: skip
    assert len(run.groups_frame(steps=(1, 2)).data) == 16
    metrics = run.metrics_frame()
    assert metrics.sorted and metrics.name == "step" and set(metrics.data["reward/mean"]) == {1, 2}
    monkeypatch.setitem(sys.modules, "pandas", None)
    for table in (run.groups_frame, run.metrics_frame):
        with pytest.raises(ropd.UserError, match=r"this table needs pandas: pip install 'ropd_jax\[notebooks\]'"):
            table()


def test_tables_with_pandas(finished):
    pytest.importorskip("pandas")
    run = ropd.open_run(finished[0])
    table = run.groups_frame()
    assert table.reward.isna().sum() == 8 and table[table.step == 0].reward.count() == 12
    assert list(run.metrics_frame()["reward/mean"].dropna().index) == [1, 2]
