"""Weights of a checkpoint, straight to the device shards that keep them.

One tensor of one layer at a time: each shard's part is read from the file (of a matrix that is split over rows only
those rows), cast, handed to its device, and there written into its place in the stack of layers, whose buffer is
donated. So host memory holds one tensor, never the model. Stacks of up to `AT_ONCE` bytes go in one piece, which spares
a small model the compilation of those writes. Nothing is initialised at random.
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
from ropd_jax.weights.tensors import Source, Tensor, put_leaf, tensors_of

log = logging.getLogger(__name__)
SAY_EVERY_S = 5.0
AT_ONCE = 32 << 20  # bytes


def stream(
    source: Source,
    mesh: jax.sharding.Mesh,
    dtype="float32",
    *,
    rules: ShardingRules = RULES,
    at_once: int = AT_ONCE,
) -> dict:
    """The parameter tree on a mesh, sharded as `ShardingRules.storage` says.

    Args:
        source: an open checkpoint (`hf.HFSource`, `gguf.GGUFSource`).
        mesh: where the parameters go; every dimension divides (`mesh.check_divides`).
        dtype: of the parameters.
        at_once: stacks of so many bytes are read in one piece.

    Returns:
        a tree of jax arrays, as `transformer.param_shapes` describes it.

    Host memory: one tensor as stored and its shards as ``dtype`` (of experts, one layer's), or ``at_once`` bytes.
    """
    dtype = np.dtype(dtype)
    params: dict = {}
    total = sum(int(np.prod((*t.stack, *t.sizes))) for t in tensors_of(source.cfg)) * dtype.itemsize
    done, said = 0, time.monotonic()
    for t in tensors_of(source.cfg):
        shape = (*t.stack, *t.sizes)
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
                value.block_until_ready()  # else the host runs ahead and holds what the devices have not taken yet
                done += value.nbytes // shape[0]
                if time.monotonic() - said > SAY_EVERY_S:
                    said = time.monotonic()
                    log.info("loading weights: %.1f of %.1f GB", done / 1e9, total / 1e9)
        put_leaf(params, t, value)
    return params


def _read(source: Source, t: Tensor, at: tuple[int, ...], sharding: NamedSharding, dtype: np.dtype) -> jax.Array:
    """The array of one layer (``at``) or of all, what remains of the stack in front; each shard is read by itself."""
    rest = t.stack[len(at) :]

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        cut = [slice(*s.indices(n)[:2]) for s, n in zip(index, (*rest, *t.sizes), strict=True)]
        first, part = cut[: len(rest)], tuple(cut[len(rest) :])
        if not rest:
            return np.ascontiguousarray(source.read(t, at, part), dtype)
        value = np.empty([s.stop - s.start for s in cut], dtype)
        for i in itertools.product(*(range(s.start, s.stop) for s in first)):
            value[tuple(k - s.start for k, s in zip(i, first, strict=True))] = source.read(t, (*at, *i), part)
        return value

    return jax.make_array_from_callback((*rest, *t.sizes), sharding, shard)


def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, i, 0)
