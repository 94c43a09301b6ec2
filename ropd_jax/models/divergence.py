"""Divergence and overlap of two models over the whole vocabulary, in chunks of positions: [B, T, V] never exists.

Each model is given by hidden states and an output table; a policy and itself told another prompt share the table. At
V = 151,936 and T = 10,240 a pair of float32 logits of one sequence is 12.4 GB; a chunk of 128 positions is 156 MB,
recomputed in the backward pass.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.logprobs import spread_over
from ropd_jax.parallel.mesh import active_mesh, constrain, locally, out


def jensen_shannon(student_BTV: jax.Array, teacher_BTV: jax.Array, beta: float) -> jax.Array:
    """Generalised JSD(beta) of log-probs, summed over the vocabulary (GKD, arXiv 2306.13649, Eq. 1 as in TRL).

    With M = beta P + (1 - beta) Q, P the teacher and Q the student: beta KL(P || M) + (1 - beta) KL(Q || M). At the
    ends it means KL(P || Q) (beta = 0, forward) and KL(Q || P) (beta = 1, reverse).

    Raises:
        ValueError: beta outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta={beta}; expected 0 (forward KL) to 1 (reverse KL)")

    def kl(p_BTV, q_BTV):
        return jnp.sum(jnp.exp(p_BTV) * (p_BTV - q_BTV), axis=-1)

    if beta == 0.0:
        return kl(teacher_BTV, student_BTV)
    if beta == 1.0:
        return kl(student_BTV, teacher_BTV)
    mixture_BTV = jnp.logaddexp(teacher_BTV + jnp.log(beta), student_BTV + jnp.log1p(-beta))
    return beta * kl(teacher_BTV, mixture_BTV) + (1.0 - beta) * kl(student_BTV, mixture_BTV)


def vocabulary_divergence(
    cfg: ModelConfig,
    params: transformer.Params,
    x_BTD: jax.Array,
    teacher_cfg: ModelConfig,
    teacher_table_VD: jax.Array,
    teacher_x_BTD: jax.Array,
    *,
    beta: float,
    temperature: float = 1.0,
    chunk: int = 128,
) -> jax.Array:
    """divergence_BT in nats, float32, of softmax(logits / temperature) of student and teacher; see `jensen_shannon`.

    Ids that are unused in either are excluded; otherwise a token that only the teacher has would make it infinite.

    Args:
        x_BTD: the student's hidden states before its final norm.
        teacher_table_VD: the teacher's output table, gathered for use. Its D is the teacher's own.
        teacher_x_BTD: the teacher's hidden states after its final norm (`normed_hidden`).
        chunk: positions whose logits exist at once.
    """
    norm, table_VD = transformer.head(cfg, params)
    unused = cfg.unused + teacher_cfg.unused
    cfg, teacher_cfg = (dataclasses.replace(c, unused=unused) for c in (cfg, teacher_cfg))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(x_BTD, teacher_x_BTD):
        mine_BTV = transformer.output_logits(cfg, x_BTD, table_VD) / temperature
        others_BTV = transformer.output_logits(teacher_cfg, teacher_x_BTD, teacher_table_VD) / temperature
        return jensen_shannon(jax.nn.log_softmax(mine_BTV), jax.nn.log_softmax(others_BTV), beta)

    return _by_chunk(one_chunk, chunk, norm(x_BTD), teacher_x_BTD)


