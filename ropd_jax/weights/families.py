"""config.json of each supported family to a `ModelConfig`, and back. Imports no jax and no transformers.

A family is data: its features beyond Llama, and the meaning of absent keys in its config (the published files of Gemma
3 omit most keys).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ropd_jax.models.config import ModelConfig, RopeScaling
from ropd_jax.types import UserError
from ropd_jax.utils.files import one_line, read_json

GEMMA = dict(
    vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
    num_key_value_heads=4, head_dim=256, max_position_embeddings=8192, rms_norm_eps=1e-6, tie_word_embeddings=True,
    query_pre_attn_scalar=256, sliding_window=4096, hidden_activation="gelu_pytorch_tanh", rope_theta=10_000.0,
)  # fmt: skip
LLAMA = dict(tie_word_embeddings=False, hidden_act="silu", rope_theta=10_000.0)
ABSENT: dict[str, dict[str, Any]] = {  # model_type -> the values of absent keys
    "llama": LLAMA,
    "mistral": LLAMA | dict(num_key_value_heads=8, sliding_window=4096),
    "smollm3": LLAMA
    | dict(num_key_value_heads=4, rope_theta=2_000_000.0, tie_word_embeddings=True, no_rope_layer_interval=4),
    "qwen2": LLAMA | dict(num_key_value_heads=32),
    "qwen3": LLAMA | dict(num_key_value_heads=32, head_dim=128),
    "qwen3_moe": LLAMA | dict(num_key_value_heads=4, norm_topk_prob=False, decoder_sparse_step=1),
    "gemma2": GEMMA | dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    "gemma3_text": GEMMA
    | dict(vocab_size=262_208, max_position_embeddings=131_072, rope_theta=1_000_000.0, rope_local_base_freq=10_000.0),
}
# null disables optional features. These keys are computed from others, or have their own value for "off".
COMPUTED = (
    "head_dim", "num_key_value_heads", "layer_types", "sliding_window_pattern", "_sliding_window_pattern",
    "hidden_activation", "no_rope_layers", "partial_rotary_factor", "rope_scaling", "rope_parameters",
)  # fmt: skip
ARCHITECTURE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
GEMMAS = ("gemma2", "gemma3_text")
WITH_PICTURES = {"gemma3": "Gemma3ForConditionalGeneration"}  # their text part, under text_config
MISSING = {  # model_type -> the part of its architecture that `ropd_jax.models` lacks
    "gemma": "the embedding scale of the first Gemma without its later norms",
    "gemma3n": "AltUp, LAuReL and per-layer embeddings",
    "gemma4": "per-layer embeddings, and K and V that layers share",
    "gpt_oss": "attention sinks and MXFP4 experts",
    "llama4": "chunked attention, layers without rotary angles, and experts with a shared one",
    "ministral3": "attention logits that are scaled by position",
    "olmo2": "norms after each block only, and Q and K norms over all heads",
    "olmo3": "norms after each block only, and Q and K norms over all heads",
    "phi3": "one matrix for Q, K and V, and LongRoPE",
    "qwen2_moe": "a shared expert",
    "qwen3_5": "gated DeltaNet (linear attention) layers and gated attention",
    "qwen3_5_moe": "gated DeltaNet (linear attention) layers, gated attention and a shared expert",
    "qwen3_next": "gated DeltaNet (linear attention) layers, gated attention and a shared expert",
}
MISSING |= {f"{kind}_text": MISSING[kind] for kind in ("gemma3n", "gemma4", "llama4", "qwen3_5", "qwen3_5_moe")}
MOST_LAYERS, MOST_EXPERTS = 1_000, 4_096  # each one is several tensors; a wrong config must not use up memory
ACTIVATION = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def read_config(path: str | pathlib.Path) -> ModelConfig:
    """``config.json`` of a Hugging Face directory as a `ModelConfig`.

    Raises:
        UserError: no config, an unsupported architecture or feature, a missing or wrong value.
    """
    file = pathlib.Path(path) / "config.json"
    if not file.is_file():
        if (pathlib.Path(path) / "adapter_config.json").is_file():
            raise UserError(
                f"{path} holds PEFT adapters without their base; merge them into it (peft: merge_and_unload, then "
                "save_pretrained), and give that directory"
            )
        raise UserError(f"{path} has no config.json; expected a Hugging Face directory (config.json, *.safetensors)")
    raw = read_json(file)
    with one_line(file):
        return _read(file, raw)


def has_pictures(path: pathlib.Path) -> bool:
    """Whether a checkpoint's text part is one of several: then its tensors have longer names."""
    return read_json(path / "config.json", optional=True).get("model_type") in WITH_PICTURES


