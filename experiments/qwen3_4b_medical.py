"""ROPD on medical questions: Qwen3-4B learns from GPT-5.2 (arXiv 2605.07396, Table 1).

    ropd plan  --config qwen3_4b_medical --topology v5e:4x4
    ropd train --config qwen3_4b_medical --workdir runs/qwen3_4b_medical \\
      --config.data.path=DIR/rar_medicine_train.jsonl --config.data.heldout_path=DIR/rar_medicine_val.jsonl

Variants, separated by commas: ``non_thinking`` (default) or ``thinking``; ``paper`` (default: Table A2) or ``released``
(the official code's values), e.g. ``qwen3_4b_medical:thinking,released``.

Data: RaR-Medical-20k (Hub: ScaleAI/RaR-Medicine, train) as JSONL with id, question, answer; its own rubrics are not
used. The gold answers are free text, which the exact grader cannot read: `teacher.judge`, a different model from the
teacher, grades the held-out questions (docs/graders.md). The paper chose its checkpoint on HealthBench, which it also
reports; here the set's own validation part is held out.

Hardware: see docs/plan.md for each slice. Expected (paper, which does not name the metric): HealthBench
83.3 -> 84.9 without thinking, 85.3 -> 86.9 with.
Not yet run here: it needs a TPU slice and a paid teacher.
"""

from __future__ import annotations

from ropd_jax import configs


def get_config(variant: str = ""):
    mode, column = configs.choose(variant, ("non_thinking", "thinking"), ("paper", "released"))
    cfg = configs.paper_run(column)
    if column == "paper":
        cfg.steps = 625  # one epoch of 20,000
    cfg.student.checkpoint = "Qwen/Qwen3-4B"
    cfg.student.enable_thinking = mode == "thinking"
    cfg.data.task = "judge"
    cfg.data.path = "data/rar_medicine_train.jsonl"
    cfg.data.heldout_path = "data/rar_medicine_val.jsonl"
    cfg.teacher.judge.model = "gpt-4.1"  # the gold answers are free text: a judge grades the held-out questions
    return cfg
