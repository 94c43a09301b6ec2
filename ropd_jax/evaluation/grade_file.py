"""Grading of stored answers to a benchmark, without a student. Imports no jax."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ropd_jax.evaluation import results
from ropd_jax.evaluation.answers import read_answers
from ropd_jax.evaluation.benchmarks import Loaded, load_benchmark
from ropd_jax.evaluation.graders.healthbench import grader_facts
from ropd_jax.evaluation.grading import grade_answers
from ropd_jax.evaluation.results import EvalResult
from ropd_jax.teacher import Teacher, build_teacher
from ropd_jax.teacher.build import role_of
from ropd_jax.types import UserError
from ropd_jax.utils.paths import only_local

log = logging.getLogger(__name__)
_REPORT_EVERY_S = 2.0


def grade_stored(
    benchmark: str,
    answers: str | os.PathLike[str],
    *,
    data: str = "",
    out: str = "",
    against: str = "",
    workers: int = 0,
    timeout_s: float = 5.0,
    teacher: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> EvalResult:
    """Grades stored answers to a benchmark.

    Args:
        benchmark: a name in `benchmarks.BENCHMARKS`, or ``reasoning_gym:TASK[,key=value,...]``.
        answers: JSONL of ``{"id", "response"}``, k lines per problem.
        data: a directory with the benchmark's rows, or ``hub``.
        out: file for the JSON result, "" for none.
        against: an earlier result of the same benchmark, "" for none; the result then includes the paired difference
            to it.
        workers, timeout_s: see ``math_pool.verify_all``.
        teacher: the section ``teacher`` of a config: configures HealthBench's judge. No other benchmark uses it.
        seed: for the judge's requests.

    Raises:
        UserError: the benchmark is unknown, its data are missing, an answer belongs to no problem, or HealthBench has
            no judge.
    """
    loaded = load_benchmark(benchmark, data)
    before = results.read_result(against) if against else None
    how: dict[str, Any] = {"workers": workers, "timeout_s": timeout_s, "teacher": teacher, "seed": seed}
    result = grade_file(loaded, answers, out=out, **how)
    if before is not None:
        result = result.compared(before, against)
    if out:
        result.save(out)
    return result


def grade_file(
    loaded: Loaded,
    answers: str | os.PathLike[str],
    *,
    out: str = "",
    workers: int = 0,
    timeout_s: float = 5.0,
    teacher: Mapping[str, Any] | None = None,
    seed: int = 0,
    answers_file: str = "",
    **facts: Any,
) -> EvalResult:
    """Grades the answers in a file. Writes no result.

    Args:
        out: where the result will be written; the judge's tape goes next to it.
        answers_file: the file's name in the result, "" for its own.
        facts: kept in the result (``student``, ``sampling``, ...).
    """
    prompts = {p.id: p for p in loaded.prompts}
    rows = read_answers(answers, prompts)
    judge, at_once = None, 1
    if loaded.benchmark.grader == "healthbench":
        judge, at_once = _judge(teacher, seed, out)
        assert teacher is not None
        facts["grader"] = grader_facts(judge, role_of(teacher, "verifier")[0].provider)
    outcomes = grade_answers(
        loaded.benchmark, prompts, rows, workers=workers, timeout_s=timeout_s, teacher=judge, at_once=at_once,
        report=throttled("graded"),
    )  # fmt: skip
    if judge is not None:
        facts["calls"] = judge.metrics()
    data = results.make_result(loaded, rows, outcomes, answers_file=answers_file or str(answers), **facts)
    return EvalResult(data, tuple(rows))


def throttled(what: str) -> Callable[[int, int], None]:
    """A function that logs ``what 30 of 100``, at most every two seconds."""
    last = time.monotonic()

    def report(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > _REPORT_EVERY_S:
            last = time.monotonic()
            log.info("%s %d of %d", what, done, of)

    return report


def _judge(teacher: Mapping[str, Any] | None, seed: int, out: str) -> tuple[Teacher, int]:
    """(HealthBench's judge, the maximum number of requests in flight)."""
    if teacher is None or role_of(teacher, "verifier")[0].provider == "scripted":
        raise UserError(
            "HealthBench is graded by a model, which the scripted teacher is not; name one, e.g. "
            "--config.teacher.provider=openai --config.teacher.verifier.model=gpt-4.1-2025-04-14"
        )
    # where the tape goes, unless teacher.tape.path is set
    workdir = only_local(out, "--out").resolve().parent if out else None
    judge = build_teacher(teacher, seed=seed, needs=("verify",), workdir=workdir)
    return judge, 2 * teacher["concurrency"]
