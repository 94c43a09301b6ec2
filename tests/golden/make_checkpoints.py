"""Regenerates `checkpoints/`: ways to store a checkpoint, and what transformers and PEFT compute from it, in float32.

    make golden
    python -m tests.golden.make_checkpoints

1. ``rope.json``: frequencies and factor of YaRN, by transformers' own function, for published and odd parameters.
2. Tiny random models, each with config, weights and ``logits.npz``: a tied config whose head differs from its embedding
   (``llama_own_head``), one that stores the head only (``llama_only_head``), softcaps that are null
   (``gemma2_null``), a window in every layer (``mistral``), a layer without rotary angles (``smollm3``).
3. ``gemma3_pictures``: a multimodal Gemma 3; logits of a text, and with the adapters that `ropd_jax.weights.peft`
   writes, loaded by PEFT. ``peft.json`` has the names that PEFT gives to its own adapters on that model.

Needs torch, transformers and peft; nothing else in the repository does.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from tests.golden.make_families import COMMON, GEMMA, GEMMA3_ROPE, ROPE

HERE = pathlib.Path(__file__).parent / "checkpoints"
YARNS = [
    {"head_dim": 128, "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},  # Qwen3
    {"head_dim": 128, "rope_theta": 1e6, "factor": 2.0},  # of max_position_embeddings
    {"head_dim": 64, "rope_theta": 1e4, "factor": None, "original_max_position_embeddings": 4096},
    {"head_dim": 64, "rope_theta": 15e4, "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False,
     "beta_fast": 32.0, "beta_slow": 1.0},
    {"head_dim": 64, "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
     "mscale_all_dim": 0.8},
    {"head_dim": 96, "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192, "beta_fast": 16.0,
     "beta_slow": 2.0, "attention_factor": 1.5},
    {"head_dim": 16, "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 8},  # no pair is kept
    {"head_dim": 8, "rope_theta": 1e4, "factor": 0.5, "original_max_position_embeddings": 8192, "beta_fast": None},
]  # fmt: skip
LONGEST = 65_536


def rope() -> None:
    rows = []
    for yarn in YARNS:
        own = {k: v for k, v in yarn.items() if k != "head_dim"}
        config = hf.Qwen3Config(
            head_dim=yarn["head_dim"], max_position_embeddings=LONGEST, rope_parameters={"rope_type": "yarn", **own}
        )
        freq, factor = hf.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](config)
        rows.append({"head_dim": yarn["head_dim"], "rope": own, "freq": freq.tolist(), "factor": float(factor)})
    text = ",\n".join("  " + json.dumps(row) for row in rows)
    (HERE / "rope.json").write_text(f'{{"max_position_embeddings": {LONGEST}, "rows": [\n{text}\n]}}\n')


def tokens() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(1, 96, (2, 17)))


def save_logits(name: str, **logits: torch.Tensor) -> None:
    arrays = {key: value.numpy() for key, value in logits.items()}
    np.savez_compressed(HERE / name / "logits.npz", tokens=tokens().numpy().astype(np.int32), **arrays)
    print(name, {key: f"max |logit| {np.abs(value).max():.2f}" for key, value in arrays.items()})


def drawn(config):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for name, p in model.named_parameters():
        if "norm" in name:
            p.copy_(p + 0.3 * torch.randn_like(p))
    return model


def loaded(path):
    return hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def stored(name: str, config, change, **settings) -> None:
    """A model whose tensors and config.json are changed after it was saved, and what transformers then reads."""
    path = HERE / name
    drawn(config).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((path / "config.json").read_text()) | settings
    (path / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    save_logits(name, logits=loaded(path)(tokens(), use_cache=False).logits)


def only_head(tensors) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


@torch.no_grad()
def pictures() -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.utils import get_peft_model_state_dict

    from ropd_jax.models.lora import Lora
    from ropd_jax.weights.peft import adapter_config, adapter_tensors
    from ropd_jax.weights.student import open_source
    from tests.weights.test_checkpoints import SECTION, made_adapters

    path = HERE / "gemma3_pictures"
    text = hf.Gemma3TextConfig(
        **(COMMON | GEMMA | dict(num_hidden_layers=2)), rope_parameters=GEMMA3_ROPE,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    vision = hf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    drawn(hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)).save_pretrained(path)
    model = loaded(path)
    plain = model(tokens(), use_cache=False).logits
    cfg, lora = open_source(path).cfg, Lora.from_config(SECTION)
    settings = adapter_config(cfg, lora, str(path), pictures=True)
    with tempfile.TemporaryDirectory() as folder:
        adapters = adapter_tensors(cfg, made_adapters(cfg, lora), pictures=True)
        save_file(
            {k: torch.from_numpy(v) for k, v in adapters.items()}, pathlib.Path(folder) / "adapter_model.safetensors"
        )
        (pathlib.Path(folder) / "adapter_config.json").write_text(json.dumps(settings))
        adapted = PeftModel.from_pretrained(loaded(path), folder).eval()
        save_logits("gemma3_pictures", logits=plain, adapted=adapted(tokens(), use_cache=False).logits)
    own = LoraConfig(**{k: settings[k] for k in ("r", "lora_alpha", "target_modules", "task_type")})
    names = sorted(get_peft_model_state_dict(get_peft_model(loaded(path), own)))
    (HERE / "gemma3_pictures" / "peft.json").write_text(json.dumps(names, indent=1) + "\n")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    rope()
    llama = dict(COMMON, num_hidden_layers=1)
    tied = hf.LlamaConfig(**llama, rope_parameters=ROPE, tie_word_embeddings=True)
    untied = hf.LlamaConfig(**llama, rope_parameters=ROPE, tie_word_embeddings=False)
    stored("llama_own_head", untied, lambda t: None, tie_word_embeddings=True)
    stored("llama_only_head", tied, only_head)
    gemma2 = hf.Gemma2Config(**(COMMON | GEMMA | dict(num_hidden_layers=2)), rope_parameters=ROPE)
    stored("gemma2_null", gemma2, lambda t: None, attn_logit_softcapping=None, final_logit_softcapping=None)
    small = COMMON | dict(num_hidden_layers=2, rope_parameters=ROPE)
    stored("mistral", hf.MistralConfig(**small, head_dim=16, sliding_window=5), lambda t: None)
    stored("smollm3", hf.SmolLM3Config(**small, no_rope_layers=[0, 1], tie_word_embeddings=True), lambda t: None)
    pictures()
