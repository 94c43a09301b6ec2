"""ROPD across families: Gemma3-4B-it learns mathematics from GPT-5.2 (arXiv 2605.07396, Table 3).

    ropd plan  --config gemma3_4b_it --topology v5e:4x4
    ropd train --config gemma3_4b_it --workdir runs/gemma3_4b_it \\
      --config.data.path=DIR

Variants: ``paper`` (implied: Table A2) or ``released`` (the official code's values).
Data: see qwen3_4b_math.

Hardware: see docs/plan.md for each slice. Expected (paper, avg@16): AIME24 6.7 -> 10.0, AIME25 12.9 -> 13.7.
Not yet run here: it needs a TPU slice and a paid teacher.
"""

from __future__ import annotations

from ropd_jax import configs

TEMPLATE = "{question}\n\nReason step by step, and put your final answer within \\boxed{}."


def get_config(variant: str = ""):
    (column,) = configs.choose(variant, ("paper", "released"))
    cfg = configs.paper_run(column)
    cfg.student.checkpoint = "google/gemma-3-4b-it"
    cfg.data.source, cfg.data.task = "published", "dapo_math_17k"
    cfg.data.options = dict(language="all")
    cfg.data.size, cfg.data.heldout_size = 0, 500  # 0: all prompts that are not held out
    cfg.data.template = TEMPLATE
    return cfg