def _read(file: pathlib.Path, raw: dict) -> ModelConfig:
    kind, names = raw.get("model_type"), raw.get("architectures") or ()
    if kind in WITH_PICTURES:
        outer = raw.get("tie_word_embeddings", True)  # the value in the text part is ignored
        raw = {**(raw.get("text_config") or {}), "tie_word_embeddings": outer}
        kind, names = raw.get("model_type", f"{kind}_text"), ()
    if kind not in ABSENT:
        known = ", ".join([*ABSENT, *WITH_PICTURES])
        lacks = f" (missing here: {MISSING[kind]})" if kind in MISSING else ""
        raise UserError(f"{file}: model_type={kind!r} is not supported{lacks}; supported: {known}")
    if names and ARCHITECTURE[kind] not in names:
        raise UserError(f"{file}: architectures={list(names)} is not supported; expected {ARCHITECTURE[kind]!r}")
    raw = ABSENT[kind] | _flat_rope(raw)
    raw = {k: v for k, v in raw.items() if v is not None or k not in COMPUTED}
    if kind in GEMMAS:  # they read only hidden_activation; it is null in the first published files
        raw["hidden_act"] = raw.get("hidden_activation", GEMMA["hidden_activation"])
    _refuse_unsupported(file, kind, raw)
    return _config(file, kind, raw)


def _flat_rope(raw: dict) -> dict:
    """The newer ``rope_parameters`` (nested by kind of layer in Gemma 3) in the older keys."""
    rope = raw.get("rope_parameters") or {}
    full = rope.get("full_attention", rope) or {}
    flat = dict(raw)
    if "rope_theta" in full:
        flat["rope_theta"] = full["rope_theta"]
    if "rope_theta" in (local := rope.get("sliding_attention") or {}):
        flat["rope_local_base_freq"] = local["rope_theta"]
    if (full.get("rope_type") or full.get("type") or "default") != "default":
        flat["rope_scaling"] = full
    if "partial_rotary_factor" in full:
        flat["partial_rotary_factor"] = full["partial_rotary_factor"]
    return flat


def _refuse_unsupported(file: pathlib.Path, kind: str, raw: Mapping) -> None:
    for key in ("attention_bias", "mlp_bias", "quantization_config", "use_sliding_window", "mlp_only_layers",
                "use_bidirectional_attention"):  # fmt: skip
        if raw.get(key):
            raise UserError(f"{file}: {key}={str(raw[key])[:80]} is not supported yet; choose a checkpoint without it")
    if raw.get("decoder_sparse_step", 1) != 1:
        raise UserError(f"{file}: decoder_sparse_step={raw['decoder_sparse_step']} is not supported yet; expected 1")
    act = raw["hidden_act"]
    if act not in ACTIVATION:
        raise UserError(f"{file}: hidden_act={act!r} is not supported yet; expected {', '.join(ACTIVATION)}")
    if raw.get("partial_rotary_factor", 1) != 1:
        factor = raw["partial_rotary_factor"]
        raise UserError(f"{file}: partial_rotary_factor={factor} is not supported yet; expected 1")
    if kind not in (*GEMMAS, "mistral") and set(types := raw.get("layer_types", ())) - {"full_attention"}:
        raise UserError(f"{file}: layer_types={str(types)[:80]} is not supported yet; expected full_attention only")


@dataclasses.dataclass(frozen=True)
class _Keys:
    """The keys of a config.json, each checked when it is read; errors name the file, the key and its value."""

    file: pathlib.Path
    raw: Mapping

    def number(self, key: str, default=None, cast=int, most=math.inf):
        """A positive number up to ``most``; null means absent."""
        value = self.raw.get(key, default)
        known = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not known or value > most or value != cast(value):
            limit = f" up to {most:,}" if most < math.inf else ""
            raise UserError(
                f"{self.file}: {key}={repr(value)[:60]}, expected a positive {cast.__name__}{limit}; "
                "check the checkpoint"
            )
        return cast(value)

    def number_or_off(self, key: str) -> float:
        """A number; 0 if it is absent, null or 0."""
        return self.number(key, cast=float) if self.raw.get(key) else 0.0

    def flag(self, key: str) -> bool:
        """True or false; null is false."""
        value = self.raw[key]
        if not isinstance(value, bool | None):
            raise UserError(f"{self.file}: {key}={value!r}, expected true or false; check the checkpoint")
        return bool(value)


