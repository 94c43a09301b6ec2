"""Log-probs of a rollout server and of the student for the same tokens: is `sampling.engine=openai` usable?

    python -m benchmarks.engine --url http://127.0.0.1:8000/v1 --checkpoint Qwen/Qwen3-0.6B
    python -m benchmarks.engine --llama PYTHON --checkpoint smollm2.gguf      a llama.cpp server of the same GGUF file

PYTHON is an interpreter that has ``xllamacpp`` (llama.cpp's server as a wheel). The server answers a few prompts, and
the student that the trainer would load scores the tokens of each answer. The output is one line of JSON:

    tokens, answers, stopped     counts; stopped: ended by a stop token that the server returned
    gap, gap_max                 |server - student| of a token's log-prob, mean and largest
    seeds                        the same request gives the same tokens again; another seed gives others
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

from benchmarks.llama_server import serving
from ropd_jax import configs
from ropd_jax.parallel import mesh as mesh_lib
from ropd_jax.sampling.engine import EngineConfig
from ropd_jax.sampling.external import RolloutServer
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.sampling.sample import as_prompts
from ropd_jax.sampling.server_config import ServerConfig, Settings
from ropd_jax.training.rescore import changes_of
from ropd_jax.training.served import rollout_of
from ropd_jax.training.setup import update_config
from ropd_jax.types import RolloutGroup
from ropd_jax.weights.student import load_checkpoint

QUESTIONS = (
    "What is 17 + 25? Reply with the number.",
    "Name three colours.",
    "Write one sentence about the sea.",
    "Is 91 a prime number? Answer yes or no.",
)


def measure(url: str, checkpoint: str, *, n: int, max_tokens: int, temperature: float, how: dict) -> dict:
    """The values listed in the module docstring."""
    student = load_checkpoint(checkpoint)
    prompts = as_prompts(list(QUESTIONS))
    tokens = [np.asarray(student.tokenizer.apply_chat_template(p.messages), np.int32) for p in prompts]
    rule, stop_ids = SamplingRule(temperature), student.tokenizer.stop_ids
    want = Settings(n, max_tokens, rule, stop_ids, (), student.cfg.vocab_size)
    engine = EngineConfig(n, 1, max(map(len, tokens)), max_tokens, stop_ids, rule)
    client = RolloutServer(dataclasses.replace(_server(url), **how))
    try:
        client.check(tokens[0].tolist(), student.cfg.vocab_size)
        ids = [p.id for p in prompts]
        found = dict(client.groups(want, tokens, ids, seed=0, step=0, check=lambda: None))
        again = dict(client.groups(want, tokens[:1], ids[:1], seed=0, step=0, check=lambda: None))
        other = dict(client.groups(want, tokens[:1], ids[:1], seed=1, step=0, check=lambda: None))
    finally:
        client.close()
    groups = [
        RolloutGroup(p, t, tuple(rollout_of(student.tokenizer, engine, t, a) for a in found[i]), 0, i)
        for i, (p, t) in enumerate(zip(prompts, tokens, strict=True))
    ]
    cfg = configs.default()
    cfg.sampling.temperature = temperature
    mesh = mesh_lib.make_mesh(1, 1, jax.devices()[:1])
    length = max(map(len, tokens)) + max_tokens
    with jax.set_mesh(mesh):
        params = mesh_lib.put(student.params, mesh, mesh_lib.RULES.storage(student.params))
        changes = changes_of(update_config(cfg), student.cfg, params, None, groups, mesh, length)
    gaps = np.abs(np.concatenate([c for group in changes for c in group]))
    rollouts = [r for g in groups for r in g.rollouts]
    tokens_of = [[a.tokens for a in x[0]] for x in (found, again, other)]
    return {
        "checkpoint": pathlib.Path(checkpoint).name,
        "answers": len(rollouts),
        "tokens": int(gaps.size),
        "stopped": sum(r.finish_reason == "stop" for r in rollouts),
        "gap": float(gaps.mean()),
        "gap_max": float(gaps.max()),
        "temperature": temperature,
        "seeds": {"repeated": tokens_of[0] == tokens_of[1], "other": tokens_of[0] != tokens_of[2]},
    }


def _server(url: str) -> ServerConfig:
    values = configs.default().sampling.server.to_dict() | {"base_url": url, "sync": "none", "sync_every": 0}
    return ServerConfig(**values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="", help="address of a running server")
    parser.add_argument("--llama", default="", help="instead of --url: an interpreter with xllamacpp, for a GGUF file")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max_tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--answers_per_request", type=int, default=0)
    args = parser.parse_args()
    how = {"model": args.model, "answers_per_request": args.answers_per_request}
    server = serving(args.llama, args.checkpoint, 1, context=4_096, slots=4) if args.llama else None
    with server or contextlib.nullcontext(args.url) as url:
        found = measure(
            url, args.checkpoint, n=args.n, max_tokens=args.max_tokens, temperature=args.temperature, how=how
        )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
