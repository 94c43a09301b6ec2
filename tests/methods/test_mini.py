"""experiments/mini.py: every method, setting and variant can start, and differs only in the documented keys."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

from ropd_jax.configs import load_config
from ropd_jax.methods import load_method
from ropd_jax.training.setup import check_config
from ropd_jax.types import UserError
from ropd_jax.workdir.config import flatten

FILE = pathlib.Path(__file__).parents[2] / "experiments" / "mini.py"


def module():
    spec = importlib.util.spec_from_file_location("mini", FILE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


MINI = module()


@pytest.mark.parametrize("variant", MINI.VARIANTS)
def test_every_method_starts_in_every_setting_and_variant(variant):
    for method in MINI.METHODS:
        for setting in MINI.SETTINGS:
            cfg = load_config(f"{FILE}:method={method},setting={setting},variant={variant},teacher=tiny")
            check_config(cfg)
            if variant == "dapo" and method in ("gad", "ovd_filter"):
                with pytest.raises(UserError, match=r"sampling.resample|loss.overlong='shape'"):
                    load_method(cfg.method, cfg)
            else:
                load_method(cfg.method, cfg)


def test_methods_differ_from_ropd_in_their_own_settings_alone():
    plain = flatten(load_config(f"{FILE}:method=ropd").to_dict())
    for method, keys in MINI.METHODS.items():
        cfg = flatten(load_config(f"{FILE}:method={method},teacher=tiny").to_dict())
        allowed = set(keys) | ({"lopd.checkpoint"} if method in MINI.WHITE_BOX else set())
        assert {key for key in cfg if cfg[key] != plain[key]} == allowed


def test_methods_without_a_text_teacher_are_those_that_ask_nothing():
    asking = {
        m: load_method(c.method, c).asks for m in MINI.METHODS if (c := load_config(f"{FILE}:method={m},teacher=x"))
    }
    assert {m for m, asks in asking.items() if not asks} == set(MINI.UNTAUGHT)


def test_a_name_that_is_not_there_is_listed():
    with pytest.raises(UserError, match=r"method='rodp'.*'t_judge'"):
        load_config(f"{FILE}:method=rodp")
