"""One config's compiler options on each platform."""

from __future__ import annotations

import pytest

from ropd_jax.parallel.xla_options import xla_options
from ropd_jax.training import validate
from ropd_jax.types import UserError


def test_options_of_other_platforms_are_left_out():
    text = "xla_tpu_a=50 xla_gpu_b=true xla_cpu_c=2 xla_enable_d=x"
    assert xla_options(text, "tpu") == {"xla_tpu_a": "50", "xla_enable_d": "x"}
    assert xla_options(text, "cpu") == {"xla_cpu_c": "2", "xla_enable_d": "x"}
    assert xla_options("", "tpu") == {}


@pytest.mark.parametrize("text", ["--xla_tpu_a=5", "xla_tpu_a", "tpu_a=5", "xla_tpu_a=", "xla_a=1,xla_b=2"])
def test_what_is_no_option_is_named(text):
    with pytest.raises(UserError, match="expected words like xla_tpu_scheduler"):
        xla_options(text, "cpu")


def test_an_option_that_the_compiler_does_not_know_is_said_before_the_run():
    validate.check_xla_options("xla_tpu_no_such_thing=1")  # options of another platform are not checked on this machine
    with pytest.raises(UserError, match="No such compile option: 'xla_cpu_no_such_thing'"):
        validate.check_xla_options("xla_cpu_no_such_thing=1")
