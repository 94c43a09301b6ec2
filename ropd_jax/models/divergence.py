"""Divergence and overlap of two models over the whole vocabulary, in chunks of positions: [B, T, V] never exists.

Each model is given by hidden states and an output table. At V = 151,936 and T = 10,240 a pair of float32 logits of one
sequence is 12.4 GB; a chunk of 128 positions is 156 MB, recomputed in the backward pass.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig


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
