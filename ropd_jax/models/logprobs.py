"""Log-probabilities of given tokens, in chunks, so that [B, T, V] never exists.

At V = 151,936 and T = 10,240 the float32 logits of one sequence are 6.2 GB; a chunk of 128 positions is 78 MB.
The backward pass recomputes the logits of each chunk. On one device, positions that are not wanted (prompts, padding)
cost nothing: those wanted in each row move to its front, and the chunks after the last of them are not computed.

    two rows, chunk = 4    . . . w|w w . .      . . . .|w w w w       w: wanted
    moved to the front     w w w .|. . . .      w w w w|. . . .       the second chunk is not computed
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.parallel.mesh import active_mesh, constrain, locally, out

LEAST_WORDS = 1024  # per slice of the vocabulary: the overhead of a smaller matmul exceeds its savings


def token_logprobs(
    cfg: ModelConfig,
    params: transformer.Params,
    x_BTD: jax.Array,
    targets_BT: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 128,
    entropy_grad: bool = False,
    wanted_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(logp_BT, entropy_BT) in float32 of ``targets_BT`` under softmax(logits / temperature).

    The softmax is over the tokens: ids of ``cfg.unused`` are excluded, and no gradient reaches their rows. A target
    among them has a log-prob of about -1e30: ratio 0.

    Args:
        x_BTD: hidden states before the final norm; position t predicts ``targets_BT[:, t]``.
        targets_BT: int32 token ids.
        temperature: of the sampling policy, so that log-probs are comparable with the sampler's.
        chunk: positions whose logits exist at once.
        entropy_grad: let a gradient flow through the entropy.
        wanted_BT: bool, the positions that are needed; the values of the others are undefined. None: all.
    """
    T = x_BTD.shape[1]
    norm, table_VD = transformer.head(cfg, params)
    spread = spread_over(cfg)
    pad = -T % chunk
    x_BTD = jnp.pad(constrain(norm(x_BTD), "BSD"), ((0, 0), (0, pad), (0, 0)))  # the whole row
    targets_BT = jnp.pad(constrain(targets_BT, "BS"), ((0, 0), (0, pad)))

    def logits(x_BTD, table_VD, first=0):
        return transformer.output_logits(cfg, x_BTD, table_VD, first=first) / temperature

    mesh = active_mesh()
    if wanted_BT is not None and (mesh is None or mesh.size == 1):
        of_wanted = locally(
            functools.partial(_wanted, _How(logits, chunk, entropy_grad)), ("BTD", "VD", "BT", "BT"), ("BT", "BT")
        )
        return tuple(x[:, :T] for x in of_wanted(x_BTD, table_VD, targets_BT, jnp.pad(wanted_BT, ((0, 0), (0, pad)))))

    if spread:
        table_VD = reshard((params["embed"] if cfg.tied else params["head"])["table_VD"], P(spread, None))
        how = _How(logits, chunk, entropy_grad)
        spread_chunk = jax.shard_map(
            functools.partial(_spread_chunk, how, spread),
            in_specs=(out("BSD"), out("BS"), P(spread, None)),
            out_specs=(out("BS"), out("BS")),
        )

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(x_BTD, targets_BT):
        if spread:
            return spread_chunk(x_BTD, targets_BT, table_VD)
        logits_BTV = logits(x_BTD, table_VD)
        lse_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
        if out("BSV") is None:
            picked_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
        else:  # the vocabulary is sharded: a gather along it would need all shards
            ids_V = jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
            picked_BT = jnp.sum(jnp.where(ids_V[None, None] == targets_BT[..., None], logits_BTV, 0.0), axis=-1)
        p_BTV = jnp.exp(logits_BTV - lse_BT[..., None])
        entropy_BT = lse_BT - jnp.sum(p_BTV * logits_BTV, axis=-1)
        entropy_BT = entropy_BT if entropy_grad else jax.lax.stop_gradient(entropy_BT)
        return constrain(picked_BT - lse_BT, "BS"), constrain(entropy_BT, "BS")

    def split(x_BT):  # [B, T, ...] -> [chunks, B, chunk, ...]
        return x_BT.reshape(x_BT.shape[0], -1, chunk, *x_BT.shape[2:]).swapaxes(0, 1)

    pieces = jax.lax.map(lambda xs: one_chunk(*xs), (split(x_BTD), split(targets_BT)))
    logp_BT, entropy_BT = (x.swapaxes(0, 1).reshape(targets_BT.shape)[:, :T] for x in pieces)
    return constrain(logp_BT, "BS"), constrain(entropy_BT, "BS")  # the reshape of a single row loses its sharding


