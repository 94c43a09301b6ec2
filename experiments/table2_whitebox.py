"""Table 2 of the paper (arXiv 2605.07396): Qwen3-4B from Qwen3-30B-A3B, non-thinking, DAPO-Math-17k.

    ropd table table2_whitebox --runs runs
    ropd table table2_whitebox:released --runs runs                     the same with the official code's settings

As a text teacher, the model runs behind any OpenAI-compatible server; LOPD and ExOPD load its weights next to the
student. Hardware: docs/plan.md.
"""

from __future__ import annotations

from ropd_jax import configs
from ropd_jax.analysis.tables import Row, TableSpec, paper_rows

COLUMNS = ("aime_2024", "aime_2025", "hmmt_feb_2025", "hmmt_nov_2025")
PAPER = paper_rows("""
teacher | 76.25 61.25 33.33 55.00
base    | 24.17 20.83 10.42  7.08
sft     | 26.69 22.50 11.62  8.33
lopd    | 47.92 38.75 20.42 24.17
exopd   | 50.66 41.25 22.42 26.68
ropd    | 63.33 55.93 25.40 38.80
""")
MODEL = "Qwen/Qwen3-30B-A3B-Instruct-2507"
SERVER = "http://TEACHER:8000/v1"  # write your own server's host
TEACHER = " ".join(
    ["--config.teacher.provider=openai", f"--config.teacher.base_url={SERVER}"]
    + [f"--config.teacher.{role}.model={MODEL}" for role in ("reference", "rubricator", "verifier")]
)
WEIGHTS = f"--config.lopd.checkpoint={MODEL} --config.lopd.dtype=bfloat16"


def get_table(column: str = "") -> TableSpec:
    (column,) = configs.choose(column, ("paper", "released"))
    suffix, more = ("_released", ",released") if column == "released" else ("", "")
    rows = [
        Row("Teacher", PAPER["teacher"], checkpoint=MODEL),
        Row("Base", PAPER["base"], checkpoint="Qwen/Qwen3-4B", thinking=False),
    ]
    for method in ("sft", "lopd", "exopd", "ropd"):
        train = f"--config experiments/qwen3_4b_math.py:non_thinking{more} --config.method={method} "
        train += WEIGHTS if method in ("lopd", "exopd") else TEACHER
        label = "ExOPD" if method == "exopd" else method.upper()
        rows.append(Row(label, PAPER[method], (f"qwen3_4b_whitebox_{method}{suffix}",), train, method=method))
    return TableSpec(
        f"Table 2: Qwen3-4B from Qwen3-30B-A3B, weights at hand{', released settings' if more else ''}",
        COLUMNS,
        tuple(rows),
        caption="The teacher's checkpoint is not named; its AIME25 fits Qwen3-30B-A3B-Instruct-2507.",
    )
