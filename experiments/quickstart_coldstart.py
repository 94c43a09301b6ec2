"""Make the quickstart's initial student, which is part of this repository.

    python experiments/quickstart_coldstart.py --out ropd_jax/assets/quickstart_student

A 0.37 M-parameter Llama-style model, trained from random weights by supervised learning on 8,000 chain sums. Every
answer is right, in three styles: all lines worked (28 %), the first line and then the answer (42 %), only the answer
(30 %). So the student *can* write whole solutions but mostly does not; the quickstart's ROPD run elicits them. The sums
are disjoint from the quickstart's training and held-out sets.

A white-box teacher for the same student (experiments/mini.py), a larger model that writes full solutions only:

    python experiments/quickstart_coldstart.py --out DIR --layers 4 --width 128 --full --steps 1000

Hardware: 2 CPU cores. Time: 2-4 minutes. Expected: greedy accuracy 0.3-0.5 on held-out sums (experiments/README.md).
"""

from __future__ import annotations

import argparse
import functools
import pathlib

import jax
import numpy as np
from quickstart import get_config

from ropd_jax.core.batches import TokenSequence, make_batch, split_parts
from ropd_jax.core.optim import make_optimizer
from ropd_jax.data.grader import grade
from ropd_jax.data.load import load_prompts
from ropd_jax.data.prompts import disjoint
from ropd_jax.methods import load_method
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.teacher.scripted.tasks import AnswerKey, solve
from ropd_jax.text.pieces import piece_tokenizer
from ropd_jax.training.setup import update_config
from ropd_jax.training.update import State, make_update
from ropd_jax.weights.hf import save_hf

STYLES = {"full": 0.28, "first_line": 0.42, "answer": 0.30}
EXAMPLES, BATCH, STEPS, LR = 8_000, 64, 1_000, 3e-3
PIECES = [
    "<pad>",
    "<eos>",
    "State the final answer to the following arithmetic problem: ",
    "Answer: ",
    " =\n",
    " + ",
    " - ",
    " = ",
    "\n",
    *(chr(i) for i in range(32, 127)),
]


def answer_in(style: str, question: str) -> str:
    """The worked solution of the scripted teacher, shortened to a style."""
    worked = solve(question, AnswerKey(), lambda step: 0)
    lines = {"full": worked.lines, "first_line": worked.lines[:1], "answer": ()}[style]
    return "\n".join([*lines, f"Answer: {worked.answer}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the checkpoint (must be empty)")
    parser.add_argument("--seed", type=int, default=0, help="weights, styles and batches")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=96, help="a multiple of 32")
    parser.add_argument("--full", action="store_true", help="full solutions only, instead of the three styles")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out {args.out} is not empty and would be overwritten; choose another directory")

    cfg = get_config()
    cfg.method = "sft"
    cfg.optim.remat = "none"  # such a small model has enough memory, and recomputation costs time
    common = dict(source="reasoning_gym", task=cfg.data.task, options=cfg.data.options.to_dict())
    held = load_prompts(**common, seed=cfg.data.heldout_seed, size=cfg.data.heldout_size)
    rl = load_prompts(**common, seed=cfg.data.seed, size=cfg.data.size)
    prompts = disjoint(disjoint(load_prompts(**common, seed=500_000_000, size=EXAMPLES), held), rl)

    tokenizer = piece_tokenizer(PIECES, eos="<eos>", pad="<pad>")
    model = ModelConfig(
        vocab_size=tokenizer.vocab_size, num_layers=args.layers, d_model=args.width, num_heads=args.width // 32,
        num_kv_heads=args.width // 32, head_dim=32, mlp_dim=3 * args.width, rope_theta=10_000.0, norm_eps=1e-5,
        tied=True, max_seq_len=128,
    )  # fmt: skip
    rng = np.random.default_rng(args.seed)
    shares = {"full": 1.0} if args.full else STYLES
    styles = rng.choice(list(shares), len(prompts), p=list(shares.values()))
    stop = tokenizer.stop_ids[0]
    sequences = []
    for prompt, style in zip(prompts, styles, strict=True):
        completion = np.array([*tokenizer.encode(answer_in(style, prompt.question)), stop], np.int32)
        prompt_T = np.array(tokenizer.apply_chat_template(prompt.messages), np.int32)
        sequences.append(TokenSequence(prompt_T, completion, np.zeros(completion.shape, np.float32)))
    length = max(len(s.prompt_T) + len(s.completion_T) for s in sequences)

    tx = make_optimizer(lr=LR, schedule="cosine", warmup_steps=20, total_steps=args.steps, b1=0.9, b2=0.99, eps=1e-8,
                        weight_decay=0.0, clip_norm=1.0)  # fmt: skip
    params = transformer.init_params(model, args.seed)
    state = State(params, tx.init(params))
    update = make_update(update_config(cfg), model, load_method("sft", cfg), tx)
    ones = np.ones(BATCH)
    for step in range(1, args.steps + 1):
        rows = [sequences[i] for i in rng.choice(len(sequences), BATCH, replace=False)]
        batch = make_batch(rows, ones.astype(np.float32), ones.astype(bool), ones.astype(bool), length)
        state, metrics = update(state, None, split_parts(batch, 0))
        if step % 100 == 0 or step == args.steps:
            print(f"step {step}/{args.steps}  loss {float(metrics['update/loss']):.4f}", flush=True)

    engine = functools.partial(EngineConfig, rollouts=1, prompts=128, prompt_len=16, max_tokens=cfg.sampling.max_tokens,
                               stop_ids=tokenizer.stop_ids)  # fmt: skip
    tokens = [np.array(tokenizer.apply_chat_template(p.messages), np.int32) for p in held]
    for name, rule in (("greedy", SamplingRule(0.0)), ("sampled", SamplingRule())):
        groups = sample_groups(model, engine(rule=rule), state.params, tokenizer, list(held), tokens, seed=0, step=0)
        right = [grade(g.prompt, g.rollouts[0].answer) for g in groups]
        print(f"{name} held-out accuracy {np.mean(right):.3f} (n={len(right)})")

    save_hf(args.out, model, jax.device_get(state.params))
    tokenizer.save(args.out)
    print(f"wrote {args.out}: {sum(x.size for x in jax.tree.leaves(state.params)):,} parameters")


if __name__ == "__main__":
    main()
