"""The time of a save: bytes over the plan's rates."""

from __future__ import annotations

import jax
import pytest

from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.plan import chips, saving
from ropd_jax.plan.chips import Topology
from ropd_jax.plan.shapes import model_config
from tests.plan.test_report import ONE_LAYER, tiny_config


def planned(model_cfg, chip_count, busy_s=None, **changes):
    topology = Topology(chips.CPU, (chip_count,))
    return saving.saving(tiny_config(**changes), model_cfg, mesh_lib.make_mesh(-1, 1), topology, busy_s)


def test_a_checkpoint_holds_parameters_and_two_moments_and_the_policy_of_a_step_ahead():
    found = planned(ONE_LAYER, 4)
    ahead = planned(ONE_LAYER, 4, stream__staleness=1, stream__groups=8, loss__is_cap=2.0)
    params = ahead.bytes - found.bytes
    assert found.bytes == pytest.approx(3 * params, abs=64)  # and the optimizer's counters
    assert found.hosts == 1 and planned(ONE_LAYER, 16).hosts == 4
    box = chips.parse_topology("gpu:h100x8")
    assert saving.saving(tiny_config(), ONE_LAYER, mesh_lib.make_mesh(-1, 1), box, None).hosts == 1


def test_a_4b_student_on_one_and_on_four_hosts():
    qwen = model_config("Qwen/Qwen3-4B")
    one, four = planned(qwen, 4), planned(qwen, 16, busy_s=2.0)
    assert one.bytes == pytest.approx(48.3e9, rel=0.01)
    assert one.bucket_s == pytest.approx(one.bytes / 8e9 + 2 * one.bytes / 1e9)
    assert four.disk_s == pytest.approx(one.disk_s / 4)
    assert "more than a grace period of 30 s" in saving.line(one)
    assert "within a grace period of 30 s" in saving.line(four) and four.bucket_s + 2.0 < 30
    assert "48.3 GB, 12.1 GB by each of 4 hosts" in saving.line(four) and "assumed" in saving.line(four)


def test_moments_of_one_byte_shorten_it():
    assert jax.device_count() == 8
    assert planned(ONE_LAYER, 4, optim__moments="int8").bytes < 0.6 * planned(ONE_LAYER, 4).bytes