class _How(NamedTuple):
    """``logits`` of (x_BTD, some rows of the table, the id of the first); positions of a chunk; whether the entropy
    has a gradient."""

    logits: Callable
    chunk: int
    entropy_grad: bool


def _spread_chunk(how: _How, axes: tuple[str, ...], x_BTD, targets_BT, table_VD):
    """(logp_BT, entropy_BT) of this device's rows, in `jax.shard_map`; each device has a part of the vocabulary.

    Every device computes its part for the rows of all devices. The gradient of the gather is a reduce-scatter.
    """
    spec = out("B")
    assert spec is not None, "the vocabulary is split over a mesh"
    rows, split = len(x_BTD), spec[0]
    x_BTD, targets_BT = (jax.lax.all_gather(a, split, tiled=True) for a in (x_BTD, targets_BT))
    first = jax.lax.axis_index(axes) * len(table_VD)
    logits_BTV = how.logits(x_BTD, table_VD, first)
    top_BT = jax.lax.pmax(jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1)), axes)
    e_BTV = jnp.exp(logits_BTV - top_BT[..., None])
    ids_V = jnp.arange(len(table_VD), dtype=targets_BT.dtype) + first
    picked_BTV = jnp.where(ids_V[None, None] == targets_BT[..., None], logits_BTV, 0.0)
    sums = [jnp.sum(a_BTV, axis=-1) for a_BTV in (e_BTV, picked_BTV, e_BTV * logits_BTV)]
    total_BT, picked_BT, mean_BT = jax.lax.psum(sums, axes)
    lse_BT = top_BT + jnp.log(total_BT)
    entropy_BT = lse_BT - mean_BT / total_BT
    entropy_BT = entropy_BT if how.entropy_grad else jax.lax.stop_gradient(entropy_BT)
    at = jax.lax.axis_index(split) * rows
    return tuple(jax.lax.dynamic_slice_in_dim(a_BT, at, rows) for a_BT in (picked_BT - lse_BT, entropy_BT))


