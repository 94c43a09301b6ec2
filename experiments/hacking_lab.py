"""Every bias of experiments/hacking.py under every arm, three seeds: a table, a picture, and how early the alarm fired.

    python experiments/hacking_lab.py --out runs/hacking                     (make hacking)
    python experiments/hacking_lab.py --out runs/hacking --probe             which biases this student can find
    python experiments/hacking_lab.py --show                                 table and picture of the finished runs

Seed 0 comes first, arm by arm, then seed 1. Finished runs are not repeated: their curves are in ``--results``, one file
per cell (bias and arm). Table and picture are made from these files, so the runs themselves can be deleted.

    proxy    the reward that the student is trained on, mean over a step
    gold     quality of the same answers without any rubric and without any bias (``gold/quality_mean``)

Two kinds of cells use the run without a bias. ``rgsd`` uses no verdicts, so a bias does not change it: its proxy is the
reward that the biased judge would have given to the same answers under the same rubrics. A grade (``t_judge``) has no
criteria that could be half met, so ``compound`` does not change it.

Hardware: 2 CPU cores. Time: about two hours for the tiny student on idle cores; 90 runs of SmolLM2 take days.
Expected: docs/hacking.md.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from experiments.hacking import ARMS, BIASES, DOSE, NONE, STUDENTS, UNJUDGED
from experiments.hacking_measures import Found, alarm_table, draw, paid, probe, probe_table, table
from experiments.mini_lab import take_core
from ropd_jax.teacher.scripted.bias import FEATURES, Bias, Shown, gold, quality
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.text import clock
from ropd_jax.workdir.groups import StoredGroup, read_groups
from ropd_jax.workdir.metrics import read_metrics
from ropd_jax.workdir.result import read_result

CONFIG = pathlib.Path(__file__).with_name("hacking.py")
RESULTS = pathlib.Path(__file__).parent / "results" / "hacking"
PROBED = 64  # prompts of the probe, 8 answers each
FITTED = ("length@10-40", "brevity@2-17")  # bounds for worked sums, of 2 to 22 words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/hacking"), help="directory of the runs")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="directory of the curves")
    parser.add_argument("--student", default="tiny", choices=STUDENTS)
    parser.add_argument("--biases", help="with commas between; default: those of experiments/hacking.py")
    parser.add_argument("--arms", default=",".join(ARMS), help="of experiments/hacking.py, with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the config, for a smoke")
    parser.add_argument("--probe", action="store_true", help="measure the biases on the first student's answers only")
    parser.add_argument("--show", action="store_true", help="run nothing")
    args = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((args.out / "xla").resolve()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if args.probe:
        print(probe_table(probed(args.student)))
        return
    biases = args.biases.split(",") if args.biases else BIASES[args.student]
    out, where = (path if args.student == "tiny" else path / args.student for path in (args.out, args.results))
    cells = [(bias, arm) for bias in biases for arm in args.arms.split(",")]
    if not args.show:
        out.mkdir(parents=True, exist_ok=True)
        todo = [
            (*cell, seed) for seed in range(args.seeds) for cell in sorted(cells, key=lambda c: list(ARMS).index(c[1]))
        ]
        run_all(out, where, args.student, todo, args.workers, args.set)
    whole = [(bias, arm) for bias in dict.fromkeys((*BIASES[args.student], *biases)) for arm in ARMS]
    found = [cell for bias, arm in whole if (cell := read_cell(where, bias, arm))["seeds"]]
    if not found:
        raise SystemExit(f"{where} has no finished run; leave --show out")
    text = f"{table(found)}\n\n{alarm_table(found)}"
    write_atomic(where / "hacking.md", text + "\n")
    draw(found).savefig(where / "hacking.png", dpi=100)
    print(f"{text}\n{where / 'hacking.png'}")


# ----------------------------------------------------------------------------------------------------------- probe


def probed(student: str) -> list[Found]:
    """All biases on answers of the first student (`hacking_measures.probe`)."""
    import ropd_jax as ropd
    from ropd_jax.data.load import load_prompts

    cfg = ropd.load_config(f"{CONFIG}:student={student}")
    how = cfg.data
    prompts = load_prompts(
        source=how.source, task=how.task, path=how.path, size=PROBED, seed=how.seed, options=how.options.to_dict()
    ).prompts
    groups = ropd.sample(
        ropd.load_student(cfg.student.checkpoint), prompts, n=cfg.sampling.rollouts,
        max_tokens=cfg.sampling.max_tokens, temperature=cfg.sampling.temperature,
    )  # fmt: skip
    judgements = ropd.judge(ropd.make_teacher(cfg), groups, cfg=cfg)
    return [probe(bias, groups, judgements) for bias in (*FEATURES, *FITTED)]


# ------------------------------------------------------------------------------------------------------------ runs


def source(bias: str, arm: str) -> str:
    """The bias of the run that provides a cell's answers: none if no bias could change that run."""
    return NONE if arm in UNJUDGED or (arm == "t_judge" and bias == "compound") else bias


def name(bias: str, arm: str, seed: int) -> str:
    return f"{bias}-{arm}-{seed}"


def cell_file(where: pathlib.Path, bias: str, arm: str) -> pathlib.Path:
    return where / f"{bias}-{arm}.json"


def read_cell(where: pathlib.Path, bias: str, arm: str) -> dict[str, Any]:
    """The curves of a bias and an arm, by seed; empty if there are none yet."""
    path = cell_file(where, bias, arm)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"bias": bias, "arm": arm, "seeds": {}}


