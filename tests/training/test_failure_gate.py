"""The gate that stops a run whose teacher fails: when it closes, what it reports, and how a run continues."""

from __future__ import annotations

import json

import optax
import pytest

from ropd_jax.train import train
from ropd_jax.training.failure_gate import FailureGate, TooManyFailures
from ropd_jax.training.sections import OptimConfig
from ropd_jax.types import UserError
from ropd_jax.workdir.checkpoint import Checkpoints
from tests.helpers import restore_raw
from tests.runs.test_train import tiny_config

LOST, KEPT = ["timeout", "timeout"], [None, None]


def fed(gate, *groups):
    for group in groups:
        gate.add(group, failed=None not in group)
    return gate


def test_it_shuts_when_more_than_the_share_of_the_whole_window_has_failed():
    gate = fed(FailureGate(0.5, 4), LOST, LOST)
    gate.check()  # 2 of 4 is not more than half, although all groups so far have failed
    with pytest.raises(TooManyFailures, match="3 of the last 3 groups could not be scored"):
        fed(gate, LOST).check()


def test_old_groups_leave_the_window():
    gate = fed(FailureGate(0.5, 4), LOST, LOST, KEPT, KEPT, LOST, KEPT)
    assert gate.failed == 1 and gate.as_metrics() == {"teacher/failed_frac": 0.25}
    gate.check()


def test_a_group_with_some_unscored_rollouts_is_in_the_table_and_not_in_the_share():
    gate = FailureGate(0.0, 8)
    gate.add(["missing", None, None], failed=False)
    gate.check()
    gate.add(["rate_limited"] * 3, failed=True)
    gate.add(["rate_limited", "malformed", None], failed=True)
    with pytest.raises(TooManyFailures) as e:
        gate.check()
    rows = [line.split() for line in str(e.value).splitlines()[2:]]
    assert [r[:3] for r in rows] == [["rate_limited", "4", "2"], ["missing", "1", "1"], ["malformed", "1", "1"]]
    assert "lower teacher.concurrency" in str(e.value) and "teacher.max_failed_frac=0" in str(e.value)


def test_a_share_of_one_never_stops_a_run():
    fed(FailureGate(1.0, 3), *[LOST] * 10).check()


def test_the_window_goes_on_after_a_restore_and_starts_anew_after_a_stop():
    gate = fed(FailureGate(0.5, 4), LOST, KEPT)
    other = FailureGate(0.5, 4)
    other.restore(json.loads(json.dumps(gate.state())))
    with pytest.raises(TooManyFailures):
        fed(other, LOST, LOST).check()
    assert other.state() == [] and other.as_metrics() == {}
    fed(other, LOST).check()


@pytest.mark.parametrize("share, window, name", [(-0.1, 4, "max_failed_frac"), (1.1, 4, "max_failed_frac"),
                                                 (0.5, 0, "failed_window")])  # fmt: skip
def test_numbers_out_of_range_are_named(share, window, name):
    with pytest.raises(UserError, match=rf"teacher\.{name} is .*; expected"):
        FailureGate(share, window)


def test_a_run_whose_teacher_is_down_saves_and_raises_with_the_table(tmp_path):
    cfg = tiny_config(
        steps=4, teacher__scripted__fault_rate=1.0, teacher__attempts=1, teacher__failed_window=4,
        teacher__tape__mode="off",
    )  # fmt: skip
    with pytest.raises(TooManyFailures, match=r"(?s)4 of the last 4 groups could not be scored.*what helps"):
        train(cfg, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=9)
    assert checkpoints.latest() == 1  # after one step of 4 prompts
    _, host = restore_raw(checkpoints, 1)
    assert host["failures"] == [] and host["groups_unscored"] == 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert next(r["teacher/failed_frac"] for r in rows if "teacher/failed_frac" in r) == 1.0
    cfg = tiny_config(
        steps=4, teacher__scripted__fault_rate=1.0, teacher__attempts=1, teacher__failed_window=4,
        teacher__tape__mode="off", teacher__max_failed_frac=1.0,
    )  # fmt: skip
    for _ in range(2):  # the same run continues with another bound; a run that scored nothing never has a result
        with pytest.raises(TooManyFailures, match=r"(?s)none of the run's 16 groups could be scored.*what helps"):
            train(cfg, tmp_path / "run")
        assert not (tmp_path / "run" / "result.json").exists()


def test_a_student_that_becomes_nan_stops_the_run_and_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(OptimConfig, "make", lambda self, steps: optax.sgd(float("inf")))
    with pytest.raises(FloatingPointError, match="step 0: parameters of the student are NaN or infinite"):
        train(tiny_config(steps=2), tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints", keep=9).latest() is None
    assert not (tmp_path / "run" / "result.json").exists()