def _wanted(how: _How, x_BTD, table_VD, targets_BT, wanted_BT):
    """(logp_BT, entropy_BT) at the wanted positions; T is a multiple of the chunk."""
    first_BT = jnp.argsort(~wanted_BT, axis=1, stable=True)
    x_BTD = jnp.take_along_axis(x_BTD, first_BT[..., None], axis=1)
    targets_BT = jnp.take_along_axis(targets_BT, first_BT, axis=1)
    most = jnp.max(jnp.sum(wanted_BT, axis=1, dtype=jnp.int32))
    back_BT = jnp.argsort(first_BT, axis=1)
    return tuple(jnp.take_along_axis(x, back_BT, axis=1) for x in _leading(how, x_BTD, table_VD, targets_BT, most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _leading(how: _How, x_BTD, table_VD, targets_BT, most):
    """(logp_BT, entropy_BT) of the first ``most`` positions of each row, rounded up to whole chunks; 0 after them.

    Each chunk is multiplied with the vocabulary in slices, with a running maximum and sum, and again in the backward
    pass, from the saved log-sum-exp. So its logits stay in a CPU's cache, and there is no second table of gradients.
    """
    return _leading_forward(how, x_BTD, table_VD, targets_BT, most)[0]


def _leading_forward(how: _How, x_BTD, table_VD, targets_BT, most):
    words, slices = _slices(table_VD)

    def one_chunk(i, found):
        x, targets = _cut(x_BTD, i, how.chunk), _cut(targets_BT, i, how.chunk)

        def one_slice(j, sums):
            top_BT, total_BT, mean_BT, picked_BT = sums
            z_BTV = how.logits(x, _cut(table_VD, j, words, 0), j * words)
            new_top_BT = jnp.maximum(top_BT, jnp.max(z_BTV, axis=-1))
            e_BTV, shrink_BT = jnp.exp(z_BTV - new_top_BT[..., None]), jnp.exp(top_BT - new_top_BT)
            picked_BT += jnp.sum(jnp.where(_is_target(targets, j, words), z_BTV, 0.0), axis=-1)
            total_BT = total_BT * shrink_BT + jnp.sum(e_BTV, axis=-1)
            return new_top_BT, total_BT, mean_BT * shrink_BT + jnp.sum(e_BTV * z_BTV, axis=-1), picked_BT

        zero = jnp.zeros_like(targets, jnp.float32)
        top, total, mean, picked = jax.lax.fori_loop(0, slices, one_slice, (zero - 1e30, zero, zero, zero))
        lse = top + jnp.log(total)
        new = picked - lse, lse - mean / total, lse
        return tuple(_paste(f, n, i, how.chunk) for f, n in zip(found, new, strict=True))

    zero = jnp.zeros_like(targets_BT, jnp.float32)
    *found, lse_BT = jax.lax.fori_loop(0, -(-most // how.chunk), one_chunk, (zero, zero, zero))
    return tuple(found), (x_BTD, table_VD, targets_BT, most, found[1], lse_BT)


def _leading_backward(how: _How, saved, ct):
    x_BTD, table_VD, targets_BT, most, entropy_BT, lse_BT = saved
    words, slices = _slices(table_VD)

    def one_chunk(i, sums):
        x, targets, entropy, lse, dlogp, dentropy = (
            _cut(a, i, how.chunk) for a in (x_BTD, targets_BT, entropy_BT, lse_BT, *ct)
        )

        def one_slice(j, sums):
            dx, dtable_VD = sums
            logits = functools.partial(how.logits, first=j * words)
            z_BTV, back = jax.vjp(logits, x, _cut(table_VD, j, words, 0))
            logp_BTV = z_BTV - lse[..., None]
            by_p_BT = dlogp[..., None]  # d logp / dz = 1 at the target - p;  d entropy / dz = -p (log p + entropy)
            if how.entropy_grad:
                by_p_BT = by_p_BT + dentropy[..., None] * (logp_BTV + entropy[..., None])
            at_target = jnp.where(_is_target(targets, j, words), dlogp[..., None], 0.0)
            more_x, more_table = back(at_target - jnp.exp(logp_BTV) * by_p_BT)
            table = _cut(dtable_VD, j, words, 0) + more_table
            return dx + more_x.astype(jnp.float32), _paste(dtable_VD, table, j, words, 0)

        dx_BTD, dtable_VD = sums
        zero = jnp.zeros_like(x, jnp.float32)
        dx, dtable_VD = jax.lax.fori_loop(0, slices, one_slice, (zero, dtable_VD))
        return _paste(dx_BTD, dx.astype(x_BTD.dtype), i, how.chunk), dtable_VD

    zero = jnp.zeros_like(x_BTD), jnp.zeros_like(table_VD)
    return *jax.lax.fori_loop(0, -(-most // how.chunk), one_chunk, zero), None, None


_leading.defvjp(_leading_forward, _leading_backward)


def _slices(table_VD: jax.Array) -> tuple[int, int]:
    """(tokens per slice, slices): 16 equal slices, or fewer if V is not divisible or they would be too small.

    49,152 tokens are 16 slices of 3,072; 151,936 tokens are 16 of 9,496; 104 tokens are one slice.
    """
    slices = math.gcd(len(table_VD), 16)
    while slices > 1 and len(table_VD) // slices < LEAST_WORDS:
        slices //= 2
    return len(table_VD) // slices, slices


def _is_target(targets_BT: jax.Array, j, words: int) -> jax.Array:
    ids_V = jnp.arange(words, dtype=targets_BT.dtype) + j * words
    return ids_V[None, None] == targets_BT[..., None]


def _cut(x: jax.Array, i, size: int, axis: int = 1) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _paste(x: jax.Array, piece: jax.Array, i, size: int, axis: int = 1) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, piece, i * size, axis)


def spread_over(cfg: ModelConfig) -> tuple[str, ...]:
    """The mesh axes that split the vocabulary of the output table; () if the table is gathered instead.

    A device then computes its own part for the positions of all rows. That is as much work as all parts for its own
    rows, but neither the table nor its gradient exists whole on a device (Qwen3-4B, float32: 1.6 GB each).
    """
    mesh = active_mesh()
    if mesh is None or mesh.size == mesh.shape["tp"] or cfg.vocab_size % mesh.size:
        return ()
    return mesh.axis_names
