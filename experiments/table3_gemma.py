"""Table 3 of the paper (arXiv 2605.07396): across families, Gemma3-4B-it from GPT-5.2.

ropd table table3_gemma --runs runs
ropd table table3_gemma:released --runs runs                        the same with the official code's settings
"""

from __future__ import annotations

from ropd_jax import configs
from ropd_jax.analysis.tables import Row, TableSpec, paper_rows

COLUMNS = ("aime_2024", "aime_2025", "hmmt_feb_2025", "hmmt_nov_2025")
PAPER = paper_rows("""
base |  6.67 12.92 1.67 6.25
ovd  |  7.38 13.00 2.05 6.36
gad  |  6.92 12.50 1.83 6.08
ropd | 10.00 13.72 2.92 6.88
""")


def get_table(column: str = "") -> TableSpec:
    (column,) = configs.choose(column, ("paper", "released"))
    suffix, more = ("_released", ":released") if column == "released" else ("", "")
    rows = [Row("Base", PAPER["base"], checkpoint="google/gemma-3-4b-it")]
    for method in ("ovd", "gad", "ropd"):
        train = f"--config experiments/gemma3_4b_it.py{more} --config.method={method}"
        rows.append(Row(method.upper(), PAPER[method], (f"gemma3_4b_it_{method}{suffix}",), train, method=method))
    return TableSpec(f"Table 3: Gemma3-4B-it from GPT-5.2{', released settings' if more else ''}", COLUMNS, tuple(rows))
