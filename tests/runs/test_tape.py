"""Whole runs on a tape: a replay is free and equals the run, digit for digit; a run stops at its budget."""

from __future__ import annotations

import json

import pytest

from ropd_jax.teacher import BudgetError, Tape
from ropd_jax.train import train
from ropd_jax.types import UserError
from tests.helpers import serving, trees_max_diff
from tests.runs.test_train import finished_params, groups_of, tiny_config


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run with every kind of failure that ends a request, and its files."""
    workdir = tmp_path_factory.mktemp("recorded") / "run"
    cfg = tiny_config(teacher__scripted__fault_rate=0.3, teacher__attempts=1, teacher__max_failed_frac=1.0)
    train(cfg, workdir)
    return workdir


def test_a_replay_gives_the_same_rewards_and_the_same_parameters(recorded, tmp_path):
    cfg = tiny_config(
        teacher__tape__mode="replay",
        teacher__tape__path=str(recorded / "tape.sqlite"),
        teacher__max_failed_frac=1.0,
    )
    train(cfg, tmp_path / "replay")
    groups = groups_of(recorded)
    unscored = sum(a["reward"] is None for g in groups for a in g["answers"])
    assert 0 < unscored < 32  # failures are replayed too
    assert groups_of(tmp_path / "replay") == groups
    assert trees_max_diff(finished_params(recorded, 2), finished_params(tmp_path / "replay", 2)) == 0.0
    last = metrics_of(tmp_path / "replay")[2]
    assert last["teacher/spent_calls"] == 0 and last["teacher/cost_usd"] == 0 and last["teacher/taped"] > 0


def test_a_paid_run_replays_without_key_or_server(tmp_path, monkeypatch):
    with serving() as address:
        changes = dict(teacher__provider="openai", teacher__base_url=address + "/v1")
        train(tiny_config(**changes), tmp_path / "run")
    row = metrics_of(tmp_path / "run")[2]
    assert row["teacher/cost_usd"] is None and row["teacher/unpriced_calls"] == row["teacher/spent_calls"] > 0
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    changes = dict(
        teacher__provider="openai", teacher__tape__mode="replay"
    )  # no base_url: OpenAI's own, which needs a key
    cfg = tiny_config(**changes, teacher__tape__path=str(tmp_path / "run" / "tape.sqlite"))
    train(cfg, tmp_path / "replay")
    assert groups_of(tmp_path / "replay") == groups_of(tmp_path / "run")
    assert trees_max_diff(finished_params(tmp_path / "run", 2), finished_params(tmp_path / "replay", 2)) == 0.0


def test_a_replay_of_another_config_stops_and_says_what_differs(recorded, tmp_path):
    cfg = tiny_config(
        teacher__tape__mode="replay",
        teacher__tape__path=str(recorded / "tape.sqlite"),
        teacher__verifier__temperature=0.5,
        teacher__max_failed_frac=1.0,
    )
    with pytest.raises(UserError, match=r"no answer to this verify request.*temperature: 0.0 there, 0.5 here"):
        train(cfg, tmp_path / "replay")


def test_a_spent_budget_stops_with_a_checkpoint_and_goes_on_with_a_larger_one(tmp_path):
    plain = tmp_path / "plain"
    train(tiny_config(), plain)
    calls = metrics_of(plain)[2]["teacher/spent_calls"]
    run = tmp_path / "run"
    with pytest.raises(BudgetError, match=r"teacher\.budget\.calls=30 is reached.*Spent: 30 calls"):
        train(tiny_config(teacher__budget__calls=30), run)
    assert finished_params(run, 1) and not (run / "result.json").exists()
    train(tiny_config(teacher__budget__calls=1000), run)
    assert groups_of(run) == groups_of(plain)
    assert trees_max_diff(finished_params(run, 2), finished_params(plain, 2)) == 0.0
    assert metrics_of(run)[2]["teacher/spent_calls"] == calls  # nothing was asked twice
    tape = Tape(run / "tape.sqlite", read_only=True)
    assert tape.query("SELECT count(*) FROM replies") == [(calls,)]
    tape.close()


def test_a_cap_in_dollars_without_a_price_is_refused_before_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
    with pytest.raises(UserError, match=r"budget.usd is 1, but no price is known for rubric's model 'scripted'"):
        train(tiny_config(teacher__provider="openai", teacher__budget__usd=1.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