def told_divergence(
    cfg: ModelConfig,
    params: transformer.Params,
    x_BTD: jax.Array,
    told_x_BTD: jax.Array,
    *,
    beta: float,
    top_k: int = 0,
    temperature: float = 1.0,
    chunk: int = 128,
    wanted_BT: jax.Array | None = None,
) -> jax.Array:
    """divergence_BT in nats, float32, of a policy from itself told another prompt, its teacher; see `jensen_shannon`.

    With ``top_k`` the classes are the teacher's likeliest tokens and one for all others. So it is a divergence of
    two distributions that each sum to 1, never negative, and at most the whole one. A sum over the likeliest tokens
    without the last class is not (verl-project/verl issue 7856). With beta = 0 and top_k = 2::

        token      a     b     c     d         classes    a     b    others
        teacher   0.6   0.3   0.08  0.02                 0.6   0.3   0.1       0.6 log 0.6/0.2 + 0.3 log 0.3/0.3
        policy    0.2   0.3   0.4   0.1                  0.2   0.3   0.5       + 0.1 log 0.1/0.5 = 0.498

    The gradient flows through the policy only: the teacher's hidden states and its use of the table are constants. On
    a mesh each device computes its own tokens of the vocabulary. Positions that are not wanted move to the end of their
    row, and chunks without a wanted position are not computed.

    Args:
        x_BTD: hidden states of the policy before the final norm, at the positions that predict the targets.
        told_x_BTD: hidden states of the teacher before the final norm, at the same positions.
        top_k: tokens with a class of their own, at most ``cfg.vocab_size``; 0 for every token.
        temperature: both distributions are softmax(logits / temperature).
        chunk: positions whose logits exist at once.
        wanted_BT: bool, the positions that are needed; the others are 0. None: all.

    Raises:
        ValueError: beta outside [0, 1].
    """
    B, T = x_BTD.shape[:2]
    norm, table_VD = transformer.head(cfg, params)
    mesh = active_mesh()
    axes = () if mesh is None else spread_over(cfg) or ("tp",)
    how = _Told(cfg, beta, top_k, temperature, axes)
    distance = functools.partial(_told_chunk, how)
    if mesh is not None:
        table_VD = reshard((params["embed"] if cfg.tied else params["head"])["table_VD"], P(axes, None))
        distance = jax.shard_map(distance, in_specs=(out("BSD"), out("BSD"), P(axes, None)), out_specs=out("BS"))

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, -T % chunk), *[(0, 0)] * (x.ndim - 2)))

    wanted_BT = jnp.ones((B, T), bool) if wanted_BT is None else wanted_BT
    wanted_BT = pad(constrain(wanted_BT, "BS"))
    first_BT = jnp.argsort(~wanted_BT, axis=1, stable=True)
    used = -(-jnp.max(jnp.sum(wanted_BT, axis=1, dtype=jnp.int32)) // chunk)
    x_BTD, told_x_BTD = (take_positions(pad(constrain(x, "BSD")), first_BT) for x in (norm(x_BTD), norm(told_x_BTD)))
    told_x_BTD = jax.lax.stop_gradient(told_x_BTD)

    found_BT = _leading_chunks(distance, chunk, x_BTD, told_x_BTD, table_VD, used)
    found_BT = take_positions(found_BT[..., None], jnp.argsort(first_BT, axis=1))[..., 0]
    return jnp.where(wanted_BT, found_BT, 0.0)[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _leading_chunks(f, chunk: int, x_BTD, told_x_BTD, table_VD, used):
    """``f(x_BTD, told_x_BTD, table_VD)`` of the first ``used`` chunks of positions, one after another; 0 after them.

    The backward pass recomputes each chunk and adds to one gradient of the table. There is none for ``told_x_BTD``.
    """

    def one_chunk(i, found_BT):
        new_BT = f(*(_cut(x, i, chunk) for x in (x_BTD, told_x_BTD)), table_VD)
        return jax.lax.dynamic_update_slice_in_dim(found_BT, new_BT, i * chunk, axis=1)

    return jax.lax.fori_loop(0, used, one_chunk, constrain(jnp.zeros(x_BTD.shape[:2], jnp.float32), "BS"))


def _leading_chunks_forward(f, chunk: int, x_BTD, told_x_BTD, table_VD, used):
    return _leading_chunks(f, chunk, x_BTD, told_x_BTD, table_VD, used), (x_BTD, told_x_BTD, table_VD, used)


def _leading_chunks_backward(f, chunk: int, saved, ct_BT):
    x_BTD, told_x_BTD, table_VD, used = saved

    def one_chunk(i, sums):
        dx_BTD, dtable_VD = sums
        x, told_x, ct = (_cut(a, i, chunk) for a in (x_BTD, told_x_BTD, ct_BT))
        _, pull_back = jax.vjp(lambda x, table_VD: f(x, told_x, table_VD), x, table_VD)
        dx, more_VD = pull_back(ct)
        return jax.lax.dynamic_update_slice_in_dim(dx_BTD, dx, i * chunk, axis=1), dtable_VD + more_VD

    zeros = jnp.zeros_like(x_BTD), jnp.zeros_like(table_VD)
    dx_BTD, dtable_VD = jax.lax.fori_loop(0, used, one_chunk, zeros)
    return dx_BTD, jnp.zeros_like(told_x_BTD), dtable_VD, None


_leading_chunks.defvjp(_leading_chunks_forward, _leading_chunks_backward)


def _cut(x: jax.Array, i, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)


class _Told(NamedTuple):
    """How `told_divergence` compares; ``axes`` of the mesh split the tokens of the vocabulary."""

    cfg: ModelConfig
    beta: float
    top_k: int
    temperature: float
    axes: tuple[str, ...]


def _told_chunk(how: _Told, x_BTD: jax.Array, told_x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """divergence_BT of normed hidden states; on a mesh in `jax.shard_map`, with some tokens of the table per device."""
    axes, rows = how.axes, len(x_BTD)
    spec = out("B")
    split = spec[0] if spec and len(axes) > 1 else None  # the devices with other rows also have other tokens
    if split:
        x_BTD, told_x_BTD = (jax.lax.all_gather(x, split, tiled=True) for x in (x_BTD, told_x_BTD))
    first = jax.lax.axis_index(axes) * len(table_VD) if axes else 0

    def logits(x_BTD, table_VD):
        return transformer.output_logits(how.cfg, x_BTD, table_VD, first=first) / how.temperature

    mine_BTV, others_BTV = logits(x_BTD, table_VD), logits(told_x_BTD, jax.lax.stop_gradient(table_VD))
    if how.top_k:
        ids_BTk = _likeliest(others_BTV, how.top_k, first, axes)
        mine_BTk, others_BTk = (_classes(z_BTV, ids_BTk, first, axes) for z_BTV in (mine_BTV, others_BTV))
        found_BT = jensen_shannon(mine_BTk, others_BTk, how.beta)
    else:
        mine_BTV, others_BTV = (z_BTV - _logsumexp(z_BTV, axes)[..., None] for z_BTV in (mine_BTV, others_BTV))
        found_BT = _sum_over(jensen_shannon(mine_BTV, others_BTV, how.beta), axes)
    return jax.lax.dynamic_slice_in_dim(found_BT, jax.lax.axis_index(split) * rows, rows) if split else found_BT


def _likeliest(z_BTV: jax.Array, k: int, first, axes: tuple[str, ...]) -> jax.Array:
    """int32 ids_BTk of the tokens with the largest logits; each device has those from id ``first`` on."""
    top_BTk, ids_BTk = jax.lax.top_k(z_BTV, min(k, z_BTV.shape[-1]))
    ids_BTk += first
    if not axes:
        return ids_BTk
    top_BTk, ids_BTk = (jax.lax.all_gather(x, axes, axis=2, tiled=True) for x in (top_BTk, ids_BTk))
    return jnp.take_along_axis(ids_BTk, jax.lax.top_k(top_BTk, k)[1], axis=-1)


def _classes(z_BTV: jax.Array, ids_BTk: jax.Array, first, axes: tuple[str, ...]) -> jax.Array:
    """Log-probs [B, T, k + 1] of the tokens ``ids_BTk`` and of all others together.

    The last is a log-sum-exp over the others, not log(1 - sum): 1 - 0.9999999 has no digit left in float32.
    """
    words = z_BTV.shape[-1]
    here_BTk = (ids_BTk >= first) & (ids_BTk < first + words)
    at_BTk = jnp.where(here_BTk, ids_BTk - first, words)
    picked_BTk = jnp.take_along_axis(z_BTV, jnp.minimum(at_BTk, words - 1), axis=-1)
    picked_BTk = _sum_over(jnp.where(here_BTk, picked_BTk, 0.0), axes)
    others_BTV = jnp.put_along_axis(z_BTV, at_BTk, -1e30, axis=-1, inplace=False, mode="drop")
    return jax.nn.log_softmax(jnp.concatenate([picked_BTk, _logsumexp(others_BTV, axes)[..., None]], axis=-1))


def _logsumexp(z_BTV: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    top_BT = jax.lax.stop_gradient(jnp.max(z_BTV, axis=-1))
    top_BT = jax.lax.pmax(top_BT, axes) if axes else top_BT
    return top_BT + jnp.log(_sum_over(jnp.sum(jnp.exp(z_BTV - top_BT[..., None]), axis=-1), axes))


def _sum_over(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(x, axes) if axes else x


def take_positions(x_BTD: jax.Array, at_BT: jax.Array) -> jax.Array:
    """x_BTD at other positions of the same rows; on a mesh, each device has whole rows."""
    take = locally(lambda x_BTD, at_BT: jnp.take_along_axis(x_BTD, at_BT[..., None], axis=1), ("BSD", "BS"), "BSD")
    return take(x_BTD, at_BT)


def top_k_overlap(
    cfg: ModelConfig,
    params: transformer.Params,
    x_BTD: jax.Array,
    teacher_cfg: ModelConfig,
    teacher_params: transformer.Params,
    teacher_x_BTD: jax.Array,
    *,
    k: int,
    chunk: int = 32,
) -> tuple[jax.Array, jax.Array]:
    """(overlap_BT, mass_BT), float32: the share of the k most likely next tokens that student and teacher have in
    common, and the student's probability of those. Does not support a mesh.

    Args:
        x_BTD, teacher_x_BTD: hidden states before the final norms. The vocabularies' tokens must be the same.
        chunk: positions whose logits exist at once.
    """
    norm, table_VD = transformer.head(cfg, params)
    teacher_norm, teacher_table_VD = transformer.head(teacher_cfg, teacher_params)

    def one_chunk(x_BTD, teacher_x_BTD):
        mine_BTV = transformer.output_logits(cfg, x_BTD, table_VD)
        others_BTV = transformer.output_logits(teacher_cfg, teacher_x_BTD, teacher_table_VD)
        top_BTk, mine_BTk = jax.lax.top_k(mine_BTV, k)
        _, others_BTk = jax.lax.top_k(others_BTV, k)
        both_BTk = jnp.any(mine_BTk[..., :, None] == others_BTk[..., None, :], axis=-1)
        p_BTk = jnp.exp(top_BTk - jax.nn.logsumexp(mine_BTV, axis=-1, keepdims=True))
        return jnp.stack([jnp.mean(both_BTk, axis=-1), jnp.sum(jnp.where(both_BTk, p_BTk, 0.0), axis=-1)], axis=-1)

    found_BT2 = _by_chunk(one_chunk, chunk, norm(x_BTD), teacher_norm(teacher_x_BTD))
    return found_BT2[..., 0], found_BT2[..., 1]


def _by_chunk(f, chunk: int, *x_BTD: jax.Array) -> jax.Array:
    """``f`` applied to [B, chunk, D], one chunk of positions after another; the results joined to [B, T, ...]."""
    B, T = x_BTD[0].shape[:2]

    def split(x_BTD):  # [B, T, D] -> [chunks, B, chunk, D]
        x_BTD = jnp.pad(x_BTD, ((0, 0), (0, -T % chunk), (0, 0)))
        return x_BTD.reshape(B, -1, chunk, x_BTD.shape[-1]).swapaxes(0, 1)

    pieces = jax.lax.map(lambda xs: f(*xs), tuple(map(split, x_BTD))).swapaxes(0, 1)
    return pieces.reshape(B, -1, *pieces.shape[3:])[:, :T]


def normed_hidden(cfg: ModelConfig, params: transformer.Params, x_BTD: jax.Array) -> jax.Array:
    """Hidden states after the final norm: with the output table, all that a divergence needs from a model."""
    return transformer.head(cfg, params)[0](x_BTD)
