"""A missing package is reported with the extra that has it."""

from __future__ import annotations

import pytest

from ropd_jax.cli import main
from ropd_jax.types import UserError
from ropd_jax.utils import packages


def test_a_package_that_is_installed_is_no_error():
    packages.need("numpy", extra="view", what="this test")


def test_a_missing_one_names_the_extra():
    with pytest.raises(UserError, match=r"ropd x needs the package no_such_package.*pip install 'ropd_jax\[view\]'"):
        packages.need("no_such_package", extra="view", what="ropd x")


@pytest.mark.parametrize("command", [["view", "runs"], ["view", "runs", "--bundle", "page"], ["serve-teacher"]])
def test_the_servers_name_it_before_anything_starts(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    assert main.main(command) == 2
    assert "pip install 'ropd_jax[view]'" in capsys.readouterr().err
