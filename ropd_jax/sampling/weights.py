"""The sampler's own copy of the student: gathered, cast and laid out once per call instead of per token.

The learner stores its weights in float32, split over ``fsdp`` and ``tp``, stacked over layers. A decode step needs them
in the compute dtype, not split over ``fsdp``, one array per layer. Left to the compiler, this conversion happens for
every token on a GPU (8 GB for Qwen3-4B in bfloat16), and on a TPU for every chunk and partly for every token.
`decode_weights` does it once, before the first chunk. During sampling it takes the memory of the weights in the compute
dtype over ``tp``: 2 GB per chip for Qwen3-4B with tp=4. If they do not fit, ``sampling.copy_weights=False`` gathers one
layer after another.

Prefill uses the learner's arrays: it runs a few times per step, over whole prompts, and gathers one layer at a time.

If the sampler has its own mesh (`parallel.mesh.sampling_mesh`), `moved` first creates the weights on it, in the compute
dtype and split over its ``fsdp`` and ``tp``; they replace the learner's arrays in all of the above.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, reshard

from ropd_jax.models import transformer
from ropd_jax.models.linear import Params
from ropd_jax.parallel.mesh import RULES, active_mesh, dims_of, platform


class DecodeWeights(NamedTuple):
    """The weights for `engine.decode`.

    Attributes:
        outer: embedding, final norm and head. Without a copy, all of the learner's parameters.
        layers: the parameters of each layer; None if each is sliced from ``outer`` when needed.
    """

    outer: Params
    layers: list[Params] | None


def decode_weights(params: Params, num_layers: int, dtype: str, *, copy: bool = True) -> DecodeWeights:
    """The weights in the form for decoding. Inside ``jax.set_mesh``, if there is a mesh.

    On CPU the layers are always copied, because a decode step would copy every layer's slice of the stacked weights;
    their matrices are then stored outputs first (`linear.flip`). Elsewhere they are copied if ``copy`` is set and a
    weight is wider than the compute dtype or split over ``fsdp``; adapters do not count. Tables that need no change
    stay the learner's own.

    Args:
        params: the learner's, stacked over layers; adapters and the factors of int8 can be attached (`models.lora`).
        dtype: compute dtype.
    """
    flipped = flips_layers()
    outer = outer_of(params)
    if not flipped and not (copy and changes(params, dtype)):
        return DecodeWeights(params, None)
    layers = _layers(params["layers"], num_layers, dtype if copy else None, flipped)
    return DecodeWeights(_made_ready(outer, dtype) if copy and changes(outer, dtype) else outer, layers)


def moved(params: Params, dtype: str, mesh: jax.sharding.Mesh) -> Params:
    """The learner's weights on another mesh of the same devices: cast as in `ready`, then resharded in their layout on
    that mesh. Inside ``jax.set_mesh`` of the learner's mesh.

    Each device receives a part of what it will hold: for Qwen3-4B from 16 x 1 to 4 x 4 in bfloat16 0.4 GB.
    """
    return mover(params, dtype, mesh)(params)


def mover(params: Params, dtype: str, mesh: jax.sharding.Mesh) -> Any:
    """The jitted function for `moved` with parameters of these shapes."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # the learner's can have axes that this one lacks
        specs, tree = jax.tree.flatten(RULES.storage(params))
    return _mover(tuple(specs), tree, dtype, mesh)


@functools.lru_cache(maxsize=8)
def _mover(specs: tuple, tree: Any, dtype: str, mesh: jax.sharding.Mesh) -> Any:
    def move(params):
        return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(_dtype(path, x, dtype)), params)

    return jax.jit(move, out_shardings=jax.tree.unflatten(tree, [NamedSharding(mesh, spec) for spec in specs]))


def outer_of(params: Params) -> Params:
    """Embedding, final norm and head."""
    return {key: x for key, x in params.items() if key != "layers"}


def flips_layers() -> bool:
    """True on CPU; see `decode_weights`."""
    return platform() == "cpu"


def ready(params: Any, dtype: str, *, only_vectors: bool = False) -> Any:
    """Weights, a tree or several, in the dtype of a decode step, not split over ``fsdp``: cast, then gathered.

    Args:
        only_vectors: leave the matrices unchanged.
    """

    def one(path, x):
        if only_vectors and _is_matrix(path, x):
            return x
        x = x.astype(_dtype(path, x, dtype))
        return x if active_mesh() is None else reshard(x, RULES.spec(dims_of(path, x), drop="fsdp"))

    return jax.tree_util.tree_map_with_path(one, params)


_made_ready = jax.jit(ready, static_argnames=("dtype",))


@functools.partial(jax.jit, static_argnames=("num_layers", "dtype", "flipped"))
def _layers(layers: Params, num_layers: int, dtype: str | None, flipped: bool) -> list[Params]:
    layers = layers if dtype is None else ready(layers, dtype)
    return transformer.unstack({"layers": layers}, num_layers, flipped=flipped)


def changes(params: Params, dtype: str) -> bool:
    """Whether `ready` changes any matrix other than adapters."""
    mesh = active_mesh()
    split = mesh is not None and mesh.shape["fsdp"] > 1

    def one(path, x) -> bool:
        if not _is_matrix(path, x) or path[-1].key.startswith(("a_", "b_")):
            return False
        return (split and "D" in dims_of(path, x)) or x.dtype != _dtype(path, x, dtype)

    return any(jax.tree.leaves(jax.tree_util.tree_map_with_path(one, params)))


def _is_matrix(path, x) -> bool:
    """False for norms, biases and the factors of int8: vectors, which the products use as they are."""
    name = path[-1].key
    return not name.startswith(("scale_", "channel_")) and "_bias_" not in name


def _dtype(path, x, dtype: str):
    """A matrix in the compute dtype, but not wider than it is stored: int8 stays int8."""
    return jnp.dtype(dtype) if _is_matrix(path, x) and x.dtype.itemsize > jnp.dtype(dtype).itemsize else x.dtype