def _config(file: pathlib.Path, kind: str, raw: Mapping) -> ModelConfig:
    keys = _Keys(file, raw)
    d_model, num_heads = keys.number("hidden_size"), keys.number("num_attention_heads")
    if "head_dim" not in raw and d_model % num_heads:
        raise UserError(
            f"{file}: hidden_size={d_model} is not a multiple of num_attention_heads={num_heads} and there is no "
            "head_dim; check the checkpoint"
        )
    scaling, longest = _rope_scaling(file, raw), keys.number("max_position_embeddings")
    if scaling is not None and scaling.kind == "yarn":  # Qwen3's files give the length without it
        longest = max(longest, int(scaling.factor * scaling.original_len))
    return ModelConfig(
        vocab_size=keys.number("vocab_size"),
        num_layers=keys.number("num_hidden_layers", most=MOST_LAYERS),
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=keys.number("num_key_value_heads", num_heads),
        head_dim=keys.number("head_dim", d_model // num_heads),
        mlp_dim=keys.number("moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size"),
        rope_theta=keys.number("rope_theta", cast=float),
        norm_eps=keys.number("rms_norm_eps", cast=float),
        tied=keys.flag("tie_word_embeddings"),
        max_seq_len=longest,
        qkv_bias=kind == "qwen2",
        qk_norm=kind in ("qwen3", "qwen3_moe", "gemma3_text"),
        rope_scaling=scaling,
        activation=ACTIVATION[raw["hidden_act"]],
        **_features(kind, keys),
    )


def _features(kind: str, keys: _Keys) -> dict[str, Any]:
    """What a family has in addition to a Llama, as fields of `ModelConfig`."""
    file, raw, number = keys.file, keys.raw, keys.number
    layers = number("num_hidden_layers", most=MOST_LAYERS)
    if kind == "qwen3_moe":
        return dict(
            num_experts=number("num_experts", raw.get("num_local_experts"), most=MOST_EXPERTS),
            experts_per_token=number("num_experts_per_tok"),
            norm_top_k=keys.flag("norm_topk_prob"),
        )
    if kind == "mistral" and raw["sliding_window"] is not None:
        return dict(window=number("sliding_window"), local_layers=(True,) * layers)
    if kind == "smollm3":
        return dict(no_rope_layers=_no_rope_layers(file, raw, layers, number("no_rope_layer_interval")))
    if kind not in GEMMAS:
        return {}
    windowed = raw["sliding_window"] is not None
    local = _local_layers(file, raw, layers, 2 if kind == "gemma2" else 6)
    if not windowed and kind == "gemma2":
        local = ()  # all layers are equal
    return dict(
        norm_plus_one=True,
        sandwich_norms=True,
        embed_scale=number("hidden_size") ** 0.5,
        attn_scale=number("query_pre_attn_scalar", cast=float) ** -0.5,
        attn_softcap=keys.number_or_off("attn_logit_softcapping"),
        final_softcap=keys.number_or_off("final_logit_softcapping"),
        # without a window, Gemma 3's local layers still have their own angles: they see all positions
        window=number("sliding_window" if windowed else "max_position_embeddings") if local else 0,
        local_layers=local,
        rope_theta_local=number("rope_local_base_freq", cast=float) if kind == "gemma3_text" else 0.0,
    )


def _local_layers(file: pathlib.Path, raw: Mapping, layers: int, pattern: int) -> tuple[bool, ...]:
    """By ``layer_types``; without them every ``pattern``-th layer is global."""
    pattern = raw.get("sliding_window_pattern", raw.get("_sliding_window_pattern", pattern))
    types = raw.get("layer_types")
    if types is None:
        return tuple(bool((i + 1) % pattern) for i in range(layers))
    if len(types) != layers or set(types) - {"sliding_attention", "full_attention"}:
        raise UserError(f"{file}: layer_types={types} does not fit {layers} layers; check the checkpoint")
    return tuple(t == "sliding_attention" for t in types)


def _no_rope_layers(file: pathlib.Path, raw: Mapping, layers: int, interval: int) -> tuple[bool, ...]:
    """By ``no_rope_layers``, in which 1 means that a layer has angles; else every ``interval``-th has none."""
    rotated = raw.get("no_rope_layers", [(i + 1) % interval != 0 for i in range(layers)])
    if len(rotated) != layers or not all(r in (0, 1) for r in rotated):
        raise UserError(
            f"{file}: no_rope_layers={str(rotated)[:80]} does not fit {layers} layers; check the checkpoint"
        )
    return tuple(not r for r in rotated)


def _rope_scaling(file: pathlib.Path, raw: Mapping) -> RopeScaling | None:
    rope = raw.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise UserError(f"{file}: rope_scaling of type {kind!r} is not supported yet; supported: linear, llama3, yarn")

    def number(key: str, default: float | None = None) -> float:
        value = default if rope.get(key) is None else rope[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise UserError(f"{file}: rope_scaling.{key}={value!r}, expected a positive number; check the checkpoint")
        return float(value)

    if kind == "linear":
        return RopeScaling("linear", number("factor"))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        return RopeScaling("llama3", number("factor"), low, high, int(number("original_max_position_embeddings")))
    longest = raw.get("max_position_embeddings")
    original = number("original_max_position_embeddings", longest)
    factor = number("factor", longest / original if isinstance(longest, int) else None)
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool | None):
        raise UserError(f"{file}: rope_scaling.truncate={truncate!r}, expected true or false; check the checkpoint")
    return RopeScaling(
        "yarn", factor, original_len=int(original),
        beta_fast=number("beta_fast", 32.0), beta_slow=number("beta_slow", 1.0), truncate=bool(truncate),
        attention_factor=number("attention_factor", _yarn_attention(factor, rope, number)),
    )  # fmt: skip


def _yarn_attention(factor: float, rope: Mapping, number: Callable[[str], float]) -> float:
    """YaRN's factor on sines and cosines, unless the file has its own: 0.1 ln(factor) + 1, or DeepSeek's ratio."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(number("mscale")) / scale(number("mscale_all_dim"))
    return scale(1.0)


def family_of(cfg: ModelConfig) -> str:
    """The ``model_type`` whose checkpoints have this config's features."""
    if cfg.sandwich_norms:
        return "gemma3_text" if cfg.qk_norm else "gemma2"
    if cfg.num_experts:
        return "qwen3_moe"
    if cfg.no_rope_layers:
        return "smollm3"
    if cfg.window:
        return "mistral"
    return "qwen3" if cfg.qk_norm else "qwen2" if cfg.qkv_bias else "llama"


def config_json(cfg: ModelConfig, dtype: str = "float32", **extra) -> dict:
    """config.json of a config, in the keys that every version of transformers reads; ``extra`` keys are added."""
    kind = family_of(cfg)
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURE[kind]],
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "num_hidden_layers": cfg.num_layers,
        "hidden_size": cfg.d_model,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.mlp_dim,
        "hidden_act": next(k for k, v in ACTIVATION.items() if v == cfg.activation),
        "rope_theta": cfg.rope_theta,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": cfg.max_seq_len,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
    }
    if (s := cfg.rope_scaling) is not None:
        raw["rope_scaling"] = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            raw["rope_scaling"] |= {
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_len,
            }
        if s.kind == "yarn":
            raw["rope_scaling"] |= {
                "original_max_position_embeddings": s.original_len,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "truncate": s.truncate,
                "attention_factor": s.attention_factor,
            }
    if cfg.num_experts:
        raw |= {
            "moe_intermediate_size": cfg.mlp_dim,
            "num_experts": cfg.num_experts,
            "num_experts_per_tok": cfg.experts_per_token,
            "norm_topk_prob": cfg.norm_top_k,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if cfg.no_rope_layers:
        raw |= {"no_rope_layers": [int(not without) for without in cfg.no_rope_layers], "use_sliding_window": False}
    if kind == "mistral":
        raw["sliding_window"] = cfg.window
    if cfg.sandwich_norms:
        raw |= {
            "hidden_activation": raw["hidden_act"],
            "query_pre_attn_scalar": round(cfg.attn_scale**-2),
            "sliding_window": cfg.window or None,
            "layer_types": [
                "sliding_attention" if local else "full_attention"
                for local in cfg.local_layers or (False,) * cfg.num_layers
            ],
            "attn_logit_softcapping": cfg.attn_softcap or None,
            "final_logit_softcapping": cfg.final_softcap or None,
        }
        if cfg.rope_theta_local:
            raw["rope_local_base_freq"] = cfg.rope_theta_local
    return raw | extra
