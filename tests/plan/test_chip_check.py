"""The check of a chip: its small form on CPU devices, its report on a curve, and a section that fails."""

from __future__ import annotations

import functools
import json
import types

import jax
import pytest

from benchmarks import chip_check
from ropd_jax.plan import measure
from ropd_jax.plan.chips import CPU


def device(kind: str, coords=None):
    return types.SimpleNamespace(device_kind=kind, coords=coords)


def test_devices_are_recognised_by_their_kind():
    slice_ = [device("TPU v5 lite", (x, y, 0)) for x in range(2) for y in range(4)]
    assert str(chip_check.topology_here(slice_)) == "v5e:2x4"
    assert str(chip_check.topology_here([device("TPU v5", (x, 0, 0)) for x in range(2)])) == "v5p:2x1x1"
    assert str(chip_check.topology_here([device("NVIDIA H100 80GB HBM3")] * 8)) == "gpu:h100x8"
    assert chip_check.topology_here([device("something new")] * 2).chip is CPU


def test_a_curve_is_equal_within_the_noise_of_the_seeds():
    cpu = [[0.40] * 8, [0.44] * 8, [0.45] * 8]  # standard deviation 0.0265
    _, _, early, late = chip_check.curve_table([0.35] * 4 + [0.34] * 4, cpu)
    assert early == "| 0 to 3 | 0.350 | 0.400 to 0.450 | yes |"
    assert late.endswith("| **no** |")


def test_the_stored_curve_has_three_seeds_that_learn():
    seeds = json.loads(chip_check.CURVE.read_text())
    assert len(seeds) == chip_check.SEEDS and len({len(x) for x in seeds}) == 1
    assert all(sum(x[-8:]) > sum(x[:8]) for x in seeds)


def test_a_section_that_fails_says_so_and_the_others_run(monkeypatch):
    def broken(size, devices):
        raise RuntimeError("no such chip\nand more")

    monkeypatch.setattr(chip_check, "quickstart_section", lambda size: ["fine"])
    monkeypatch.setattr(chip_check, "make_shapes", broken)
    page, failed = chip_check.run(chip_check.SMALL)
    assert failed == 3 and "fine" in page and any("8 x cpu" in line.lower() for line in page)
    assert len([x for x in page if x.startswith("**failed**: RuntimeError: no such chip (test_chip_check.py:")]) == 3
    assert "small sizes" in page[0]


@pytest.mark.slow
def test_the_parts_about_layers_run_with_small_sizes(monkeypatch):
    plan = functools.partial(measure.measure, only=("prefill",))  # the others compile again below, as the run's own
    monkeypatch.setattr(chip_check.measure, "measure", plan)
    shapes = chip_check.make_shapes(chip_check.SMALL, jax.devices()[:1])
    assert [m.program for m in shapes.plan.memory] == ["prefill"]
    (decode,) = chip_check.decode_section(shapes)
    assert "2 prompts of 16 tokens x 8 answers of 24" in decode and "bound unknown" in decode
    (gap,) = chip_check.gap_section(shapes)
    assert f"{2 * 8 * 24:,} tokens" in gap
    assert float(gap.split("mean ")[1].split(",")[0]) < 0.05
    update = chip_check.update_section(shapes, 1)[0]
    assert "16 rows of 39 tokens" in update and "MFU unknown" in update
