"""Every method in miniature as a table: avg@4 on held-out sums of the runs of experiments/mini_lab.py, three seeds.

    make mini                                                                            the runs and their evaluations
    ropd table table_mini --runs runs/mini --evals runs/mini/evals

Expected: experiments/README.md.
"""

from __future__ import annotations

import pathlib
import sys

from ropd_jax.analysis.tables import Row, TableSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.mini import METHODS, TAUGHT, UNTAUGHT, WHITE_BOX

BENCHMARK = "reasoning_gym:chain_sum,min_terms=4,max_terms=5,min_digits=1,max_digits=1"
SAMPLING = ("--k", "4", "--max_tokens", "60", "--limit", "200", "--template", "{question}")


def get_table() -> TableSpec:
    taught = [(m, s) for s in TAUGHT for m in METHODS if m not in UNTAUGHT]
    rows = [Row("untrained", checkpoint="tiny")]
    for method, setting in [*taught, *((m, "any") for m in UNTAUGHT)]:
        arg = f"method={method},setting={'plain' if setting == 'any' else setting}"
        arg += ",teacher=runs/mini/teacher" if method in WHITE_BOX else ""
        runs = tuple(f"{method}-{setting}-{seed}" for seed in range(3))
        train = f"--config experiments/mini.py:{arg} --config.seed={{seed}}"
        rows.append(Row(f"{setting}: {method}", runs=runs, train=train))
    flags = " ".join(f"'{word}'" if "{" in word else word for word in SAMPLING)
    title = "Every method in miniature: tiny student, sums of one-digit numbers"
    return TableSpec(title, (BENCHMARK,), tuple(rows), eval_flags=flags)
