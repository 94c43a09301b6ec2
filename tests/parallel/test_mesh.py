"""Sizes that do not divide over a mesh: an error that names meshes which work for all of them at once."""

from __future__ import annotations

import dataclasses
import re

import jax
import pytest

from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError
from tests.helpers import TINY


def sized(d, n, k, f, v):
    return dataclasses.replace(TINY, d_model=d, num_heads=n, num_kv_heads=k, mlp_dim=f, vocab_size=v)


QWEN3_4B = sized(2560, 32, 8, 9728, 151_936)
QWEN3_30B_A3B = dataclasses.replace(sized(2048, 32, 4, 768, 151_936), num_experts=128, experts_per_token=8)
GEMMA3_4B = sized(2560, 8, 4, 10_240, 262_208)
GEMMA2_2B = sized(2304, 8, 4, 9216, 256_000)
LLAMA32_1B = sized(2048, 32, 8, 8192, 128_256)
QWEN25_05B = sized(896, 14, 2, 4864, 151_936)
SMOLLM2_135M = sized(576, 9, 3, 1536, 49_152)
GEMMA3_1B = sized(1152, 4, 1, 6912, 262_144)


@pytest.mark.parametrize(
    "cfg, devices, asked, near",
    [
        (QWEN3_4B, 16, (1, 16), [(2, 8), (4, 4), (8, 2)]),
        (QWEN3_30B_A3B, 8, (1, 8), [(2, 4), (4, 2), (8, 1)]),
        (GEMMA3_4B, 8, (1, 8), [(2, 4), (4, 2), (8, 1)]),
        (GEMMA2_2B, 64, (4, 16), [(16, 4), (32, 2), (64, 1)]),
        (LLAMA32_1B, 16, (1, 16), [(2, 8), (4, 4), (8, 2)]),
        (QWEN25_05B, 8, (2, 4), [(4, 2), (8, 1), (7, 1)]),
        (SMOLLM2_135M, 8, (4, 2), [(8, 1), (2, 3), (6, 1)]),  # 3 KV heads: tp=3, or none
        (SMOLLM2_135M, 6, (3, 2), [(2, 3), (6, 1), (4, 1)]),
        (SMOLLM2_135M, 5, (5, 1), [(4, 1), (3, 1), (1, 3)]),
    ],
)
def test_nearest_meshes_work_for_all_sizes_at_once(cfg, devices, asked, near):
    assert mesh_lib._undivided(cfg, *asked)
    assert mesh_lib.nearest_meshes(cfg, devices, *asked) == near
    for fsdp, tp in near:
        assert fsdp * tp <= devices and cfg.d_model % fsdp == 0
        assert not any(x % tp for x in (cfg.num_heads, cfg.num_kv_heads, cfg.mlp_dim, cfg.vocab_size))


def test_error_names_every_size_that_does_not_fit_and_a_remedy_that_works():
    with pytest.raises(UserError) as error:
        mesh_lib.check_divides(SMOLLM2_135M, mesh_lib.make_mesh(4, 2))
    text = str(error.value)
    assert "mesh fsdp=4, tp=2: num_heads=9 does not divide over tp=2; num_kv_heads=3 does not divide over tp=2" in text
    assert "of up to 8 devices that work for this student: fsdp=8, tp=1; fsdp=2, tp=3; fsdp=6, tp=1" in text
    fsdp, tp = map(int, re.search(r"--config.mesh.fsdp=(\d+) --config.mesh.tp=(\d+)$", text).groups())
    mesh_lib.check_divides(SMOLLM2_135M, mesh_lib.make_mesh(fsdp, tp))


def test_a_mesh_of_some_of_the_devices_may_grow_to_all():
    with pytest.raises(UserError, match=r"K?num_kv_heads=2 does not divide over tp=4; .*: fsdp=4, tp=2; fsdp=8, tp=1"):
        mesh_lib.check_divides(TINY, mesh_lib.make_mesh(1, 4, jax.devices()[:4]))


