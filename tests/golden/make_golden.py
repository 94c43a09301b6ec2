"""Regenerates the golden files of this directory: what transformers and torch compute, for `tests/models`.

    make golden                                          (installs torch, then runs this file)
    python tests/golden/make_golden.py [--full-logits FILE.npy]

1. ``smollm2.json`` + ``smollm2.npz``: SmolLM2-135M-Instruct, read, dequantized and un-permuted by transformers' own
   GGUF loader (not by ours), in float32. 20 prompts through the chat template, 32 greedy tokens each, and the logits
   at the last position of the prompt and of the whole sequence: the 64 largest, 256 fixed places of the vocabulary,
   and the logsumexp over all of it.
2. ``llama_untied/`` and ``llama_tied/``: two tiny random Llamas as transformers saves them (grouped heads;
   untied: a head width that is not D/N, sharded with an index; tied: bfloat16), with all logits in ``logits.npz``.

Needs torch and transformers; nothing else in the repository does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib

import numpy as np
import torch
import transformers

from ropd_jax.types import Message
from ropd_jax.weights.gguf import find_smollm2
from ropd_jax.weights.tokenizer import load_tokenizer

HERE = pathlib.Path(__file__).parent
NEW_TOKENS, TOP, FIXED = 32, 64, 256

PROMPTS = (
    "What is 17 + 25?",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips "
    "did Natalia sell altogether in April and May?",
    "Calculate -42.5 * 3 and show your working.",
    "Write a haiku about the sea.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "def add(a, b):\n    return a + b\n\nWhat does this code do?",
    "Translate 'good morning' into French.",
    "Übersetze ins Englische: Der Fuß ist größer als der Schuh.",
    "你好,你叫什么名字?",
    "What does the emoji 🙂 mean?",
    "List three prime numbers greater than 100.",
    "Who wrote Hamlet?",
    "   leading and trailing spaces   ",
    "Explain gravity to a five-year-old in one sentence.",
    "Give me a JSON object with the keys name, age and city.",
    "Is the sentence 'The cat sat on the mat.' grammatical? Answer yes or no.",
    "x^2 - 5x + 6 = 0. Solve for x.",
    "Tabs\tand\nnew lines\n\n\nshould survive. Repeat this text.",
    "Once upon a time",
    "Complete the series: 1, 1, 2, 3, 5, 8, 13,",
)
SYSTEM = {3: "You are a poet.", 11: "Answer with one word.", 16: "You are a careful mathematician."}


def messages(i: int) -> list[Message]:
    system = [Message("system", SYSTEM[i])] if i in SYSTEM else []
    return [*system, Message("user", PROMPTS[i])]


@torch.no_grad()
def smollm2(full_logits: str | None) -> None:
    path = find_smollm2()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = load_tokenizer(path)
    fixed = np.sort(np.random.default_rng(0).choice(model.config.vocab_size, FIXED, replace=False)).astype(np.int32)
    rows, arrays, full = [], {"fixed": fixed}, []
    stored = {k: [] for k in ("top_ids", "top_logits", "fixed_logits", "logsumexp")}
    for i in range(len(PROMPTS)):
        prompt = tokenizer.apply_chat_template(messages(i))
        tokens, cache, fed = list(prompt), None, prompt
        for _ in range(NEW_TOKENS):  # no stopping at stop tokens: all rows are of one length
            out = model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache, fed = out.past_key_values, [int(out.logits[0, -1].argmax())]
            tokens += fed
        # the logits come from one pass without a cache, which must agree on every token
        last = model(torch.tensor([tokens]), use_cache=False).logits[0, len(prompt) - 1 :]
        assert last[:-1].argmax(-1).tolist() == tokens[len(prompt) :]
        for logits in (last[0], last[-1]):
            top = logits.topk(TOP)
            stored["top_ids"].append(top.indices.numpy().astype(np.int32))
            stored["top_logits"].append(top.values.numpy())
            stored["fixed_logits"].append(logits[torch.from_numpy(fixed).long()].numpy())
            stored["logsumexp"].append(logits.double().logsumexp(0).numpy())
            full.append(logits.numpy())
        best = last[:-1].topk(2).values
        gap = float((best[:, 0] - best[:, 1]).min())
        chat = [[m.role, m.content] for m in messages(i)]
        rows.append(
            {"messages": chat, "prompt": prompt, "greedy": tokens[len(prompt) :], "smallest_gap": round(gap, 5)}
        )
        print(f"{i:2d} gap {gap:.4f} {tokenizer.decode(tokens[len(prompt) :])!r}", flush=True)
    for key, value in stored.items():  # [prompt, (last of prompt, last of all), ...]
        arrays[key] = np.stack(value).reshape(len(PROMPTS), 2, *np.shape(value[0]))
    np.savez_compressed(HERE / "smollm2.npz", **arrays)
    head = {
        "gguf": path.name,
        "gguf_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    text = json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n'
    (HERE / "smollm2.json").write_text(text)
    if full_logits:
        np.save(full_logits, np.stack(full).reshape(len(PROMPTS), 2, -1))


@torch.no_grad()
def tiny(name: str, dtype: torch.dtype, shard: str, **changes) -> None:
    """A random Llama without default values, so that a field that is misread changes the result."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        rms_norm_eps=1e-3,
        bos_token_id=None,
        eos_token_id=3,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        attn_implementation="eager",
        **changes,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter_name, p in model.named_parameters():
        if "norm" in parameter_name:
            p.copy_(1 + 0.3 * torch.randn_like(p))
    model.to(dtype).save_pretrained(HERE / name, max_shard_size=shard)
    # read again: .to(bfloat16) has rounded the rotary frequencies as well
    model = transformers.LlamaForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, 96, (3, 17)))
    logits = model(tokens, use_cache=False).logits.numpy()
    np.savez_compressed(HERE / name / "logits.npz", tokens=tokens.numpy().astype(np.int32), logits=logits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--full-logits", help="also write all logits of the golden positions, 7.9 MB, for a closer look"
    )
    parser.add_argument("--tiny-only", action="store_true", help="leave the SmolLM2 files alone")
    args = parser.parse_args()
    tiny("llama_untied", torch.float32, "60KB", tie_word_embeddings=False, head_dim=16)
    tiny("llama_tied", torch.bfloat16, "10GB", tie_word_embeddings=True)
    if not args.tiny_only:
        smollm2(args.full_logits)
