"""The tape of a test."""

from __future__ import annotations

import pytest

from ropd_jax.teacher import Tape


@pytest.fixture
def tape(tmp_path):
    tape = Tape(tmp_path / "tape.sqlite")
    yield tape
    tape.close()