def test_one_key_value_head_is_not_split_and_the_error_says_so():
    two_by_two = mesh_lib.make_mesh(2, 2, jax.devices()[:4])
    words = r"mesh fsdp=2, tp=2: num_kv_heads=1 does not divide over tp=2; .*set --config.mesh.fsdp=8 .*mesh.tp=1$"
    with pytest.raises(UserError, match=words):
        mesh_lib.check_divides(GEMMA3_1B, two_by_two)
    mesh_lib.check_heads(4, 1)  # without a mesh
    with jax.set_mesh(two_by_two):
        mesh_lib.check_heads(4, 2)
        with pytest.raises(UserError, match=r"num_heads=4, num_kv_heads=1: expected multiples of .* tp=2; .* tp=1$"):
            mesh_lib.check_heads(4, 1)
    with jax.set_mesh(mesh_lib.make_mesh(1, 4, jax.devices()[:4])), pytest.raises(UserError, match=r"with tp=2$"):
        mesh_lib.check_heads(4, 2)


@pytest.mark.parametrize(
    ("sizes", "role", "prefix"),
    [
        ({"tp": 2}, "update", ""),
        ({"tp": 2}, "sample", ""),
        ({"sample_fsdp": -1, "sample_tp": 2}, "update", ""),
        ({"sample_fsdp": -1, "sample_tp": 2}, "sample", "sample_"),
        ({"tp": 2, "update_tp": 1}, "update", "update_"),
        ({"tp": 2, "update_tp": 1}, "sample", ""),
    ],
)
def test_the_remedy_names_the_keys_that_set_the_mesh(sizes, role, prefix):
    keys = mesh_lib.size_keys(section(**sizes), role)
    assert keys == (f"mesh.{prefix}fsdp", f"mesh.{prefix}tp")
    with pytest.raises(UserError, match=rf"set --config.mesh.{prefix}fsdp=8 --config.mesh.{prefix}tp=1$"):
        mesh_lib.check_divides(GEMMA3_1B, mesh_lib.make_mesh(4, 2), keys=keys)


def test_the_remedy_for_a_sampler_uses_all_devices_of_the_update():
    update = mesh_lib.make_mesh(4, 1, jax.devices()[:4])
    asked = mesh_lib.sampling_mesh(section(sample_fsdp=-1, sample_tp=2), update)
    with pytest.raises(UserError) as error:
        mesh_lib.check_divides(GEMMA3_1B, asked, keys=("mesh.sample_fsdp", "mesh.sample_tp"), all_devices=True)
    found = dict(re.findall(r"--config.mesh.(sample_\w+)=(\d+)", str(error.value)))
    assert found == {"sample_fsdp": "4", "sample_tp": "1"}
    remedied = mesh_lib.sampling_mesh(section(**{key: int(size) for key, size in found.items()}), update)
    mesh_lib.check_divides(GEMMA3_1B, remedied)


def test_one_device_always_works():
    odd = sized(33, 5, 5, 7, 11)
    assert mesh_lib.nearest_meshes(odd, 2, 2, 1) == [(1, 1)]
    mesh_lib.check_divides(odd, mesh_lib.make_mesh(1, 1))


def section(**changes):
    return dict(fsdp=-1, tp=1, update_fsdp=0, update_tp=0, sample_fsdp=0, sample_tp=0, ep=1, cp=1) | changes


@pytest.mark.parametrize(
    "changes, update, sample",
    [
        ({}, (8, 1), (8, 1)),
        ({"tp": 2}, (4, 2), (4, 2)),
        ({"tp": 4, "update_tp": 1}, (8, 1), (2, 4)),
        ({"sample_tp": 4}, (8, 1), (2, 4)),
        ({"fsdp": 2, "tp": 2, "update_fsdp": 4, "update_tp": 1}, (4, 1), (2, 2)),
        ({"fsdp": 4, "sample_fsdp": -1, "sample_tp": 2}, (4, 1), (2, 2)),
        ({"fsdp": 2, "tp": 4, "update_fsdp": -1, "update_tp": 1}, (8, 1), (2, 4)),
        ({"tp": 2, "update_tp": 1, "cp": 4}, (2, 4, 1), (4, 2)),
        ({"fsdp": 1, "update_fsdp": -1, "update_tp": 1}, (1, 1), (1, 1)),
        ({"fsdp": 2, "tp": 2, "update_fsdp": -1, "update_tp": 1}, (4, 1), (2, 2)),
        ({"tp": 2, "update_tp": 1, "ep": 4}, (2, 4, 1), (4, 2)),
    ],
)
def test_update_and_sampler_have_a_mesh_each_of_the_same_devices_in_the_same_order(changes, update, sample):
    first = mesh_lib.update_mesh(section(**changes))
    second = mesh_lib.sampling_mesh(section(**changes), first)
    assert (first.devices.shape, second.devices.shape) == (update, sample)
    assert list(first.devices.flat) == list(second.devices.flat)
    assert (second is first) == (update == sample) and second.axis_types == first.axis_types[:2]


