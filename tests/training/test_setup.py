"""The order of a run's checks: cheap ones come first."""

from __future__ import annotations

import pytest

from ropd_jax.training import setup as setup_lib
from ropd_jax.types import UserError
from tests.runs.test_train import tiny_config


def test_values_then_files_then_the_teacher_then_weights(tmp_path, monkeypatch):
    order = []

    def noted(name, stop=False):
        real = getattr(setup_lib, name)

        def call(*args, **how):
            order.append(name)
            if stop:
                raise UserError("enough")
            return real(*args, **how)

        monkeypatch.setattr(setup_lib, name, call)

    for name in ("check_values", "check_claim", "run_teacher", "outline", "load_questions", "check_models"):
        noted(name)
    noted("load_checkpoint", stop=True)
    with pytest.raises(UserError, match="enough"):
        setup_lib.setup(tiny_config(), tmp_path / "run")
    first = list(dict.fromkeys(order))
    assert first == ["check_values", "check_claim", "run_teacher", "outline", "load_questions", "check_models",
                     "load_checkpoint"]  # fmt: skip
    assert order.index("check_models") > len(order) - 3 and not (tmp_path / "run").exists()
