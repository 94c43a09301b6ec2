"""All methods of experiments/mini.py in all its settings, three seeds each: one table, one picture.

    python experiments/mini_lab.py --out runs/mini            (make mini)

First a larger tiny teacher for the white-box methods is trained and must reach 90 % (four minutes); then come the runs,
one after the other, finished ones not again. Hardware: 2 CPU cores. Time: under an hour on idle ones. Expected:
experiments/README.md.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.mini import METHODS, SETTINGS, UNTAUGHT, WHITE_BOX
from ropd_jax.report import read_metrics, read_result

SHOWN = [s for s in SETTINGS if s != "plain"]
ALONE = "any"  # the setting's name of methods without a text teacher
COLORS = [f"C{i}" for i in range(10)] + ["black", "gold"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS), help="of experiments/mini.py, with commas between")
    parser.add_argument("--settings", default=",".join(SHOWN), help="of experiments/mini.py, with commas between")
    parser.add_argument("--steps", type=int, default=32)
    args = parser.parse_args()
    methods, settings = args.methods.split(","), args.settings.split(",")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((args.out / "xla").resolve()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    if set(methods) & set(WHITE_BOX):
        make_teacher(args.out / "teacher")
    cells = [(m, s) for s in settings for m in methods if m not in UNTAUGHT]
    cells += [(m, ALONE) for m in methods if m in UNTAUGHT]
    todo = [(m, s, seed) for seed in range(args.seeds) for m, s in cells]
    begin = time.monotonic()
    for n, (method, setting, seed) in enumerate(todo, 1):
        run = args.out / f"{method}-{setting}-{seed}"
        if not (run / "result.json").exists():
            arg = f"method={method},setting={'plain' if setting == ALONE else setting},teacher={args.out / 'teacher'}"
            flags = [f"--config=experiments/mini.py:{arg}", f"--config.seed={seed}", f"--config.steps={args.steps}"]
            command = [sys.executable, "-m", "ropd_jax.cli", "train", *flags, f"--workdir={run}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{run} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
        after = read_result(run)["accuracy_after"]
        print(f"{n:3d}/{len(todo)}  {time.monotonic() - begin:6.0f} s  {run.name:<24} {after:.1%}", flush=True)
    print(table(args.out, cells, args.seeds))
    print(draw(args.out, cells, args.seeds))


def make_teacher(path: pathlib.Path) -> None:
    """The white-box teacher, and its accuracy on the held-out sums; below 90 % nothing is run."""
    if not (path / "accuracy.txt").exists():
        script = pathlib.Path(__file__).with_name("quickstart_coldstart.py")
        command = [
            sys.executable,
            str(script),
            "--out",
            str(path),
            "--layers=4",
            "--width=128",
            "--full",
            "--steps=1600",
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        (path / "accuracy.txt").write_text(re.search(r"greedy held-out accuracy ([\d.]+)", done.stdout)[1])
    accuracy = float((path / "accuracy.txt").read_text())
    print(f"white-box teacher: {accuracy:.1%} of the held-out sums", flush=True)
    if accuracy < 0.9:
        raise SystemExit(f"{path}: the white-box teacher solves {accuracy:.1%}; expected 90 % or more")


def table(out: pathlib.Path, cells: list[tuple[str, str]], seeds: int) -> str:
    """Markdown: a row for each method and setting, means over the seeds, the lowest and highest seed in brackets."""
    rows = ["| setting | method | greedy | sampled | prompts | teacher calls | seconds | unscored groups |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    before = read_result(out / f"{cells[0][0]}-{cells[0][1]}-0")
    rows.append(
        f"| | *before* | {before['accuracy_before']:.1%} | {before['sampled_accuracy_before']:.1%} | 0 | 0 | | |"
    )
    for method, setting in cells:
        found = [read_result(out / f"{method}-{setting}-{seed}") for seed in range(seeds)]
        greedy, sampled = ([r[f"{kind}_after"] for r in found] for kind in ("accuracy", "sampled_accuracy"))
        calls = np.mean([r["teacher"].get("teacher/calls", 0.0) for r in found])
        rows.append(
            f"| {setting} | {method} | {np.mean(greedy):.1%} [{min(greedy):.1%}, {max(greedy):.1%}] "
            f"| {np.mean(sampled):.1%} [{min(sampled):.1%}, {max(sampled):.1%}] | {found[0]['groups_total']} "
            f"| {calls:.0f} | {np.mean([r['seconds'] for r in found]):.0f} "
            f"| {sum(r['groups_unscored'] for r in found)} |"
        )
    return "\n".join(rows)


def seconds_at(metrics, steps: list[int]) -> list[float]:
    """Seconds of training, evaluations and the first step (which compiles) left out, up to each step."""
    at, took = metrics["time/step_s"]
    return [float(sum(s for n, s in zip(at, took, strict=True) if 1 < n <= step)) for step in steps]


def draw(out: pathlib.Path, cells: list[tuple[str, str]], seeds: int) -> pathlib.Path:
    """Held-out greedy accuracy against prompts and against seconds, a row of panels for each setting."""
    settings = list(dict.fromkeys(s for _, s in cells if s != ALONE)) or [ALONE]
    figure = Figure(figsize=(11, 3.4 * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), 2, sharey=True, squeeze=False)
    names = list(METHODS)
    for axes, setting in zip(panels, settings, strict=True):
        for method, where in cells:
            if where not in (setting, ALONE):
                continue
            runs = [read_metrics(out / f"{method}-{where}-{seed}") for seed in range(seeds)]
            steps = runs[0]["eval/accuracy"][0]
            mean = np.mean([run["eval/accuracy"][1] for run in runs], axis=0)
            prompts = [16 * n for n in steps]
            seconds = np.mean([seconds_at(run, steps) for run in runs], axis=0)
            style = dict(color=COLORS[names.index(method)], linestyle="--" if where == ALONE else "-", linewidth=1.5)
            for axis, x in zip(axes, (prompts, seconds), strict=True):
                axis.plot(x, mean, label=method, **style)
        axes[0].set_title(f"{setting}: held-out greedy accuracy, mean of {seeds} seeds", fontsize=11)
        axes[0].set_xlabel("prompts")
        axes[1].set_xlabel("seconds of training")
        for axis in axes:
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        axes[1].legend(frameon=False, fontsize=8, ncols=2)
    path = out / "mini.png"
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    main()
