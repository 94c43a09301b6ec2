"""Table 6 of the paper (arXiv 2605.07396): what of ROPD matters, on AIME 2024, Qwen3-4B without thinking.

ropd table experiments/table6_ablation.py --runs runs
"""

from __future__ import annotations

from ropd_jax.analysis.tables import Row, TableSpec

CONFIG = "--config experiments/qwen3_4b_math.py:non_thinking"


def get_table() -> TableSpec:
    return TableSpec(
        "Table 6: ablations",
        ("aime_2024",),
        (
            Row("Base", (24.17,), checkpoint="Qwen/Qwen3-4B", thinking=False),
            Row("One teacher answer (m=1)", (47.08,), ("qwen3_4b_math_m1",), f"{CONFIG} --config.teacher.references=1"),
            Row(
                "A rubric for each pair",
                (61.25,),
                ("qwen3_4b_math_pair",),
                f"{CONFIG} --config.ropd.rubric_per=pair",
            ),
            Row("Verifier not blind", (61.75,), ("qwen3_4b_math_not_blind",), f"{CONFIG} --config.ropd.blind=False"),
            Row("Full (m=4, shared, blind)", (65.02,), ("qwen3_4b_math_non_thinking_ropd",), CONFIG),
        ),
    )
