"""The quickstart, its control and SFT, three seeds each: one table, one picture.

    python experiments/quickstart_lab.py --out runs/lab

Nine runs of experiments/quickstart.py (finished ones are not repeated). Hardware: 2 CPU cores. Time: about 12 minutes.
Expected: experiments/README.md.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

from matplotlib.figure import Figure

from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.result import read_result

METHODS = {"ropd": "ROPD", "permuted": "control: rewards permuted", "sft": "SFT on the same references"}
SEEDS = (0, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the nine runs")
    out = parser.parse_args().out
    for method in METHODS:
        for seed in SEEDS:
            flags = [f"--config.method={method}", f"--config.seed={seed}", f"--workdir={out / f'{method}{seed}'}"]
            command = [sys.executable, "-m", "ropd_jax.cli.main", "train", "--config=experiments/quickstart.py", *flags]
            subprocess.run(command, check=True)
    print(table(out))
    print(draw(out))


def table(out: pathlib.Path) -> str:
    """Markdown: one row per run."""
    rows = ["| method | seed | greedy before | greedy after | sampled before | sampled after | unscored groups |"]
    rows.append("|---|---|---|---|---|---|---|")
    for method, name in METHODS.items():
        for seed in SEEDS:
            r = read_result(out / f"{method}{seed}")
            low, high = r["accuracy_after_interval"]
            rows.append(
                f"| {name} | {seed} | {r['accuracy_before']:.1%} | {r['accuracy_after']:.1%} [{low:.1%}, {high:.1%}] "
                f"| {r['sampled_accuracy_before']:.1%} | {r['sampled_accuracy_after']:.1%} "
                f"| {r['groups_unscored']} of {r['groups_total']} |"
            )
    return "\n".join(rows)


def draw(out: pathlib.Path) -> pathlib.Path:
    """Held-out accuracy against steps, greedy and sampled, all nine runs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric, title in zip(
        panels, ("eval/accuracy", "eval/sampled_accuracy"), ("greedy", "sampled"), strict=True
    ):
        for color, (method, name) in zip(("C0", "C3", "C7"), METHODS.items(), strict=True):
            for seed in SEEDS:
                steps, values = read_metrics(out / f"{method}{seed}")[metric]
                axes.plot(steps, values, color=color, linewidth=1.5, label=name if seed == 0 else None)
        axes.set_title(f"held-out accuracy, {title} (n = 500)", fontsize=11)
        axes.set_xlabel("optimizer step (16 prompts x 8 rollouts)")
        axes.grid(alpha=0.3)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    path = out / "quickstart.png"
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    main()
