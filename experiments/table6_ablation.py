"""Table 6 of the paper (arXiv 2605.07396): ablations of ROPD on AIME 2024, Qwen3-4B without thinking.

ropd table table6_ablation --runs runs
ropd table table6_ablation:released --runs runs                     the same with the official code's settings
"""

from __future__ import annotations

from ropd_jax import configs
from ropd_jax.analysis.tables import Row, TableSpec

ABLATIONS = (  # label, the paper's AIME24, name of the run, what differs from the full method
    ("One teacher answer (m=1)", 47.08, "m1", " --config.teacher.references=1"),
    ("A rubric for each pair", 61.25, "pair", " --config.ropd.rubric_per=pair"),
    ("Verifier not blind", 61.75, "not_blind", " --config.ropd.blind=False"),
    ("Full (m=4, shared, blind)", 65.02, "non_thinking_ropd", " --config.method=ropd"),
)


def get_table(column: str = "") -> TableSpec:
    (column,) = configs.choose(column, ("paper", "released"))
    suffix, more = ("_released", ",released") if column == "released" else ("", "")
    config = f"--config experiments/qwen3_4b_math.py:non_thinking{more}"
    rows = [Row("Base", (24.17,), checkpoint="Qwen/Qwen3-4B", thinking=False)]
    rows += [Row(label, (x,), (f"qwen3_4b_math_{name}{suffix}",), config + keys) for label, x, name, keys in ABLATIONS]
    return TableSpec(f"Table 6: ablations{', released settings' if more else ''}", ("aime_2024",), tuple(rows))
