"""Weights loaded directly into their shards: the same numbers, never many of them on the host, none of them random."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.types import UserError
from ropd_jax.weights.hf import HFSource, save_hf
from ropd_jax.weights.load import stream
from ropd_jax.weights.student import load_checkpoint
from ropd_jax.weights.tensors import host_tree
from tests.helpers import read_weights

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"


def assert_same(streamed, host, mesh):
    """Values, shardings and structure are those of the host's tree put on the mesh."""
    expected = mesh_lib.put(host, mesh, mesh_lib.RULES.storage(host))
    assert jax.tree.structure(streamed) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(streamed), jax.tree.leaves(expected), strict=True):
        assert a.sharding == b.sharding and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("at_once", [0, 1 << 25])
@pytest.mark.parametrize("name, fsdp, tp", [("gemma3", 4, 2), ("qwen2", 2, 2), ("qwen3_moe", 4, 2), ("llama3", 1, 1)])
def test_streamed_parameters_equal_those_read_and_then_placed(name, fsdp, tp, at_once):
    mesh = mesh_lib.make_mesh(fsdp, tp)
    source = HFSource(FAMILIES / name)
    assert_same(stream(source, mesh, at_once=at_once), read_weights(FAMILIES / name)[1], mesh)
    source.close()


def test_the_dtype_on_load_is_the_one_asked_for():
    mesh = mesh_lib.make_mesh(4, 1)
    streamed = load_checkpoint("tiny", mesh=mesh, dtype="bfloat16").params
    whole = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), load_checkpoint("tiny").params)
    assert_same(streamed, whole, mesh)


CFG = ModelConfig(
    vocab_size=64, num_layers=12, d_model=256, num_heads=4, num_kv_heads=2, head_dim=64, mlp_dim=1024, rope_theta=1e4,
    norm_eps=1e-5, tied=True, max_seq_len=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A checkpoint of 47 MB in 8 files, whose largest tensor has 1 MB."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), transformer.param_shapes(CFG))
    path = tmp_path_factory.mktemp("m")
    save_hf(path, CFG, params, shard_bytes=6 << 20)
    return path, params


def test_shards_are_written_with_an_index_and_read_back(sharded):
    path, params = sharded
    files = sorted(p.name for p in path.glob("*.safetensors"))
    assert files[0] == "model-00001-of-00008.safetensors" and len(files) == 8
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert sorted(set(index["weight_map"].values())) == files
    assert all((path / f).stat().st_size < (6 << 20) + 20_000 for f in files)
    jax.tree.map(np.testing.assert_array_equal, read_weights(path)[1], params)


@pytest.mark.parametrize("fsdp, tp", [(1, 1), (2, 2)])
def test_the_host_never_holds_more_than_a_few_tensors(sharded, fsdp, tp):
    path, params = sharded
    mesh = mesh_lib.make_mesh(fsdp, tp)
    with contextlib.closing(HFSource(path)) as source:
        stream(source, mesh, at_once=0)  # compiles everything beforehand
    tracemalloc.start()
    try:
        source = HFSource(path)
        streamed = stream(source, mesh, at_once=0)
        _, peak = tracemalloc.get_traced_memory()  # numpy's arrays, not the devices'
    finally:
        tracemalloc.stop()
    source.close()
    largest = 4 * CFG.d_model * CFG.mlp_dim
    assert sum(x.nbytes for x in jax.tree.leaves(params)) > 40 * largest
    assert largest <= peak < 4 * largest  # as stored, transposed, and not yet released by the device
    assert_same(streamed, params, mesh)


def test_nothing_is_drawn_at_random_on_load(sharded, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("random parameters were drawn")

    monkeypatch.setattr(transformer, "init_params", refuse)
    monkeypatch.setattr(jax.random, "normal", refuse)
    student = load_checkpoint("tiny", mesh=mesh_lib.make_mesh(2, 1))
    assert student.params["embed"]["table_VD"].shape == (104, 96)


def test_a_mesh_that_does_not_fit_is_named_before_any_weight_is_read(monkeypatch):
    monkeypatch.setattr(HFSource, "read", lambda *args: pytest.fail("a weight was read"))
    with pytest.raises(UserError, match="num_heads=3 does not divide"):
        load_checkpoint("tiny", mesh=mesh_lib.make_mesh(4, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, dtype, bad):
    cfg = dataclasses.replace(CFG, num_layers=2)
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), transformer.param_shapes(cfg))
    params["layers"]["attn"]["o_NHD"][1, 0, 0, 3] = bad
    save_hf(tmp_path, cfg, params)
    with contextlib.closing(HFSource(tmp_path)) as source:
        for at_once in (0, 1 << 25):
            with pytest.raises(UserError, match=r"self_attn\.o_proj\.weight' holds NaN or infinite weights; fetch it"):
                stream(source, mesh_lib.make_mesh(1, 1), dtype, at_once=at_once)
        with pytest.raises(UserError, match="holds NaN or infinite weights"):
            host_tree(source, np.dtype(dtype))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    cfg = dataclasses.replace(CFG, num_layers=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), transformer.param_shapes(cfg))
    save_hf(tmp_path, cfg, params)
    source = HFSource(tmp_path)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as f:
        f.truncate(file.stat().st_size // 2)
    with pytest.raises(UserError, match="became shorter while it was read"):
        stream(source, mesh_lib.make_mesh(1, 1))
    source.close()
