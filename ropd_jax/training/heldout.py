"""Evaluation during a run: exact accuracy on held-out questions, the grades of an independent judge, benchmarks.

The held-out judge (``teacher.judge``) is a different model from those whose verdicts become rewards. It grades held-out
answers for `training.drift`; its grades are never used as rewards.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ropd_jax.data import golds
from ropd_jax.data.grader import grade
from ropd_jax.evaluation.stats import accuracy
from ropd_jax.methods.t_judge import HIGHEST, LOWEST
from ropd_jax.parallel import hosts
from ropd_jax.teacher import Teacher, TeacherError, TeacherLoop
from ropd_jax.teacher.judge_group import scored, unscored
from ropd_jax.training.benchmarks import engine_of, graded
from ropd_jax.training.collect import PendingStep, Report, judge_group, judge_step
from ropd_jax.types import Judgement, RolloutGroup
from ropd_jax.utils import tracing
from ropd_jax.utils.interrupt import Interrupt

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ropd_jax.training.run import Run
    from ropd_jax.training.session import Session
    from ropd_jax.training.update import State


def evaluate(run: Run, state: State, step: int, out: Session) -> dict[str, Any]:
    """The metrics of all `Run.evaluations` of the student after ``step`` steps."""
    names = run.evaluations(step)
    metrics = evaluate_heldout(run, state, step, out) if "accuracy" in names else {}
    return metrics | (evaluate_benchmarks(run, state, step, out) if set(names) - {"accuracy"} else {})


def evaluate_heldout(run: Run, state: State, step: int, out: Session) -> dict[str, Any]:
    """The held-out metrics of the student after ``step`` steps.

    The first and the last evaluation use all held-out questions, those in between ``eval.size`` of them. Without
    held-out questions there are no metrics.
    """
    if not run.heldout.prompts:
        return {}
    ends = step in (0, run.steps)
    n = len(run.heldout.prompts) if ends else run.cfg.eval.size or len(run.heldout.prompts)
    prompts = run.heldout.prompts[:n]
    answers: list[RolloutGroup] = []
    with tracing.span("evaluate"):
        sampled = {
            name: run.sample(engine, state.params, prompts, run.heldout, seed=0, step=0, version=step, check=out.check)
            for name, engine in run.eval_engines.items()
        }
        metrics = grade_heldout(sampled, n, out.poll, answers)
        if run.judged:
            answers = [group for group in answers if group.index < run.judged]
            metrics |= judge_heldout(answers, step, run.teacher, out.loop, out.interrupt, out.report)
    return metrics


def grade_heldout(
    sampled: Mapping[str, Iterable[RolloutGroup]], n: int, report: Callable[[str], None], first: list[RolloutGroup]
) -> dict[str, Any]:
    """Exact accuracy of held-out answers.

    Args:
        sampled: the groups by metric name, e.g. ``accuracy`` (greedy) and ``sampled_accuracy``; one name is sampled
            after the other.
        n: the number of groups of each name.
        report: called with a line of progress.
        first: receives the groups of the first name.

    Returns:
        ``eval/NAME`` with its 95 % interval, the number of answers, and the ungraded and truncated shares.
    """
    metrics: dict[str, Any] = {}
    for name, groups in sampled.items():
        grades, truncated = [], 0
        for done, group in enumerate(groups):
            report(f"evaluating {name} {done + 1}/{n}")
            if not metrics:
                first.append(group)
            grades += [grade(group.prompt, r.answer) for r in group.rollouts]
            truncated += sum(r.finish_reason == "length" for r in group.rollouts)
        estimate = accuracy(grades)
        metrics |= {
            f"eval/{name}": estimate.value,
            f"eval/{name}_low": estimate.low,
            f"eval/{name}_high": estimate.high,
            f"eval/{name}_n": estimate.n,
            f"eval/{name}_ungraded": estimate.ungraded,
            f"eval/{name}_truncated_frac": truncated / max(len(grades), 1),
        }
    return metrics


def evaluate_benchmarks(run: Run, state: State, step: int, out: Session) -> dict[str, Any]:
    """``eval/NAME`` of each benchmark: the mean over problems of the share of right answers, with its 95 % interval
    over problems, the numbers of problems and of ungraded ones, and the share of truncated answers.

    The random numbers are the same at every evaluation, so that two checkpoints differ only by their weights.
    """
    metrics: dict[str, Any] = {}
    with tracing.span("evaluate"):
        for benchmark in run.benchmarks:
            name, prompts = benchmark.loaded.benchmark.name, benchmark.loaded.prompts
            engine = engine_of(benchmark, run.cfg.eval, run.engine, run.sample_mesh.shape["fsdp"])
            groups: list[RolloutGroup] = []
            sampled = run.sample(
                engine, state.params, prompts, benchmark.questions,
                seed=run.cfg.seed, step=0, version=step, check=out.check,
            )  # fmt: skip
            for group in sampled:
                out.poll(f"evaluating {name} {len(groups) + 1}/{len(prompts)}")
                groups.append(group)
            metrics |= hosts.on_host0(functools.partial(graded, benchmark.loaded, groups))  # a grader's time is its own
    return metrics


# --------------------------------------------------------------------------------------------- held-out judge


async def held_out_judge(teacher: Teacher, group: RolloutGroup) -> Judgement:
    """A grade of each answer by ``teacher.judge``, requested as `methods.t_judge` does.

    A free-text gold answer is shown to the judge as a reference, because a comparison of texts cannot grade it. Any
    other gold answer is left to the exact grader, and the judge grades without it.
    """
    answers = [r.answer for r in group.rollouts]
    gold = golds.reference_of(group.prompt)
    shown = [gold] if gold else []
    try:
        marks = await teacher.score(
            group.prompt, answers, key=f"eval/{group.prompt.id}", lowest=LOWEST, highest=HIGHEST,
            template="score_judge_references.v3" if shown else "score_judge.v3", references=shown, role="judge",
        )  # fmt: skip
    except TeacherError as error:
        return unscored(error, len(answers))
    return scored(marks, LOWEST, HIGHEST)


def judge_heldout(
    groups: Sequence[RolloutGroup],
    step: int,
    teacher: Teacher,
    loop: TeacherLoop,
    interrupt: Interrupt,
    report: Report,
) -> dict[str, float | None]:
    """The held-out judge's grades: ``eval/judge``, a mean from 0 to 1, with its standard error and the numbers of
    graded and ungraded answers.

    Raises:
        see `collect.judge_step`.
    """
    asked = (dataclasses.replace(group, step=step) for group in groups)
    pending = PendingStep(step, asked, lambda group: loop.submit(judge_group(held_out_judge, teacher, group)))
    _, judgements, _ = judge_step(pending, interrupt, report, outage=lambda: teacher.waiting_for)
    grades = [reward for judgement in judgements for reward in judgement.rewards if reward is not None]
    n = len(grades)
    return {
        "eval/judge": float(np.mean(grades)) if n else None,
        "eval/judge_error": float(np.std(grades, ddof=1)) / n**0.5 if n > 1 else None,
        "eval/judge_n": n,
        "eval/judge_ungraded": len(judgements) - n,
    }
