"""Adam whose two moments take less than the 8 bytes per parameter of float32.

Each step reads a moment as float32, updates it, and stores it again in a compact form:

    bfloat16   4 bytes per parameter: both moments rounded to 8 bits of mantissa
    int8       about 2 bytes per parameter: blocks of up to 128 numbers along the last axis share one float32 scale
    factored   about 2 bytes per parameter: the second moment as the outer product of its row and column means
               (Adafactor, arXiv 1804.04235), the first one, of the normalised gradient, in bfloat16 (arXiv 2106.04560)

Eight bits cannot represent a decay of one percent per step: rounded to nearest, 50 * 0.995 stays 50 forever. So numbers
are rounded up or down in turn, as often as their fraction requires (a fixed sequence over steps and places, no random
state). Of the second moment the square root is stored, and never as 0, which would make a step explode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ropd_jax.types import Array

MOMENTS = ("float32", "bfloat16", "int8", "factored")
BLOCK = 128


class Blocks(NamedTuple):
    """Numbers in eight bits: ``code`` int8, of the same shape; ``scale`` float32, one per block of the last axis."""

    code: jax.Array
    scale: jax.Array


class Form(NamedTuple):
    """How a moment is stored and read."""

    store: Callable[[Array, Array], Any]  # (numbers, count of steps)
    read: Callable[[Any], jax.Array]


class AdamState(NamedTuple):
    """``count`` of steps; ``mu`` and ``nu`` as lists in the order of the parameters' leaves."""

    count: jax.Array  # type: ignore[assignment]  # tuple.count is hidden, as in optax's own ScaleByAdamState
    mu: list
    nu: list


def compact_adam(moments: str, *, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """The direction of Adam's step (no learning rate, no decay) with moments in a compact form.

    Raises:
        ValueError: unknown form.
    """
    if moments == "factored":
        return _factored(b1, b2)
    if moments not in FORMS:
        raise ValueError(f"moments={moments!r}; expected one of {', '.join(MOMENTS)}")
    first, second = FORMS[moments]

    def init(params):
        zeros = [jnp.zeros_like(p, jnp.float32) for p in jax.tree.leaves(params)]
        return AdamState(jnp.int32(0), [first.store(z, 0) for z in zeros], [second.store(z, 0) for z in zeros])

    def update(grads, state: AdamState, params=None):
        del params
        leaves, tree = jax.tree.flatten(grads)
        count = state.count + 1
        steps = count.astype(jnp.float32)
        done1, done2 = 1.0 - b1**steps, 1.0 - b2**steps  # the moments for a constant gradient of 1
        mu, nu, updates = [], [], []
        for g, m, v in zip(leaves, state.mu, state.nu, strict=True):
            g = g.astype(jnp.float32)
            m = b1 * first.read(m) + (1.0 - b1) * g
            v = b2 * second.read(v) + (1.0 - b2) * jnp.square(g)
            updates.append((m / done1) / (jnp.sqrt(v / done2) + eps))
            mu.append(first.store(m, count))
            nu.append(second.store(v, count))
        return jax.tree.unflatten(tree, updates), AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _factored(b1: float, b2: float) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=lambda step, _: jnp.minimum(1.0 - (step + 1.0) ** -0.8, b2)),
        optax.ema(b1, debias=True, accumulator_dtype=jnp.bfloat16),
    )


# ------------------------------------------------------------------------------------------------------ eight bits


def store_signed(x: jax.Array, count) -> Blocks:
    """Quantized to 254 steps between minus and plus the block's largest magnitude."""
    return _store(x, count, least=0.0)


def read_signed(x: Blocks) -> jax.Array:
    return _read(x)


def store_square(x: jax.Array, count) -> Blocks:
    """The square root of a nonnegative number, in 127 steps; nonzero numbers take at least one."""
    return _store(jnp.sqrt(x), count, least=1.0)


def read_square(x: Blocks) -> jax.Array:
    return jnp.square(_read(x))


def _store(x: jax.Array, count, *, least: float) -> Blocks:
    if not x.ndim:
        code, scale = _store(x[None], count, least=least)
        return Blocks(code[0], scale[0])
    pieces = _in_blocks(x)
    scale = jnp.max(jnp.abs(pieces), axis=-1) / 127.0
    steps = pieces / jnp.where(scale > 0, scale, 1.0)[..., None]
    # Multiples of the golden ratio are spread evenly over [0, 1), across steps and across places.
    place = jnp.arange(pieces.shape[-1], dtype=jnp.float32) + jnp.asarray(count % 4096, jnp.float32)
    turn = jnp.mod(place * 0.6180339887, 1.0)
    code = jnp.floor(steps + jnp.expand_dims(turn, range(steps.ndim - 1)))
    code = jnp.where(steps > 0, jnp.maximum(code, least), code)
    return Blocks(_whole(jnp.clip(code, -127.0, 127.0).astype(jnp.int8), x), scale)


def _read(x: Blocks) -> jax.Array:
    if not x.code.ndim:
        return x.code.astype(jnp.float32) * x.scale
    pieces = _in_blocks(x.code)
    return _whole(pieces.astype(jnp.float32) * x.scale[..., None], x.code)


def _in_blocks(x: jax.Array) -> jax.Array:
    """[..., n] -> [..., n / block, block]; a last axis whose shards are not divisible into blocks is gathered first."""
    block = math.gcd(x.shape[-1], BLOCK)
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.empty and (axis := sharding.spec[-1]) is not None:
        shards = math.prod(sharding.mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis))
        if (x.shape[-1] // block) % shards:
            x = jax.sharding.reshard(x, jax.P(*sharding.spec[:-1], None))
    spec = jax.typeof(x).sharding.spec
    out = None if sharding.mesh.empty else jax.P(*spec, None)
    return jnp.reshape(x, (*x.shape[:-1], -1, block), out_sharding=out)


def _whole(pieces: jax.Array, like: jax.Array) -> jax.Array:
    sharding = jax.typeof(like).sharding
    if sharding.mesh.empty:
        return pieces.reshape(like.shape)
    spec = jax.typeof(pieces).sharding.spec
    return jax.sharding.reshard(jnp.reshape(pieces, like.shape, out_sharding=jax.P(*spec[:-1])), sharding.spec)


_bfloat16 = Form(lambda x, count: x.astype(jnp.bfloat16), lambda x: x.astype(jnp.float32))
FORMS = {  # name -> (first moment, second moment)
    "bfloat16": (_bfloat16, _bfloat16),
    "int8": (Form(store_signed, read_signed), Form(store_square, read_square)),
}
