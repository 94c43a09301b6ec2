"""Divergence between two models over the whole vocabulary, position by position, in chunks: no [B, T, V] ever exists.

Both come as hidden states and output tables. At V = 151,936 and T = 10,240 a pair of float32 logits of one sequence is
12.4 GB; a chunk of 128 positions is 156 MB, recomputed in the backward pass.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig


def jensen_shannon(student_BTV: jax.Array, teacher_BTV: jax.Array, beta: float) -> jax.Array:
    """Generalised JSD(beta) of log-probs, summed over the vocabulary (GKD, arXiv 2306.13649, Eq. 1 as TRL has it).

    With M = beta P + (1 - beta) Q, P the teacher and Q the student: beta KL(P || M) + (1 - beta) KL(Q || M). At the
    ends it stands for KL(P || Q) (beta = 0, forward) and KL(Q || P) (beta = 1, reverse).

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

    Args:
        x_BTD: the student's hidden states before its final norm.
        teacher_table_VD: the teacher's output table, gathered for use. Its D is the teacher's own.
        teacher_x_BTD: the teacher's hidden states after its final norm (`normed_hidden`).
        chunk: positions whose logits exist at once.
    """
    T = x_BTD.shape[1]
    norm, table_VD = transformer.head(cfg, params)
    pad = ((0, 0), (0, -T % chunk), (0, 0))
    x_BTD, teacher_x_BTD = jnp.pad(norm(x_BTD), pad), jnp.pad(teacher_x_BTD, pad)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(x_BTD, teacher_x_BTD):
        mine_BTV = transformer.output_logits(cfg, x_BTD, table_VD) / temperature
        others_BTV = transformer.output_logits(teacher_cfg, teacher_x_BTD, teacher_table_VD) / temperature
        return jensen_shannon(jax.nn.log_softmax(mine_BTV), jax.nn.log_softmax(others_BTV), beta)

    def split(x_BTD):  # [B, T, D] -> [chunks, B, chunk, D]
        return x_BTD.reshape(x_BTD.shape[0], -1, chunk, x_BTD.shape[-1]).swapaxes(0, 1)

    pieces = jax.lax.map(lambda xs: one_chunk(*xs), (split(x_BTD), split(teacher_x_BTD)))
    return pieces.swapaxes(0, 1).reshape(x_BTD.shape[0], -1)[:, :T]


def normed_hidden(cfg: ModelConfig, params: transformer.Params, x_BTD: jax.Array) -> jax.Array:
    """Hidden states after the final norm: with the output table, all that a divergence needs of a model."""
    return transformer.head(cfg, params)[0](x_BTD)
