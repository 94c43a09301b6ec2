"""The config of a run's directory: keys of earlier versions."""

from __future__ import annotations

import json

import pytest

from ropd_jax import configs
from ropd_jax.types import UserError
from ropd_jax.workdir.config import claim, stored_config


def earlier_version(**changes):
    """The default config under the names of the earlier version."""
    cfg = configs.default().to_dict()
    cfg["ropd"]["told"] = not cfg["ropd"].pop("blind")
    cfg["stream"]["carry_after_s"] = cfg["stream"].pop("straggler_timeout_s")
    cfg["teacher"]["scripted"]["book"] = cfg["teacher"]["scripted"].pop("answer_key")
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        cfg[section][name] = value
    return cfg


def test_a_run_of_an_earlier_version_is_read_with_the_present_names(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(earlier_version(ropd__told=True, stream__carry_after_s=3.0)))
    cfg = stored_config(tmp_path)
    assert cfg.ropd.blind is False and cfg.stream.straggler_timeout_s == 3.0 and cfg.teacher.scripted.answer_key == ""
    assert "told" not in cfg.ropd and "carry_after_s" not in cfg.stream


def test_the_same_config_under_its_old_names_is_the_same_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(earlier_version()))
    claim(tmp_path, configs.default().to_dict())
    other = configs.default()
    other.ropd.blind = False
    with pytest.raises(UserError, match=r"ropd\.blind: True there, False now"):
        claim(tmp_path, other.to_dict())


def test_every_renamed_key_names_one_that_exists():
    known = configs.default()
    for name in configs.RENAMED.values():
        assert configs.lookup(known, name.removesuffix(configs.OPPOSITE)) is not None
