"""The shape of a student. Every number here is owned by a checkpoint, so nothing has a default."""

from __future__ import annotations

import dataclasses

from ropd_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the Llama family.

    Attributes:
        vocab_size: V.
        num_layers: L.
        d_model: D.
        num_heads: N, query heads.
        num_kv_heads: K, key/value heads; K divides N.
        head_dim: H.
        mlp_dim: F.
        rope_theta: base of the rotary angles.
        norm_eps: added to the mean square inside RMSNorm.
        tied: the output head is the embedding table.
        max_seq_len: the longest sequence the checkpoint was made for.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float
    norm_eps: float
    tied: bool
    max_seq_len: int

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                "check the checkpoint's config"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} is odd; rotary embedding turns pairs, so it must be even")
