"""Weights are loaded one tensor at a time, directly into their device shards.

For one tensor of one layer, each shard's part is read from the file (only its rows, if the matrix is split over rows),
cast, and sent to its device. There it is written into the stack of layers, whose buffer is donated. So host memory
holds one tensor, never the model. Stacks of up to `AT_ONCE` bytes are loaded in one piece, so a small model needs no
compiled writes. Nothing is randomly initialised.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ropd_jax.parallel.mesh import RULES, ShardingRules, dims_of
from ropd_jax.weights.tensors import Source, Tensor, check_finite, put_leaf, tensors_of

log = logging.getLogger(__name__)
REPORT_EVERY_S = 5.0
AT_ONCE = 32 << 20  # bytes


def stream(
    source: Source,
    mesh: jax.sharding.Mesh,
    dtype="float32",
    *,
    vectors: str = "",
    rules: ShardingRules = RULES,
    at_once: int = AT_ONCE,
) -> dict:
    """The parameter tree on a mesh, sharded by `ShardingRules.storage`.

    Args:
        source: an open checkpoint (`hf.HFSource`, `gguf.GGUFSource`).
        mesh: placement of the parameters; every dimension must divide (`mesh.check_divides`).
        dtype: of the parameters; ``vectors``: of those with one dimension (besides the layers), "" is ``dtype``.
        at_once: stacks of at most this many bytes are read in one piece.

    Returns:
        a tree of jax arrays, see `transformer.param_shapes`.

    Host memory: one tensor as stored and its shards as ``dtype`` (of experts, one layer's), or ``at_once`` bytes.
    """
    matrices, flat = np.dtype(dtype), np.dtype(vectors or dtype)
    params: dict = {}
    total = sum(int(np.prod((*t.stack, *t.sizes))) for t in tensors_of(source.cfg)) * matrices.itemsize
    done, reported = 0, time.monotonic()
    for t in tensors_of(source.cfg):
        shape = (*t.stack, *t.sizes)
        dtype = flat if len(t.sizes) == 1 else matrices
        name = jax.tree_util.DictKey(t.path[-1])
        spec = rules.spec(dims_of((name,), jax.ShapeDtypeStruct(shape, dtype)))
        if not t.stack or int(np.prod(shape)) * dtype.itemsize <= at_once:
            value = _read(source, t, (), NamedSharding(mesh, spec), dtype)
            done += value.nbytes
        else:
            value = _zeros(shape, dtype, NamedSharding(mesh, spec))
            each = NamedSharding(mesh, PartitionSpec(*spec[1:]))
            for layer in range(shape[0]):
                value = _write(value, _read(source, t, (layer,), each, dtype), np.int32(layer))
                value.block_until_ready()  # else the host runs ahead of the devices and keeps many tensors
                done += value.nbytes // shape[0]
                if time.monotonic() - reported > REPORT_EVERY_S:
                    reported = time.monotonic()
                    log.info("loading weights: %.1f of %.1f GB", done / 1e9, total / 1e9)
        put_leaf(params, t, value)
    return params


def _read(source: Source, t: Tensor, at: tuple[int, ...], sharding: NamedSharding, dtype: np.dtype) -> jax.Array:
    """The array of one layer (``at``), or of all layers, stacked; each shard is read separately."""
    rest = t.stack[len(at) :]

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        cut = [slice(*s.indices(n)[:2]) for s, n in zip(index, (*rest, *t.sizes), strict=True)]
        first, part = cut[: len(rest)], tuple(cut[len(rest) :])
        if not rest:
            value = np.ascontiguousarray(source.read(t, at, part), dtype)
            check_finite(value, t)
            return value
        value = np.empty([s.stop - s.start for s in cut], dtype)
        for i in itertools.product(*(range(s.start, s.stop) for s in first)):
            value[tuple(k - s.start for k, s in zip(i, first, strict=True))] = source.read(t, (*at, *i), part)
        check_finite(value, t)
        return value

    return jax.make_array_from_callback((*rest, *t.sizes), sharding, shard)


def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)
