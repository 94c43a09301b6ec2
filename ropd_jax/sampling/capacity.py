"""The memory that sampling takes, and the number of rows that fit, from shapes: nothing is allocated or compiled.

A row's keys and values dominate. Qwen3-4B has 36 layers of 8 key/value heads of 128: an answer of 32,768 tokens
is 4.8 GB in bfloat16, 2.5 GB in int8, so a chip of 16 GB that holds 8 GB of weights decodes one or three such rows.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.sampling.engine import EngineConfig, empty_cache, layout, most_pages

SPARE = 0.05  # share of a device's memory for fragmentation and the programs themselves


def device_bytes(tree: Any) -> int:
    """Bytes of a tree of shapes on one device."""

    def elements(x) -> int:
        sharding = getattr(x, "sharding", None)
        return math.prod(x.shape if sharding is None else sharding.shard_shape(x.shape))

    return sum(elements(x) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def cache_bytes(cfg: ModelConfig, ecfg: EngineConfig) -> int:
    """The cache of one device with all its rows at ``max_tokens``. Inside ``jax.set_mesh``."""
    sizes = layout(ecfg)
    pages = most_pages(ecfg, sizes.rows)
    return device_bytes(jax.eval_shape(lambda: empty_cache(cfg, ecfg, sizes, pages=pages)))


def work_bytes(cfg: ModelConfig, ecfg: EngineConfig, tp: int) -> int:
    """Approximate memory of the programs on one device, besides weights and cache: the larger of prefill and decode.

    Prefill keeps the keys and values of its prompts until they are written, and one layer's activations. Decoding keeps
    a layer of an int8 cache in the compute dtype, and logits. Over fsdp there is the sampler's copy of all weights
    (``copy_weights``); without it, both gather a layer's weights and the embedding. Weights are assumed to be stored in
    the compute dtype.
    """
    sizes, itemsize = layout(ecfg), jnp.dtype(ecfg.dtype).itemsize
    heads = cfg.num_kv_heads * cfg.head_dim // tp
    tokens = sizes.batch * ecfg.prompt_len
    prefill = tokens * (4 * cfg.num_layers * heads * itemsize + 12 * cfg.d_model * itemsize + 3 * cfg.mlp_dim // tp * 4)
    slots = most_pages(ecfg, sizes.rows) * ecfg.page
    dequantized = 2 * slots * heads * itemsize if ecfg.cache_dtype == "int8" else 0
    decode = dequantized + sizes.rows * cfg.vocab_size // tp * 12
    a_layer = 4 * cfg.d_model * (cfg.num_heads + 2 * cfg.num_kv_heads) * cfg.head_dim + 3 * cfg.d_model * cfg.mlp_dim
    weights = a_layer + cfg.vocab_size * cfg.d_model
    if ecfg.copy_weights:
        weights = sum(math.prod(x.shape) for x in jax.tree.leaves(transformer.param_shapes(cfg)))
    gathered = itemsize * weights // tp if sizes.parts > 1 else 0
    return max(prefill, decode) + gathered


def with_rows(ecfg: EngineConfig, rows: int, shards: int) -> EngineConfig:
    """The engine with this many rows, and enough prompts for them."""
    prompts = max(1, -(-rows // shards // ecfg.rollouts)) * shards
    return dataclasses.replace(ecfg, rows=rows, prompts=prompts)


def fits(cfg: ModelConfig, ecfg: EngineConfig, mesh: jax.sharding.Mesh, free: float, rows: int) -> bool:
    """True if this many rows fit into ``free`` bytes of each device."""
    with jax.set_mesh(mesh):
        engine = with_rows(ecfg, rows, mesh.shape["fsdp"])
        return cache_bytes(cfg, engine) + work_bytes(cfg, engine, mesh.shape["tp"]) <= free


def choose_copy(
    cfg: ModelConfig, ecfg: EngineConfig, mesh: jax.sharding.Mesh, free: float, wanted: int, *, asked: bool
) -> EngineConfig:
    """The engine without the sampler's copy of the weights, if fewer than half of the rows fit with it.

    Args:
        asked: exactly this many rows were requested, so all of them must fit with it.
    """
    least = wanted if asked else -(-wanted // 2)
    return ecfg if fits(cfg, ecfg, mesh, free, least) else dataclasses.replace(ecfg, copy_weights=False)


def most_rows(cfg: ModelConfig, ecfg: EngineConfig, mesh: jax.sharding.Mesh, free: float, wanted: int) -> int:
    """The most rows up to ``wanted``, a multiple of the mesh's fsdp, that fit into ``free`` bytes of each device.

    0 if not even one row per shard fits.
    """
    shards = mesh.shape["fsdp"]
    low, high = 0, max(1, wanted // shards)
    while low < high:  # the largest number that fits
        middle = (low + high + 1) // 2
        enough = fits(cfg, ecfg, mesh, free, middle * shards)
        low, high = (middle, high) if enough else (low, middle - 1)
    return low * shards


def free_bytes(mesh: jax.sharding.Mesh) -> float | None:
    """Bytes that the runtime can still allocate on each of this host's devices, less `SPARE`; None if unknown.

    CPU devices share the machine's memory and report nothing.
    """
    found = [d.memory_stats() for d in mesh.local_devices]
    if any(not s or "bytes_limit" not in s for s in found):
        return None
    return min(s["bytes_limit"] * (1 - SPARE) - s.get("bytes_in_use", 0) for s in found if s)
