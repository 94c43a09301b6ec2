"""Table 1 of the paper (arXiv 2605.07396): black-box distillation, Qwen3-4B from GPT-5.2.

    ropd table table1_blackbox --runs runs
    ropd table table1_blackbox:released --runs runs                     the same with the official code's settings

Hardware: see docs/plan.md for a run on each slice. A row is one run of experiments/qwen3_4b_math.py. Cells: k=16
samples at temperature 1, top-p 0.95, 32,768 tokens. For the cost of each run: ropd preflight with the same flags.
"""

from __future__ import annotations

from ropd_jax import configs
from ropd_jax.analysis.tables import Row, TableSpec, paper_rows

COLUMNS = ("aime_2024", "aime_2025", "hmmt_feb_2025", "hmmt_nov_2025", "gpqa_diamond", "healthbench", "ifeval")
PAPER = paper_rows("""
teacher              | 80.83 67.08 43.75 57.50 78.66 92.82 94.37
non_thinking base    | 24.17 20.83 10.42  7.08 35.66 83.32 85.21
non_thinking t_judge | 62.50 56.64 28.94 38.75 36.29 84.52 84.40
non_thinking ovd     | 61.56 55.71 29.11 37.92 35.74 83.68 84.23
non_thinking gad     | 27.52 23.34 12.84 14.11 36.02 83.57 85.12
non_thinking ropd    | 65.02 58.75 31.69 41.67 36.50 84.92 85.28
thinking base        | 70.42 59.58 33.33 48.75 53.59 85.30 86.46
thinking t_judge     | 72.50 65.48 38.75 51.25 53.85 85.58 86.55
thinking ovd         | 71.68 65.83 38.34 50.42 54.17 85.98 86.38
thinking gad         | 70.65 61.28 35.00 49.58 53.85 85.70 86.62
thinking ropd        | 75.41 68.75 39.16 54.17 55.05 86.87 86.95
""")
NAMES = {"t_judge": "T-Judge", "ovd": "OVD", "gad": "GAD", "ropd": "ROPD"}


JUDGE = "--config.teacher.provider=openai --config.teacher.verifier.model=gpt-4.1-2025-04-14"


def get_table(column: str = "") -> TableSpec:
    (column,) = configs.choose(column, ("paper", "released"))
    rows = [Row("Teacher GPT-5.2", PAPER["teacher"], note="answers of an API: store them and use ropd grade")]
    for mode in ("non_thinking", "thinking"):
        label = mode.replace("_", "-")
        base = PAPER[f"{mode} base"]
        rows.append(Row(f"{label}: base", base, checkpoint="Qwen/Qwen3-4B", thinking=mode == "thinking"))
        for method, name in NAMES.items():
            made = {field: run_of(field, mode, method, column) for field in ("math", "science", "medical")}
            special = {"gpqa_diamond": made["science"], "healthbench": made["medical"]}
            rows.append(Row(f"{label}: {name}", PAPER[f"{mode} {method}"], *made["math"], special, method=method))
    return TableSpec(
        f"Table 1: Qwen3-4B from GPT-5.2, text only{', released settings' if column == 'released' else ''}",
        COLUMNS,
        tuple(rows),
        column_flags={"healthbench": JUDGE},
        caption=(
            "GPQA-D is filled by runs on science, HealthBench on medical data, IFEval (out of domain) by the math "
            "runs, as in the paper. Its HealthBench is not the official score, it chose checkpoints on three of the "
            "columns, and it gives no intervals."
        ),
    )


def run_of(field: str, mode: str, method: str, column: str) -> tuple[tuple[str, ...], str]:
    """(names of the runs, flags of ``ropd train``) of a cell."""
    suffix, more = ("_released", ",released") if column == "released" else ("", "")
    train = f"--config experiments/qwen3_4b_{field}.py:{mode}{more} --config.method={method}"
    return (f"qwen3_4b_{field}_{mode}_{method}{suffix}",), train
