"""A few steps of ROPD with a real judge: SmolLM2-135M-Instruct follows rules, and a language model writes references,
rubrics and verdicts.

    python -m experiments.real_judge setup train --server PYTHON           starts the judge, and fills in its address
    ropd train --config real_judge_train --workdir runs/real --config.teacher.base_url=http://HOST/v1 ...

2 prompts x 4 rollouts per step, short answers, adapters of rank 16. This checks the whole path, from a question to an
update with real judgements; it does not measure learning. The server answers one call at a time.
Hardware: 2 CPU cores.
"""

from __future__ import annotations

from ropd_jax import configs


def get_config():
    cfg = configs.default()
    cfg.steps = 3
    cfg.student.checkpoint = "smollm2"
    cfg.student.lora.rank = 16
    cfg.data.source, cfg.data.task, cfg.data.path = "instructions", "", "train"
    cfg.data.size, cfg.data.heldout = 200, False
    cfg.data.prompts_per_step = 2
    cfg.data.max_prompt_tokens = 128
    cfg.sampling.rollouts = 4
    cfg.sampling.max_tokens = 40
    cfg.sampling.temperature = 0.7
    cfg.teacher.provider, cfg.teacher.base_url = "openai", "http://127.0.0.1:8000/v1"
    cfg.teacher.concurrency = cfg.teacher.min_concurrency = 1
    cfg.teacher.timeout_s, cfg.teacher.attempts = 3600.0, 3
    cfg.teacher.references = 2
    cfg.teacher.reference.template = "reference_plain.v1"
    cfg.teacher.reference.max_output_tokens = 256
    cfg.teacher.rubricator.max_output_tokens = 1_500
    cfg.teacher.verifier.form, cfg.teacher.verifier.answers_per_call = "keyed", 1
    cfg.ropd.least_criteria, cfg.ropd.most_criteria = 4, 5
    cfg.loss.aggregation = "token_mean"
    cfg.optim.lr = 3e-4
    cfg.optim.schedule = "constant"
    cfg.optim.warmup_steps = 0
    cfg.checkpoint.every, cfg.checkpoint.keep = 1, 1  # a step takes minutes
    return cfg
