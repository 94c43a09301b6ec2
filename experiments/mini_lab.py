"""All methods of experiments/mini.py in all its settings, three seeds each: one table, one picture.

    python experiments/mini_lab.py --out runs/mini            (make mini)
    python experiments/mini_lab.py --out runs/mini --show     table and picture of the finished runs

One run per core at a time, so that a method's seconds are those of one core. A larger tiny teacher for the white-box
methods is trained among them and must reach 90 %. Finished runs are not repeated. Hardware: 2 CPU cores. Time: under an
hour on idle cores. Expected: experiments/README.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.mini import METHODS, TAUGHT, UNTAUGHT, WHITE_BOX
from experiments.table_mini import BENCHMARK, SAMPLING
from ropd_jax.evaluation import results
from ropd_jax.evaluation.benchmarks import slug
from ropd_jax.evaluation.stats import accuracy, paired_difference
from ropd_jax.utils.text import clock
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.result import read_result

ALONE = "any"  # name of the setting for methods without a text teacher
COLORS = [f"C{i}" for i in range(10)]
COLORS += ["black", "gold", "navy", "crimson", "teal", "orchid", "sienna", "lime", "salmon", "slategray"]
COLORS += ["olive", "peru", "indigo", "darkcyan", "hotpink"]
PROMPTS = 16  # per step
EVALUATED = f"eval/{slug(BENCHMARK)}_step*/result.json"
LEAST = 0.9  # of the held-out sums that the white-box teacher solves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS), help="of experiments/mini.py, separated by commas")
    parser.add_argument("--settings", default=",".join(TAUGHT), help="of experiments/mini.py, separated by commas")
    parser.add_argument("--workers", type=int, default=len(cores()), help="runs side by side")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the config, for a smoke")
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
    methods, settings = args.methods.split(","), args.settings.split(",")
    cells = [(m, s) for s in settings for m in methods if m not in UNTAUGHT]
    cells += [(m, ALONE) for m in methods if m in UNTAUGHT]
    if not args.show:
        args.out.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((args.out / "xla").resolve()))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        evaluate_untrained(args.out)
        run_all(args.out, [(m, s, seed) for seed in range(args.seeds) for m, s in cells], args.workers, args.set)
    cells = [c for c in cells if runs_of(args.out, *c, args.seeds)]
    text = f"{table(args.out, cells, args.seeds)}\n\n{differences(args.out, cells, args.seeds)}"
    (args.out / "mini.md").write_text(text + "\n")
    print(text)
    print(draw(args.out, cells, args.seeds))


# ------------------------------------------------------------------------------------------------------------- runs


def name(method: str, setting: str, seed: int) -> str:
    return f"{method}-{setting}-{seed}"


def finished(out: pathlib.Path, method: str, setting: str, seed: int) -> bool:
    """True if the run is trained and evaluated."""
    return any((out / name(method, setting, seed)).glob(EVALUATED))


def runs_of(out: pathlib.Path, method: str, setting: str, seeds: int) -> list[pathlib.Path]:
    """The finished runs of a cell, one per seed."""
    return [out / name(method, setting, seed) for seed in range(seeds) if finished(out, method, setting, seed)]


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def make_teacher(path: pathlib.Path) -> float:
    """Trains the white-box teacher if it does not exist; returns its accuracy on the held-out sums."""
    if not (path / "accuracy.txt").exists():
        half = path.with_name("teacher.part")
        shutil.rmtree(half, ignore_errors=True)
        script = pathlib.Path(__file__).with_name("quickstart_coldstart.py")
        size = ["--layers=4", "--width=128", "--full", "--steps=1000"]
        command = [sys.executable, str(script), "--out", str(half), *size]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        (half / "accuracy.txt").write_text(re.search(r"greedy held-out accuracy ([\d.]+)", done.stdout)[1])
        half.rename(path)
    return float((path / "accuracy.txt").read_text())


def check_teacher(right: float) -> None:
    if right < LEAST:
        raise SystemExit(f"the white-box teacher solves {right:.1%} of the held-out sums; expected {LEAST:.0%} or more")
    print(f"white-box teacher: {right:.1%} of the held-out sums", flush=True)


def evaluate_untrained(out: pathlib.Path) -> None:
    where = out / "evals" / "tiny" / slug(BENCHMARK)
    if not (where / "result.json").exists():
        command = [sys.executable, "-m", "ropd_jax.cli.main", "eval", "tiny", "--benchmark", BENCHMARK, *SAMPLING]
        subprocess.run([*command, "--out", str(where)], stdout=subprocess.DEVNULL, check=True)


def run_all(out: pathlib.Path, todo: list[tuple[str, str, int]], workers: int, keys: list[str]) -> None:
    """Runs everything unfinished, in processes that compile once and run many, each on its own core."""
    left, begin, ended = [job for job in todo if not finished(out, *job)], time.monotonic(), 0
    spawn = multiprocessing.get_context("spawn")
    own = spawn.SimpleQueue()
    for i in range(workers):
        own.put(cores()[i % len(cores())])
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=take_core, initargs=(own,)) as pool:
        white = [job for job in left if job[0] in WHITE_BOX]
        if white and (out / "teacher" / "accuracy.txt").exists():
            check_teacher(make_teacher(out / "teacher"))
            white = []
        running = {pool.submit(make_teacher, out / "teacher"): None} if white else {}
        running |= {pool.submit(run_one, out, *job, keys): job for job in left if job not in white}
        try:
            while running:
                for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                    job, said = running.pop(future), future.result()
                    if job is None:
                        check_teacher(said)
                        running |= {pool.submit(run_one, out, *job, keys): job for job in white}
                        continue
                    run = out / name(*job)
                    if said:
                        log = run.with_suffix(".log").read_text(encoding="utf-8")
                        raise SystemExit(f"{run} ended with exit code {said}:\n{log[-2000:]}")
                    ended, took = ended + 1, time.monotonic() - begin
                    n, ahead = len(todo) - len(left) + ended, clock(took / ended * (len(left) - ended))
                    after = f"{run.name:<22} {read_result(run)['accuracy_after']:.1%}"
                    print(f"{n:3d}/{len(todo)}  {clock(took)}, about {ahead} left  {after}", flush=True)
        except BaseException:  # Ctrl-C too: a killed run loses only what is regenerated
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def take_core(own) -> None:
    """Runs before jax is loaded, which counts the cores. The process ends with its parent."""

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    core = own.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def run_one(out: pathlib.Path, method: str, setting: str, seed: int, keys: list[str]) -> int:
    """Runs `ropd train` and `ropd eval` once; their output goes to a file next to the run's directory."""
    from ropd_jax.cli import main as cli

    run = out / name(method, setting, seed)
    arg = f"method={method},setting={'plain' if setting == ALONE else setting}"
    arg += f",teacher={out / 'teacher'}" if method in WHITE_BOX else ""
    config = f"{pathlib.Path(__file__).with_name('mini.py')}:{arg}"
    flags = [f"--config={config}", f"--workdir={run}", f"--config.seed={seed}", *(f"--config.{key}" for key in keys)]
    with (
        open(run.with_suffix(".log"), "w", encoding="utf-8") as said,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        return cli.main(["train", *flags]) or cli.main(["eval", str(run), "--benchmark", BENCHMARK, *SAMPLING])


# ------------------------------------------------------------------------------------------------- table and picture


def share(values: list[float], n: int) -> str:
    """The mean over seeds with its 95 % interval over the ``n`` problems, and the lowest and the highest seed."""
    right = round(n * float(np.mean(values)))
    e = accuracy([True] * right + [False] * (n - right))
    return f"{np.mean(values):.1%} [{e.low:.1%}, {e.high:.1%}] | {len(values)}: {min(values):.1%} – {max(values):.1%}"


def table(out: pathlib.Path, cells: list[tuple[str, str]], seeds: int) -> str:
    """Markdown: one row per method and setting; seconds are the median seed's, to ignore disturbed runs."""
    heads = ["setting", "method", "greedy", "its seeds", "sampled", "its seeds"]
    heads += ["prompts", "teacher calls", "seconds", "unscored groups"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    before = read_result(runs_of(out, *cells[0], seeds)[0])
    first, drawn = (share([before[f"{kind}_before"]], before["heldout_n"]) for kind in ("accuracy", "sampled_accuracy"))
    rows.append(f"| | *cold start* | {first.split(' | ')[0]} | | {drawn.split(' | ')[0]} | | 0 | 0 | | |")
    for method, setting in cells:
        runs = runs_of(out, method, setting, seeds)
        found = [read_result(run) for run in runs]
        n = found[0]["heldout_n"]
        greedy, sampled = (share([r[f"{kind}_after"] for r in found], n) for kind in ("accuracy", "sampled_accuracy"))
        calls = np.mean([r["teacher"].get("teacher/calls", 0.0) for r in found])
        seconds = np.median([seconds_at(read_metrics(run), [found[0]["steps"]]) for run in runs])
        rows.append(
            f"| {setting} | {method} | {greedy} | {sampled} | {found[0]['groups_total']} | {calls:.0f} | {seconds:.1f} "
            f"| {sum(r['groups_unscored'] for r in found)} of {sum(r['groups_total'] for r in found)} |"
        )
    return "\n".join(rows)


def differences(out: pathlib.Path, cells: list[tuple[str, str]], seeds: int) -> str:
    """Markdown: avg@4 of each method minus that of ROPD, in points, paired by problem, means over the seeds."""

    def solved(method: str, setting: str) -> dict[str, float]:
        runs = runs_of(out, method, setting, seeds)
        found = [results.read_result(next(run.glob(EVALUATED)))["per_problem"] for run in runs]
        return {i: float(np.mean([one[i] for one in found])) for i in found[0]}

    settings = [s for m, s in cells if m == "ropd"]
    rows = ["| avg@4 minus ROPD's | " + " | ".join(settings) + " |", "|---" * (len(settings) + 1) + "|"]
    for method in dict.fromkeys(m for m, _ in cells if m != "ropd"):
        said = []
        for setting in settings:
            where = ALONE if method in UNTAUGHT else setting
            if (method, where) not in cells:
                said.append("")
                continue
            e = paired_difference(solved("ropd", setting), solved(method, where))
            said.append(f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]")
        rows.append(f"| {method} | {' | '.join(said)} |")
    return "\n".join(rows)


def seconds_at(metrics, steps: list[int]) -> list[float]:
    """Seconds of training up to each step, evaluations left out.

    A step of more than three times its run's median includes compilation and counts as the median.
    """
    at, took = (np.asarray(x) for x in metrics["time/step_s"])
    took = np.where(took > 3 * np.median(took), np.median(took), took)
    return [float(took[at <= step].sum()) for step in steps]


def draw(out: pathlib.Path, cells: list[tuple[str, str]], seeds: int) -> pathlib.Path:
    """Held-out greedy accuracy against prompts and against seconds, a row of panels for each setting."""
    settings = list(dict.fromkeys(s for _, s in cells if s != ALONE)) or [ALONE]
    figure = Figure(figsize=(11, 3.4 * len(settings)), layout="constrained")
    panels = figure.subplots(len(settings), 2, sharey=True, squeeze=False)
    for axes, setting in zip(panels, settings, strict=True):
        for method, where in cells:
            if where not in (setting, ALONE):
                continue
            runs = [read_metrics(run) for run in runs_of(out, method, where, seeds)]
            steps = runs[0]["eval/accuracy"][0]
            mean = np.mean([run["eval/accuracy"][1] for run in runs], axis=0)
            seconds = np.median([seconds_at(run, steps) for run in runs], axis=0)
            color, line = COLORS[list(METHODS).index(method) % len(COLORS)], "--" if where == ALONE else "-"
            for axis, x in zip(axes, ([PROMPTS * step for step in steps], seconds), strict=True):
                axis.plot(x, mean, label=method, color=color, linestyle=line, linewidth=1.5)
        axes[0].set_title(f"{setting}: held-out greedy accuracy, mean of the seeds", fontsize=11)
        axes[0].set_xlabel("prompts")
        axes[1].set_xlabel("seconds of training, one core")
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
