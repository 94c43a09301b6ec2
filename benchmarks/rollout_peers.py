"""The peers' side of `benchmarks.rollout`, run by an interpreter that has them. Imports nothing of ropd_jax.

python rollout_peers.py tunix|transformers DIRECTORY [--batches N] [--reps N]
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time

import numpy as np

ROWS = 64


class Window:
    """Seconds, CPU seconds of this process, and the share of the machine that others took meanwhile."""

    def __enter__(self):
        self.wall, self.cpu, self.all = time.perf_counter(), time.process_time(), _busy()
        return self

    def __exit__(self, *_):
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        others = _busy() - self.all - self.cpu
        self.others = max(0.0, others / ((os.cpu_count() or 1) * max(self.wall, 1e-9)))

    def row(self, tokens: int) -> dict:
        return {"tokens": tokens, "seconds": self.wall, "cpu": self.cpu, "busy": self.others}


def _busy() -> float:
    """CPU seconds of the whole machine since boot."""
    with open("/proc/stat", encoding="ascii") as file:
        n = [int(x) for x in file.readline().split()[1:9]]
    return (sum(n) - n[3] - n[4]) / os.sysconf("SC_CLK_TCK")


def batches_of(case: dict, most: int):
    """(prompts repeated for their rollouts, requested tokens, longest) of each batch."""
    rows = [(p, n) for p, ns in zip(case["prompts"], case["lengths"]) for n in ns]  # noqa: B905 (any Python)
    for at in range(0, min(len(rows), most * ROWS), ROWS):
        part = rows[at : at + ROWS]
        yield [p for p, _ in part], sum(n for _, n in part), max(n for _, n in part)


def measure(generate, cases: dict, batches: int, reps: int) -> None:
    """``generate(prompts, tokens, seed)``: exactly so many new tokens for every row."""
    for name, case in cases.items():
        parts = list(batches_of(case, batches))
        few = name == "lognormal"
        for rep in range(2 if few else reps + 1):
            if not rep:
                generate(parts[0][0], 4 if few else parts[0][2], 0)
                continue
            with Window() as window:
                for i, (prompts, _, longest) in enumerate(parts):
                    generate(prompts, longest, rep * 1000 + i)
            print(json.dumps({"case": name, **window.row(sum(n for _, n, _ in parts))}), flush=True)


def transformers(w: dict, shape: dict):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.set_num_threads(os.cpu_count() or 1)
    config = LlamaConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["d_model"], intermediate_size=shape["mlp_dim"],
        num_hidden_layers=shape["num_layers"], num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"], head_dim=shape["head_dim"], tie_word_embeddings=True,
        rope_theta=shape["rope_theta"], rms_norm_eps=shape["norm_eps"], max_position_embeddings=shape["max_seq_len"],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    D = shape["d_model"]
    state = {"model.embed_tokens.weight": w["embed/table_VD"], "model.norm.weight": w["final_norm/scale_D"]}
    names = {"self_attn.q_proj": "attn/q_DNH", "self_attn.k_proj": "attn/k_DKH", "self_attn.v_proj": "attn/v_DKH",
             "mlp.gate_proj": "mlp/gate_DF", "mlp.up_proj": "mlp/up_DF", "mlp.down_proj": "mlp/down_FD"}  # fmt: skip
    for i in range(shape["num_layers"]):
        for theirs, mine in names.items():
            x = w[f"layers/{mine}"][i]
            state[f"model.layers.{i}.{theirs}.weight"] = x.reshape(x.shape[0], -1).T
        state[f"model.layers.{i}.self_attn.o_proj.weight"] = w["layers/attn/o_NHD"][i].reshape(-1, D).T
        state[f"model.layers.{i}.input_layernorm.weight"] = w["layers/attn_norm/scale_D"][i]
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = w["layers/mlp_norm/scale_D"][i]
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)

    def generate(prompts, tokens, seed):
        torch.manual_seed(seed)
        ids = torch.tensor(prompts)
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True,
                temperature=1.0, top_k=0, top_p=1.0, pad_token_id=2, eos_token_id=None,
            )  # fmt: skip
        assert out.shape[1] == ids.shape[1] + tokens

    return generate


def tunix(w: dict, shape: dict):
    import jax.numpy as jnp
    from flax import nnx
    from tunix.generate import sampler as sampler_lib
    from tunix.models.llama3 import model as llama

    config = llama.ModelConfig(
        num_layers=shape["num_layers"], vocab_size=shape["vocab_size"], embed_dim=shape["d_model"],
        hidden_dim=shape["mlp_dim"], num_heads=shape["num_heads"], head_dim=shape["head_dim"],
        num_kv_heads=shape["num_kv_heads"], rope_theta=int(shape["rope_theta"]), norm_eps=shape["norm_eps"],
        weight_tying=True,
    )  # fmt: skip
    model = llama.Llama3(config, rngs=nnx.Rngs(0))
    names = {"q_proj": "attn/q_DNH", "k_proj": "attn/k_DKH", "v_proj": "attn/v_DKH", "o_proj": "attn/o_NHD",
             "gate_proj": "mlp/gate_DF", "up_proj": "mlp/up_DF", "down_proj": "mlp/down_FD",
             "input_layernorm": "attn_norm/scale_D", "post_attention_layernorm": "mlp_norm/scale_D"}  # fmt: skip

    def ours(path, x):
        keys = [str(k) for k in path]
        if "input_embedding" in keys:
            return w["embed/table_VD"]
        if "final_norm" in keys:
            return w["final_norm/scale_D"]
        layer = next(int(k) for k in keys if k.isdigit())
        return w["layers/" + next(mine for theirs, mine in names.items() if theirs in keys)][layer]

    state = nnx.state(model)
    leaves = []
    for path, leaf in nnx.to_flat_state(state):
        new = ours(path, leaf)
        assert new.shape == leaf.shape, (path, new.shape, leaf.shape)
        leaves.append((path, leaf.replace(jnp.asarray(new))))
    nnx.update(model, nnx.from_flat_state(leaves))
    never = shape["vocab_size"] + 7

    class Tokenizer:
        def encode(self, text, **_):
            return [int(x) for x in text.split()]

        def decode(self, ids, **_):
            return ""

        def bos_id(self):
            return None

        def eos_id(self):
            return never

        def pad_id(self):
            return 0

    samplers = {}

    def generate(prompts, tokens, seed):
        size = len(prompts[0]) + tokens
        if size not in samplers:
            cache = sampler_lib.CacheConfig(size, shape["num_layers"], shape["num_kv_heads"], shape["head_dim"])
            samplers[size] = sampler_lib.Sampler(model, Tokenizer(), cache)
        out = samplers[size](
            [" ".join(map(str, p)) for p in prompts], max_generation_steps=tokens, max_prompt_length=len(prompts[0]),
            temperature=1.0, top_p=1.0, seed=seed, eos_tokens=[never],
        )  # fmt: skip
        assert all(len(x) == tokens for x in out.tokens)

    return generate


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("peer", choices=["tunix", "transformers"])
    ap.add_argument("directory", type=pathlib.Path)
    ap.add_argument("--batches", type=int, default=1)
    ap.add_argument("--reps", type=int, default=2)
    args = ap.parse_args()
    weights = dict(np.load(args.directory / "weights.npz"))
    shape, cases = (json.loads((args.directory / f"{n}.json").read_text()) for n in ("shape", "cases"))
    make = {"tunix": tunix, "transformers": transformers}[args.peer]
    measure(make(weights, shape), cases, args.batches, args.reps)


if __name__ == "__main__":
    main()
