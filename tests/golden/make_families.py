"""Regenerates `families/`: tiny random models of every family, and what transformers computes with them, in float32.

    make golden
    python tests/golden/make_families.py

Each model is the smallest that shows every feature of its family: groups of heads, a head width that is not D/N,
windows shorter than the sequence, scaled rotary angles (YaRN: Qwen3), biases and norms with no number at its default,
tied and untied tables. ``golden.npz``, next to its config and weights, has tokens (the second row is padded on the
left), logits, the log-prob of each next token, and 16 greedy tokens.

Needs torch and transformers; nothing else in the repository does.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
import transformers as hf

HERE = pathlib.Path(__file__).parent / "families"
PAD, NEW = 5, 16
COMMON = dict(
    vocab_size=96, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
    num_hidden_layers=3, max_position_embeddings=128, rms_norm_eps=1e-3, bos_token_id=None, eos_token_id=None,
    pad_token_id=None, initializer_range=0.2, attn_implementation="eager",
)  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 5000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {  # attention_factor is left out: 0.1 ln 4 + 1
    "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0,
}  # fmt: skip
GEMMA = dict(head_dim=16, query_pre_attn_scalar=20, sliding_window=4, tie_word_embeddings=True)
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
}
MODELS = {
    "llama3": lambda: hf.LlamaConfig(**COMMON, head_dim=16, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "qwen2": lambda: hf.Qwen2Config(**COMMON, rope_parameters=ROPE, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**COMMON, head_dim=16, rope_parameters=YARN, tie_word_embeddings=False),
    "qwen3_tied": lambda: hf.Qwen3Config(**COMMON, head_dim=16, rope_parameters=ROPE, tie_word_embeddings=True),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **COMMON, head_dim=16, rope_parameters=ROPE, tie_word_embeddings=False, moe_intermediate_size=24,
        num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1,
    ),
    "gemma2": lambda: hf.Gemma2Config(
        **COMMON, **GEMMA, rope_parameters=ROPE, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **COMMON, **GEMMA, rope_parameters=GEMMA3_ROPE,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}  # fmt: skip


@torch.no_grad()
def make(name: str, config) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for p_name, p in model.named_parameters():
        if "norm" in p_name:  # 1 + noise, or noise where the family adds the 1 itself
            p.copy_(p + 0.3 * torch.randn_like(p))
        elif p_name.endswith("bias"):
            p.copy_(0.3 * torch.randn_like(p))
    model.save_pretrained(HERE / name)
    rng = np.random.default_rng(1)
    tokens = torch.from_numpy(rng.integers(1, 96, (2, 21)))
    tokens[1, :PAD] = 0
    mask = torch.ones_like(tokens)
    mask[1, :PAD] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    logp = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    greedy = tokens[:1]
    for _ in range(NEW):
        greedy = torch.cat([greedy, model(greedy, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    np.savez_compressed(
        HERE / name / "golden.npz",
        tokens=tokens.numpy().astype(np.int32),
        mask=mask.numpy().astype(bool),
        logits=logits.numpy(),
        logp=logp.numpy(),
        greedy=greedy[0, tokens.shape[1] :].numpy().astype(np.int32),
    )
    print(name, f"max |logit| {logits.abs().max():.2f}", greedy[0, tokens.shape[1] :].tolist())


if __name__ == "__main__":
    for model_name, build in MODELS.items():
        make(model_name, build())