@pytest.mark.parametrize("changes", [{"fsdp": 4, "tp": 2, "update_tp": 1}, {"fsdp": 2, "sample_tp": 3}])
def test_a_mesh_of_the_sampler_that_leaves_devices_out_is_refused(changes):
    with pytest.raises(UserError, match=r"expected all \d devices of the update's mesh, fsdp=\d, tp=1; set"):
        mesh_lib.sampling_mesh(section(**changes), mesh_lib.update_mesh(section(**changes)))


def test_experts_are_split_over_ep_and_all_else_as_over_fsdp():
    mesh = mesh_lib.make_mesh(2, 2, ep=2)
    assert mesh.axis_names == ("fsdp", "ep", "tp") and mesh_lib.parts_of_a_batch(mesh) == 4
    with jax.set_mesh(mesh):
        assert mesh_lib.RULES.spec("LEDF") == jax.P(None, "ep", "fsdp", "tp")
        assert mesh_lib.RULES.spec("EF", drop="fsdp") == jax.P("ep", "tp")  # an int8 expert's factors
        assert mesh_lib.RULES.spec("LDE") == jax.P(None, ("ep", "fsdp"), None)
        assert mesh_lib.out("BTD") == jax.P(("fsdp", "ep"), None, None) == mesh_lib.RULES.spec("BT_")
    mesh_lib.check_divides(QWEN3_30B_A3B, mesh)
    with pytest.raises(UserError, match=r"mesh.ep=2: .*; it has no experts; set --config.mesh.ep=1"):
        mesh_lib.check_divides(TINY, mesh)
    few = dataclasses.replace(QWEN3_30B_A3B, num_experts=12)
    with pytest.raises(UserError, match=r"mesh.ep=8: .*num_experts=12 does not divide over it; set --config.mesh.ep=4"):
        mesh_lib.check_divides(few, mesh_lib.make_mesh(1, 1, ep=8))
    with pytest.raises(UserError, match=r"mesh.ep=2: the judge .*; set --config.mesh.ep=1"):
        mesh_lib.check_whole_rows(mesh, "the judge")


def test_parts_of_rows_and_who_needs_whole_ones():
    mesh = mesh_lib.make_mesh(1, 2, cp=4)
    assert mesh.axis_names == ("fsdp", "cp", "tp") and mesh_lib.whole_parts(13, mesh) == 16
    assert mesh_lib.whole_parts(13, mesh_lib.make_mesh(4, 2)) == 13
    with jax.set_mesh(mesh):
        assert mesh_lib.parts_of_a_row() == 4 and mesh_lib.out("BTNH") == jax.P("fsdp", "cp", "tp", None)
        assert mesh_lib.RULES.spec("LDF") == jax.P(None, ("cp", "fsdp"), "tp")
        assert mesh_lib.RULES.spec("LDF", drop="fsdp") == jax.P(None, None, "tp")
    assert mesh_lib.RULES.spec("LDF") == jax.P(None, "fsdp", "tp")
    with pytest.raises(UserError, match=r"mesh.cp=4: the judge reads whole rows; set --config.mesh.cp=1"):
        mesh_lib.check_whole_rows(mesh, "the judge")
    with pytest.raises(UserError, match=r"mesh cp=3 x tp=1 does not divide the 8 devices"):
        mesh_lib.make_mesh(-1, 1, cp=3)
