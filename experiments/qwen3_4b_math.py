"""ROPD on competition mathematics: Qwen3-4B learns from GPT-5.2 (arXiv 2605.07396, Table 1).

    ropd plan      --config qwen3_4b_math --topology v5e:4x4
    ropd preflight --config qwen3_4b_math --config.data.path=DIR --no-calls
    ropd train     --config qwen3_4b_math --workdir runs/qwen3_4b_math \\
      --config.data.path=DIR

Variants, separated by commas: ``non_thinking`` (default) or ``thinking``; ``paper`` (default: Table A2) or ``released``
(the official code's values), e.g. ``qwen3_4b_math:thinking,released``.

Data: DAPO-Math-17k in both languages (the paper's 531 x 32 prompts imply both), without the benchmarks' questions.
``ropd data dapo_math_17k --data DIR --language all`` prints the counts. The paper chose its checkpoints on AIME24,
which it also reports; here 500 problems of DAPO itself are held out.

Hardware: see docs/plan.md for each slice. Expected (paper, avg@16 at 32,768 tokens): AIME24 24.2 -> 65.0,
AIME25 20.8 -> 58.8 without thinking; 70.4 -> 75.4, 59.6 -> 68.8 with.
Not yet run here: it needs a TPU slice and a paid teacher.
"""

from __future__ import annotations

from ropd_jax import configs

TEMPLATE = "{question}\n\nReason step by step, and put your final answer within \\boxed{}."


def get_config(variant: str = ""):
    mode, column = configs.choose(variant, ("non_thinking", "thinking"), ("paper", "released"))
    cfg = configs.paper_run(column)
    cfg.student.checkpoint = "Qwen/Qwen3-4B"
    cfg.student.enable_thinking = mode == "thinking"
    cfg.data.source, cfg.data.task = "published", "dapo_math_17k"
    cfg.data.options = dict(language="all")
    cfg.data.size, cfg.data.heldout_size = 0, 500  # 0: all prompts that are not held out
    cfg.data.template = TEMPLATE
    return cfg
