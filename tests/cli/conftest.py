"""Fixtures of the command line: a run that is only recorded, and the one-line error of a mistake."""

from __future__ import annotations

import pathlib
import sys
import types

import pytest

from ropd_jax.cli import main as cli
from ropd_jax.workdir.result import Result
from tests.helpers import CONFIG_FILE


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Replaces ``ropd_jax.train`` by a recorder; returns (a config file, the calls)."""
    calls = []
    fake = types.ModuleType("ropd_jax.train")
    fake.train = lambda config, workdir: calls.append((config, workdir)) or Result(pathlib.Path(workdir), {})
    monkeypatch.setitem(sys.modules, "ropd_jax.train", fake)
    monkeypatch.setattr("ropd_jax.train", fake, raising=False)
    path = tmp_path / "quick.py"
    path.write_text(CONFIG_FILE)
    return str(path), calls


@pytest.fixture
def error_of(capsys):
    """Runs a command that must fail because of the user's mistake; returns its one-line error."""

    def run(*args):
        assert cli.main(args) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("ropd: error: ")
        assert err.count("\n") == 1
        return err.removeprefix("ropd: error: ").strip()

    return run
