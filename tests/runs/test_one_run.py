"""A workdir has one run at a time: the second is refused before anything is loaded, a lost lock stops the first."""

from __future__ import annotations

import json
import os

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.train import train
from ropd_jax.training import setup as building
from ropd_jax.training.session import Session
from ropd_jax.types import UserError
from ropd_jax.workdir import one_run as owning
from ropd_jax.workdir.lock import LockLost, locked
from tests.runs.test_train import tiny_config


def test_a_second_run_is_refused_before_a_student_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(building, "load_checkpoint", lambda *a, **k: pytest.fail("it loaded the student"))
    with locked(tmp_path / "run"):
        with pytest.raises(UserError, match=f"pid {os.getpid()} on host .* has been running here since"):
            train(tiny_config(), tmp_path / "run")
        args = ["train", "--config", "experiments/quickstart.py", "--workdir", str(tmp_path / "run")]
        assert cli.main(args) == 2
        err = capsys.readouterr().err
        assert (
            err.startswith("ropd: error: --workdir") and err.count("\n") == 1 and "has been running here since" in err
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("eval", "tiny", "--benchmark", "reasoning_gym:chain_sum", "--k", "1", "--temperature", "0", "--out", "OUT"),
        ("calibrate-judge", "--config", "experiments/quickstart.py", "--out", "OUT"),
        ("collect-references", "--config", "experiments/quickstart.py", "--config.data.size=4", "--out", "OUT"),
    ],
    ids=lambda args: args[0],
)
def test_every_command_that_continues_in_a_directory_has_it_for_itself(args, tmp_path, capsys):
    out = tmp_path / "out"
    with locked(tmp_path / "out.teacher" if args[0] == "collect-references" else out):
        assert cli.main([str(out) if word == "OUT" else word for word in args]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith(f"ropd: error: --out {out}") and "has been running here since" in err[-1]


def test_a_finished_run_on_a_read_only_disk_is_shown(tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text("{}")
    monkeypatch.setattr(owning.os, "access", lambda path, mode: False)
    with owning.one_run(tmp_path) as owner:
        owner.check()
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_mistake_leaves_no_directory(tmp_path):
    with pytest.raises(UserError):
        train(tiny_config(loss__ratio="wrong"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_lost_its_lock_stops_and_writes_nothing_more(tmp_path, monkeypatch):
    """Another process takes over while a step is sampled; the run saves no checkpoint on its way out."""
    workdir, steps = tmp_path / "run", []
    step = Session.step

    def taken_over(self, n, *about):
        steps.append(n)
        if n == 1:
            [record] = (workdir / "lock").iterdir()
            record.rename(record.with_name("7.json"))
            text = (workdir / "lock" / "7.json").read_text()
            token = json.loads(text)["token"]
            (workdir / "lock" / "7.json").write_text(text.replace(token, "another token  "[: len(token)]))
        return step(self, n, *about)

    monkeypatch.setattr(Session, "step", taken_over)
    with pytest.raises(LockLost, match="has taken over this directory") as lost:
        train(tiny_config(steps=3), workdir)
    assert "\n" not in str(lost.value) and steps == [0, 1]
    assert [p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()] == ["1"]
    assert max(json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()) == 1
    assert not (workdir / "groups" / "step_000001.jsonl").exists() and not (workdir / "result.json").exists()
    assert [p.name for p in (workdir / "lock").iterdir()] == ["7.json"]  # the new holder's stays


def test_all_hosts_raise_what_host_0_found(tmp_path, monkeypatch):
    """Of two hosts, the second holds no lock and raises the first one's error."""
    said = iter(["pid 1 on host h is running here"])
    monkeypatch.setattr(owning.hosts, "index", lambda: 1)
    monkeypatch.setattr(owning.hosts, "broadcast_from_host0", lambda problem: next(said))
    with pytest.raises(UserError, match="pid 1 on host h"), owning.one_run(tmp_path / "run"):
        pytest.fail("it ran")
    assert not (tmp_path / "run").exists()