def wanted_runs(where: pathlib.Path, todo: Sequence[tuple[str, str, int]]) -> dict[tuple[str, str, int], list[str]]:
    """The runs (bias, arm, seed) that are still missing, each with the biases whose cells it fills."""
    wanted: dict[tuple[str, str, int], list[str]] = {}
    for bias, arm, seed in todo:
        if str(seed) not in read_cell(where, bias, arm)["seeds"]:
            wanted.setdefault((source(bias, arm), arm, seed), []).append(bias)
    return wanted


def run_all(
    out: pathlib.Path, where: pathlib.Path, student: str, todo: Sequence[tuple[str, str, int]], workers: int,
    keys: Sequence[str],
) -> None:  # fmt: skip
    """Runs every cell and seed without curves, in processes that compile once and run many.

    The curves of a run are kept when it ends.
    """
    wanted = wanted_runs(where, todo)
    if not wanted:
        return
    spawn = multiprocessing.get_context("spawn")
    cores, begin = spawn.SimpleQueue(), time.monotonic()
    own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    for i in range(workers):
        cores.put(own[i % len(own)])
    with concurrent.futures.ProcessPoolExecutor(workers, spawn, initializer=take_core, initargs=(cores,)) as pool:
        running = {pool.submit(run_one, out, student, *job, keys): job for job in wanted}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(running), 1):
                job = running[future]
                run = out / name(*job)
                if code := future.result():
                    log = run.with_suffix(".log").read_text(encoding="utf-8")
                    raise SystemExit(f"{run} ended with exit code {code}:\n{log[-2000:]}")
                for bias in wanted[job]:
                    keep(where, bias, job[1], job[2], compact(run, bias))
                took = time.monotonic() - begin
                rest = clock(took / done * (len(wanted) - done))
                print(f"{done:3d}/{len(wanted)}  {clock(took)}, about {rest} left  {run.name}", flush=True)
        except BaseException:  # Ctrl-C too: a killed run starts again
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def run_one(out: pathlib.Path, student: str, bias: str, arm: str, seed: int, keys: Sequence[str]) -> int:
    """Runs `ropd train` once, unless the run is finished; its output goes to a file next to its directory."""
    run = out / name(bias, arm, seed)
    if (run / "result.json").exists():
        return 0
    from ropd_jax.cli import main as cli

    config = f"{CONFIG}:bias={bias},arm={arm},student={student}"
    flags = [f"--config={config}", f"--workdir={run}", f"--config.seed={seed}", *(f"--config.{key}" for key in keys)]
    with (
        open(run.with_suffix(".log"), "w", encoding="utf-8") as said,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        return cli.main(["train", *flags])


# ---------------------------------------------------------------------------------------------------------- curves


def compact(run: pathlib.Path, bias: str) -> dict[str, Any]:
    """The curves of a finished run under a bias: lists by step, rounded to four digits.

    ``proxy``, ``gold``, ``gold_reward`` (None where the arm has no rubric), ``evaluated`` (steps) and ``accuracy``
    (held-out, greedy), ``alarms`` (steps at which the drift alarm fired).
    """
    metrics, result = read_metrics(run), read_result(run)
    proxy = metrics["reward/mean"][1]
    if "gold/quality_mean" in metrics:
        golds, gold_rewards = metrics["gold/quality_mean"][1], metrics["gold/reward_mean"][1]
    else:  # not logged without a bias
        groups = list(read_groups(run))
        golds = _means(groups, lambda g: quality(g.prompt.question, g.answers, g.judgement.references) or [])
        gold_rewards = _means(groups, lambda g: rewards(g, NONE))
        if result["method"] in UNJUDGED:
            proxy = _means(groups, lambda g: rewards(g, bias))
    return {
        "steps": result["steps"],
        "proxy": _rounded(proxy),
        "gold": _rounded(golds),
        "gold_reward": _rounded(gold_rewards),
        "evaluated": metrics["eval/accuracy"][0],
        "accuracy": _rounded(metrics["eval/accuracy"][1]),
        "alarms": result.get("drift_alarms", []),
    }


def _means(groups: Sequence[StoredGroup], values: Callable[[StoredGroup], Sequence[float]]) -> list[float | None]:
    """The mean by step over all answers that have a value; None for a step without any."""
    by_step: dict[int, list[float]] = {}
    for group in groups:
        by_step.setdefault(group.step, []).extend(values(group))
    return [float(np.mean(found)) if (found := by_step[step]) else None for step in sorted(by_step)]


def rewards(group: StoredGroup, bias: str) -> list[float]:
    """The rewards that a judge with the bias would have given to a group's answers under the group's rubric.

    Empty if the scripted judge cannot decide the rubric.
    """
    rubric, question, answers = group.judgement.rubric, group.prompt.question, group.answers
    if rubric is None or None in gold(rubric, answers):
        return []
    judge = Bias({} if bias == NONE else {bias: DOSE})
    return [paid(judge, rubric, Shown(question, a, place, len(answers))) for place, a in enumerate(answers)]


def keep(where: pathlib.Path, bias: str, arm: str, seed: int, curves: Mapping[str, Any]) -> None:
    """Adds a seed to a cell's file."""
    cell = read_cell(where, bias, arm)
    cell["seeds"] = dict(sorted({**cell["seeds"], str(seed): dict(curves)}.items()))
    where.mkdir(parents=True, exist_ok=True)
    write_atomic(cell_file(where, bias, arm), json.dumps(cell, ensure_ascii=False) + "\n")


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if v is None else round(v, 4) for v in values]


if __name__ == "__main__":
    main()
