"""The shape of a student. Every number comes from a checkpoint; absent features are 0, False or None."""

from __future__ import annotations

import dataclasses

from ropd_jax.types import UserError

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Stretches the rotary angles of a checkpoint that was extended to longer contexts.

    Attributes:
        kind: ``linear`` divides every frequency by ``factor``. ``llama3`` divides the low ones (wavelength above
            ``original_len / low_freq_factor``), keeps the high ones (below ``original_len / high_freq_factor``)
            and blends between. ``yarn`` (arXiv 2309.00071) divides those with fewer than ``beta_slow`` full cycles in
            ``original_len``, keeps those with more than ``beta_fast`` and blends between, by the index of the pair.
        factor: the ratio of the lengths.
        low_freq_factor, high_freq_factor: ``llama3`` only.
        original_len: number of positions before the extension; ``llama3`` and ``yarn``.
        beta_fast, beta_slow: ``yarn`` only.
        truncate: ``yarn`` only; the two ends of the blend are rounded outwards to whole pairs.
        attention_factor: ``yarn`` only; factor of sines and cosines, so attention logits get its square.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_len: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: Llama, SmolLM2/3, Mistral, Qwen2, Qwen3 (dense and MoE), Gemma 2, Gemma 3 (text).

    Attributes:
        vocab_size: V.
        num_layers: L.
        d_model: D.
        num_heads: N, query heads.
        num_kv_heads: K, key/value heads; K divides N.
        head_dim: H.
        mlp_dim: F; with experts, that of one expert.
        rope_theta: base of the rotary angles.
        norm_eps: added to the mean square inside RMSNorm.
        tied: the output head is the embedding table.
        max_seq_len: maximum sequence length of the checkpoint.
        qkv_bias: Q, K and V projections have biases (Qwen2).
        qk_norm: RMSNorm over each head of Q and K (Qwen3, Gemma 3).
        rope_scaling: scaling of the global layers' angles (Llama 3, Gemma 3, YaRN of Qwen).
        norm_plus_one: RMSNorm multiplies by 1 + scale (Gemma).
        sandwich_norms: additional norms after attention and MLP, before the residual is added (Gemma).
        activation: activation of the gated MLP.
        embed_scale: factor on the embeddings, sqrt(D) for Gemma; 1 otherwise.
        attn_scale: factor on Q K^T; 0 means H^-1/2.
        attn_softcap, final_softcap: logits become cap * tanh(logits / cap) (Gemma 2); 0 for none.
        window: positions that a local layer's query sees, including its own; 0 if there are no local layers.
        local_layers: for each layer, whether it is local; empty if none is.
        no_rope_layers: for each layer, whether its queries and keys are unrotated (SmolLM3); empty if all are rotated.
        rope_theta_local: base of the local layers' angles, not scaled; 0 means ``rope_theta``.
        num_experts: experts of each layer's MLP (Qwen3-MoE); 0 is a dense MLP.
        experts_per_token: number of experts per token.
        norm_top_k: the weights of a token's experts are divided by their sum.
        unused: (begin, end) of each range of ids that are not tokens of the tokenizer: padding rows of the table, gaps.
            They have no probability in the sampler, in log-probs, entropies or divergences.
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
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    norm_plus_one: bool = False
    sandwich_norms: bool = False
    activation: str = "silu"
    embed_scale: float = 1.0
    attn_scale: float = 0.0
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    window: int = 0
    local_layers: tuple[bool, ...] = ()
    no_rope_layers: tuple[bool, ...] = ()
    rope_theta_local: float = 0.0
    num_experts: int = 0
    experts_per_token: int = 0
    norm_top_k: bool = False
    unused: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                "check the checkpoint's config"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} is odd; rotary embedding rotates pairs, so it must be even")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation={self.activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}")
        if self.local_layers and (len(self.local_layers) != self.num_layers or self.window < 1):
            raise UserError(
                f"local_layers names {len(self.local_layers)} layers and window={self.window}; expected one entry for "
                f"each of the {self.num_layers} layers and a window of at least 1"
            )
        if self.no_rope_layers and len(self.no_rope_layers) != self.num_layers:
            raise UserError(
                f"no_rope_layers names {len(self.no_rope_layers)} layers; expected one entry for each of the "
                f"{self.num_layers} layers"
            )
        if not 0 <= self.experts_per_token <= self.num_experts or bool(self.num_experts) != bool(
            self.experts_per_token
        ):
            raise UserError(
                f"experts_per_token={self.experts_per_token} with num_experts={self.num_experts}; expected 1 to "
                "num_experts, or 0 for both"
            )
