"""The quickstart's own table: ROPD, its control with permuted rewards, and SFT, three seeds each, on 2 CPU cores.

    python experiments/quickstart_lab.py --out runs/lab                the nine runs, about 12 minutes
    ropd table table_quickstart --runs runs/lab                        missing cells, and their commands

Expected: experiments/README.md.
"""

from __future__ import annotations

from ropd_jax.analysis.tables import Row, TableSpec

METHODS = {"ropd": "ROPD", "permuted": "control: rewards permuted", "sft": "SFT on the same references"}


def get_table() -> TableSpec:
    rows = [Row("untrained", checkpoint="tiny")]
    for method, name in METHODS.items():
        runs = tuple(f"{method}{seed}" for seed in range(3))
        rows.append(
            Row(
                name,
                runs=runs,
                train=f"--config experiments/quickstart.py --config.method={method} --config.seed={{seed}}",
            )
        )
    return TableSpec(
        "Tiny student, sums of one-digit numbers",
        ("reasoning_gym:chain_sum,min_terms=4,max_terms=5,min_digits=1,max_digits=1",),
        tuple(rows),
        eval_flags="--k 4 --max_tokens 48 --limit 200 --template '{question}'",
    )
