"""``ropd grade``: stored answers against a benchmark, without a model. Imports no jax."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from ropd_jax.evaluation import results
from ropd_jax.evaluation.answers import read_answers
from ropd_jax.evaluation.benchmarks import Loaded, load_benchmark
from ropd_jax.evaluation.graders.healthbench import grader_facts
from ropd_jax.evaluation.grading import grade_answers
from ropd_jax.teacher import Teacher, build_teacher
from ropd_jax.teacher.build import role_of
from ropd_jax.types import UserError
from ropd_jax.workdir.metrics import write_atomic

log = logging.getLogger(__name__)
_SAY_EVERY_S = 2.0


def main(
    cfg: ConfigDict,
    *,
    benchmark: str,
    answers: str,
    data: str = "",
    out: str = "",
    against: str = "",
    workers: int = 0,
    timeout_s: float = 5.0,
) -> int:
    """Grade and show; returns the exit code 0.

    Args:
        cfg: its ``teacher`` is HealthBench's judge; of no account for any other benchmark.
        answers: JSONL of ``{"id", "response"}``.
        out: file of the JSON result, "" for none.
        against: an earlier result of the same benchmark, "" for none: the paired difference is shown.

    Raises:
        UserError: whatever of this the user can mend.
    """
    loaded = load_benchmark(benchmark, data)
    before = results.read_result(against) if against else None
    result = grade_file(cfg, loaded, answers, out=out, workers=workers, timeout_s=timeout_s)
    if before is not None:
        result["difference"] = {"against": against, **results.compare(before, result)}
    if out:
        write_atomic(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    results.show(result)
    return 0


def grade_file(
    cfg: ConfigDict,
    loaded: Loaded,
    answers: str | os.PathLike[str],
    *,
    out: str = "",
    workers: int = 0,
    timeout_s: float = 5.0,
    **more: Any,
) -> dict[str, Any]:
    """The result of the answers in a file; ``more`` is kept in it."""
    prompts = {p.id: p for p in loaded.prompts}
    rows = read_answers(answers, prompts)
    teacher = None
    if loaded.benchmark.grader == "healthbench":
        teacher = _judge(cfg, out)
        more["grader"] = grader_facts(teacher, role_of(cfg.teacher, "verifier")[0].provider)
    outcomes = grade_answers(
        loaded.benchmark, prompts, rows, workers=workers, timeout_s=timeout_s, teacher=teacher,
        at_once=2 * cfg.teacher.concurrency, say=sayer("graded"),
    )  # fmt: skip
    if teacher is not None:
        more["calls"] = teacher.metrics()
    return results.make_result(loaded, rows, outcomes, answers_file=str(answers), **more)


def sayer(what: str) -> Callable[[int, int], None]:
    """Says ``what 30 of 100`` at most every two seconds."""
    said = time.monotonic()

    def say(done: int, of: int) -> None:
        nonlocal said
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            log.info("%s %d of %d", what, done, of)

    return say


def _judge(cfg: ConfigDict, out: str) -> Teacher:
    if role_of(cfg.teacher, "verifier")[0].provider == "scripted":
        raise UserError(
            "HealthBench is graded by a model, and the scripted teacher is none; name one, e.g. "
            "--config.teacher.provider=openai --config.teacher.verifier.model=gpt-4.1-2025-04-14"
        )
    workdir = pathlib.Path(out).resolve().parent if out else None  # where the tape lies unless teacher.tape.path says
    return build_teacher(cfg.teacher, seed=cfg.seed, needs=("verify",), workdir=workdir)
