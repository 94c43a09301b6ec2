"""Accuracy on a benchmark against samples and against hours: Figure 3 of the paper (arXiv 2605.07396), white-box.

    python experiments/figure3_efficiency.py --runs runs --out figure3

Reads the ROPD and LOPD runs of Table 2. They have the curve if they evaluated the benchmark during training:

    ropd train ... --config.eval.benchmarks="('aime_2024',)" --config.eval.benchmarks_every=50

A sample is one answer of the student: s x P x G of them after s steps. Hours are those of the steps, without
evaluations and checkpoints. Writes figure3.csv and figure3.png. Expected (paper): ROPD reaches LOPD's best AIME24 with
a tenth of the samples (1.6k against 15.4k) and in a sixth of the time. Not yet run here: it needs a TPU slice.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import pathlib
import sys

from ropd_jax.types import UserError
from ropd_jax.workdir.metrics import read_metrics

RUNS = {"ROPD": "qwen3_4b_whitebox_ropd", "LOPD": "qwen3_4b_whitebox_lopd"}
HEAD = ("run", "step", "samples", "hours", "value", "low", "high")


def curve(run: pathlib.Path, benchmark: str) -> list[tuple[int, int, float, float, float | None, float | None]]:
    """(step, samples, hours, value, low, high) of each measurement of a run.

    Raises:
        UserError: the run does not exist, or did not evaluate the benchmark.
    """
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not a run; expected the runs of Table 2 (ropd table experiments/table2_whitebox.py)")
    cfg = json.loads((run / "config.json").read_text(encoding="utf-8"))
    cfg = cfg.get("config", cfg)
    per_step = cfg["data"]["prompts_per_step"] * cfg["sampling"]["rollouts"]
    series = read_metrics(run)
    name = f"eval/{benchmark}"
    points = {s: v for s, v in zip(*series.get(name, ((), ())), strict=True) if v is not None}
    if not points:
        raise UserError(f"{run} did not evaluate {benchmark} during training; train it with eval.benchmarks")
    low, high = (dict(zip(*series[f"{name}_{end}"], strict=True)) for end in ("low", "high"))
    done, seconds = series.get("time/step_s", ((), ()))
    spent = dict(zip(done, itertools.accumulate(s or 0.0 for s in seconds), strict=True))
    return [(s, s * per_step, spent.get(s, 0.0) / 3600, v, low.get(s), high.get(s)) for s, v in sorted(points.items())]


def draw(curves: dict[str, list], benchmark: str, path: pathlib.Path) -> None:
    """Two panels: over samples and over hours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, place, label in zip(figure.subplots(1, 2), (1, 2), ("samples", "hours"), strict=True):
        for name, points in curves.items():
            x = [p[place] for p in points]
            axes.plot(x, [100 * p[3] for p in points], label=name, marker="o", markersize=3, linewidth=1.6)
            axes.fill_between(x, [100 * p[4] for p in points], [100 * p[5] for p in points], alpha=0.15)
        axes.set_xlabel(label)
        axes.set_ylabel(f"{benchmark}, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--benchmark", default="aime_2024")
    parser.add_argument("--out", default="figure3", help="path of the files, without their endings")
    args = parser.parse_args()
    try:
        curves = {name: curve(pathlib.Path(args.runs) / run, args.benchmark) for name, run in RUNS.items()}
    except UserError as error:
        sys.exit(f"error: {error}")
    with pathlib.Path(f"{args.out}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        writer.writerows((name, *point) for name, points in curves.items() for point in points)
    draw(curves, args.benchmark, pathlib.Path(f"{args.out}.png"))
    print(f"wrote {args.out}.csv and {args.out}.png")


if __name__ == "__main__":
    main()
