"""ROPD in three minutes on a laptop: a tiny student, the scripted teacher, sums of 4-5 one-digit terms.

    ropd train --config quickstart --workdir runs/quickstart      # in a clone also: make quickstart
    ropd train --config quickstart --config.method=permuted --workdir runs/control   # must not improve
    ropd train --config quickstart --config.method=sft --workdir runs/sft

Hardware: 2 CPU cores. Time: about a minute. Expected: greedy held-out accuracy from about 0.5 to about 0.9 in 48 steps;
figures for three seeds, with control and SFT, in experiments/README.md.

What it shows: the rubric's step criteria *elicit worked solutions* that the student could already write (its cold start
has them as one of three styles). It does not teach arithmetic, and plain SFT on the same references is faster.
"""

from __future__ import annotations

from ropd_jax import configs


def get_config():
    cfg = configs.default()
    cfg.steps = 48
    cfg.student.checkpoint = "tiny"
    cfg.data.task = "chain_sum"
    cfg.data.options = dict(min_terms=4, max_terms=5, min_digits=1, max_digits=1)
    cfg.data.seed, cfg.data.size = 10_000_000, 2_000
    cfg.data.heldout_seed, cfg.data.heldout_size = 90_000_000, 500
    cfg.data.prompts_per_step = 16
    cfg.data.max_prompt_tokens = 16
    cfg.sampling.max_tokens = 48
    cfg.sampling.chunk = 12
    # The released code's GRPO: no division by the group's std, mean over all tokens.
    cfg.loss.normalize_std = False
    cfg.loss.aggregation = "token_mean"
    cfg.optim.lr = 1e-4  # 1e-3 collapses the policy (experiments/README.md)
    cfg.optim.schedule = "constant"
    cfg.optim.warmup_steps = 10
    cfg.optim.b2 = 0.99
    cfg.optim.weight_decay = 0.0
    cfg.checkpoint.every = 8
    cfg.eval.every = 8
    cfg.eval.prompts_at_once = 128
    return cfg
