"""FLOPs and bytes of a step, counted from the shapes.

`jax`'s cost analysis counts the body of a loop once, and all of our programs are loops; these are the closed forms. A
multiply and an add are two operations. Only matmuls and attention count: norms, rotary angles and the optimizer are
below a percent.
"""

from __future__ import annotations

import dataclasses

from ropd_jax.models.config import ModelConfig


def layer_matmul_params(cfg: ModelConfig) -> int:
    """Weights of one layer that are multiplied with a token (with experts, only those of the token)."""
    D, N, K, H, F = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.mlp_dim
    attention = D * H * (2 * N + 2 * K)
    mlp = 3 * D * F
    return attention + (cfg.experts_per_token * mlp + D * cfg.num_experts if cfg.num_experts else mlp)


def head_params(cfg: ModelConfig) -> int:
    """Weights of the output head."""
    return cfg.vocab_size * cfg.d_model


def read_params(cfg: ModelConfig, tokens: int) -> int:
    """Weights that a decode step of ``tokens`` sequences must read: all that any token uses."""
    experts = 3 * cfg.d_model * cfg.mlp_dim * min(cfg.num_experts, cfg.experts_per_token * tokens)
    dense = layer_matmul_params(cfg) - 3 * cfg.d_model * cfg.mlp_dim * cfg.experts_per_token
    return cfg.num_layers * (dense + experts if cfg.num_experts else layer_matmul_params(cfg)) + head_params(cfg)


def contexts(cfg: ModelConfig, start: int, stop: int) -> int:
    """Keys attended to by the queries at positions [start, stop) of one sequence, summed over queries and layers."""
    local = sum(cfg.local_layers)

    def seen(window: int) -> int:  # sum of min(i + 1, window) for i in [start, stop)
        below_start, below_stop = min(start, window), min(stop, window)
        grows = below_stop * (below_stop + 1) // 2 - below_start * (below_start + 1) // 2
        return grows + (stop - below_stop - (start - below_start)) * window

    return (cfg.num_layers - local) * seen(stop) + (local * seen(cfg.window) if local else 0)


def attention_flops(cfg: ModelConfig, contexts: int) -> int:
    """Operations of attention in a forward pass: a pair of a query and a key (`contexts`) costs 2 H for the score and
    2 H for the value, for each of N heads."""
    return 4 * cfg.num_heads * cfg.head_dim * contexts


def forward_flops(cfg: ModelConfig, *, tokens: int, contexts: int, logits: int) -> int:
    """Operations of a forward pass.

    Args:
        tokens: number of tokens that go through the layers.
        contexts: see `contexts`.
        logits: positions whose logits are computed.
    """
    layers = 2 * cfg.num_layers * layer_matmul_params(cfg) * tokens
    return layers + attention_flops(cfg, contexts) + 2 * cfg.vocab_size * cfg.d_model * logits


def update_flops(
    cfg: ModelConfig,
    *,
    tokens: int,
    contexts: int,
    remat: bool,
    frozen: bool = False,
    references: int = 0,
    logits: int | None = None,
) -> int:
    """Operations of an update.

    Forward, and twice as much backward. The head's chunks, and with ``remat`` the layers, are recomputed backward.

    Args:
        tokens: number of computed positions.
        contexts: see `contexts`, summed over the sequences.
        frozen: the weights are frozen (LoRA): no weight gradients are computed. The adapters are not counted.
        references: additional forward passes (1 with a KL term).
        logits: positions whose logits are computed; None for all.
    """
    attention = attention_flops(cfg, contexts)
    weights = 2 * cfg.num_layers * layer_matmul_params(cfg) * tokens
    head = 2 * cfg.vocab_size * cfg.d_model * (tokens if logits is None else logits)
    back = 1 if frozen else 2  # for the input, and for the weight
    again = 1 if remat else 0
    passes = weights * (1 + back + again) + head * (2 + back) + attention * (3 + again)
    return passes + references * (attention + weights + head)


def divergence_flops(cfg: ModelConfig, *, told: int, contexts: int, logits: int, frozen: bool = False) -> int:
    """Operations that the divergence from the same network told another prompt adds to an update (`training.told`): a
    forward pass, and the heads of both; the chunks of the head are recomputed backward.

    Args:
        told: positions of the told rows.
        contexts: see `contexts`, summed over the told sequences.
        logits: positions that are compared.
        frozen: the output table is frozen (LoRA).
    """
    layers = 2 * cfg.num_layers * layer_matmul_params(cfg) * told
    head = 2 * cfg.vocab_size * cfg.d_model * logits
    return layers + attention_flops(cfg, contexts) + head * (2 + 2 + (1 if frozen else 2))


def kv_bytes_per_token(cfg: ModelConfig, itemsize: float) -> float:
    """Keys and values of one position in all layers."""
    return 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * itemsize


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """The cost of sampling one step, on the whole slice.

    Attributes:
        tokens: generated.
        flops: of prefill and decode.
        decode_steps: minimum number of passes of all slots, if every slot always has work.
        cache_bytes: keys and values read while decoding.
    """

    tokens: int
    flops: int
    prefill_flops: int
    decode_steps: float
    cache_bytes: float


def rollouts(
    cfg: ModelConfig, *, prompts: int, per_prompt: int, prompt_len: int, answer_len: int, slots: int, itemsize: float
) -> Rollouts:
    """A prompt is prefilled once for its ``per_prompt`` rollouts; every answer has ``answer_len`` tokens.

    Args:
        slots: sequences decoded side by side.
        itemsize: bytes of one number in the cache.
    """
    sequences = prompts * per_prompt
    prefill = prompts * forward_flops(cfg, tokens=prompt_len, contexts=contexts(cfg, 0, prompt_len), logits=1)
    looked_at = contexts(cfg, prompt_len, prompt_len + answer_len)
    decode = sequences * forward_flops(cfg, tokens=answer_len, contexts=looked_at, logits=answer_len)
    a_position_of_a_layer = kv_bytes_per_token(cfg, itemsize) / cfg.num_layers
    return Rollouts(
        tokens=sequences * answer_len,
        flops=prefill + decode,
        prefill_flops=prefill,
        decode_steps=sequences * answer_len / min(slots, sequences),
        cache_bytes=sequences * looked_at * a_position_of_a_layer,
    )
