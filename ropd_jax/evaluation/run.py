"""A student's answers to a benchmark: sampled by the engine, stored as they come, then graded.

    1. which weights   a checkpoint by name, a run's, or a loaded student (`subject`)
    2. answers.jsonl   k lines per problem, written when its last sample has ended; the same call continues after them
    3. result.json     what ``ropd grade`` makes of that file: anyone can grade the same answers again

The random stream of a sample is a function of (seed, problem, sample), so an interrupted evaluation ends with the same
answers as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ropd_jax.evaluation import results
from ropd_jax.evaluation.answers import by_problem, read_answers
from ropd_jax.evaluation.benchmarks import Loaded, Sampling, load_benchmark, slug
from ropd_jax.evaluation.grade_file import grade_file
from ropd_jax.evaluation.grading import check_installed
from ropd_jax.evaluation.results import EvalResult
from ropd_jax.evaluation.subject import Subject, subject_of, weights_sha
from ropd_jax.sampling.engine import EngineConfig, sample_groups
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Prompt, RolloutGroup, UserError
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.interrupt import Interrupt, Interrupted
from ropd_jax.utils.logs import show_logs
from ropd_jax.utils.paths import written
from ropd_jax.utils.text import clock
from ropd_jax.weights.student import Student

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 10.0


def evaluate(
    student: Student | str | os.PathLike[str],
    benchmark: str,
    *,
    data: str = "",
    k: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    limit: int | None = None,
    template: str = "",
    thinking: bool | None = None,
    pick: str = "last",
    rows: int = 64,
    seed: int = 0,
    dtype: str = "",
    out: str | os.PathLike[str] | None = None,
    against: str | os.PathLike[str] = "",
    teacher: Mapping[str, Any] | None = None,
) -> EvalResult:
    """Samples a student's answers to a benchmark and grades them.

    ::

        result = evaluate("smollm2", "reasoning_gym:chain_sum", k=2, limit=50, max_tokens=64)
        result.value            # Estimate: 0.310 [0.240, 0.390] n=50
        result.show()

    Args:
        student: a loaded `Student`, a run's directory, or a checkpoint by any name that `load_student` accepts.
        benchmark: a name in `benchmarks.BENCHMARKS`, or ``reasoning_gym:TASK[,key=value,...]``.
        data: a directory with the benchmark's rows, or ``hub`` (see ``data.reading.read_source``).
        k, temperature, top_p, max_tokens: None means the benchmark's own, which are the paper's.
        limit: only the first ``limit`` problems.
        template: replaces the benchmark's own user message; it contains ``{question}``.
        thinking: mode of the chat template, if it has two (Qwen3); None means the run's or the template's own.
        pick: which checkpoint of a run, ``last`` or ``heldout`` (see `subject.choose_step`).
        rows: sequences that are decoded at once; k of them belong to one problem.
        seed: of the samples.
        dtype: of compute and KV cache; "" means the run's own, or float32.
        out: the directory for answers and result. The same call with the same ``out`` continues. "" means a
            directory named after student and benchmark. None keeps everything in memory.
        against: an earlier result of the same benchmark; the result then has the paired difference to it.
        teacher: the section ``teacher`` of a config: HealthBench's judge. No other benchmark uses it.

    Raises:
        UserError: unknown student or benchmark, no data, answers of other settings in ``out``, a missing grader.
        Interrupted: Ctrl-C; the answers so far are in ``out``.
    """
    show_logs()
    subject = subject_of(student, pick=pick, thinking=thinking, dtype=dtype)
    loaded = load_benchmark(benchmark, data, limit=limit, template=template)
    check_installed(loaded.benchmark)
    before = results.read_result(against) if against else None
    given = {"k": k, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    sampling = _sampling(loaded.benchmark.sampling, given)
    facts: dict[str, Any] = {
        "student": subject.name,
        "checkpoint": subject.checkpoint,
        "template": loaded.benchmark.template,
        "sampling": dataclasses.asdict(sampling),
        "seed": seed,
        "thinking": subject.thinking,
        "dtype": subject.dtype,
    }
    if isinstance(student, Student) and out is not None:
        facts["weights"] = weights_sha(student)  # its name does not tell whose answers are there
    with contextlib.ExitStack() as stack:
        if out is None:
            place = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            named = out if str(out) else _default_out(subject, slug(benchmark, thinking))
            earlier = ("settings.json", "answers.jsonl", "result.json", "tape.sqlite", "spent.json")
            place = stack.enter_context(written(named, "--out", earlier=earlier))
        _claim(place, {"benchmark": benchmark, "data": loaded.found.sha, **facts})
        answers = place / "answers.jsonl"
        _sample(subject, loaded, sampling, answers, rows=rows, seed=seed, kept=out is not None)
        file = "" if out is None else str(place / "result.json")
        shown = "in memory" if out is None else f"{os.fspath(named).rstrip('/')}/answers.jsonl"
        facts["device"] = jax.devices()[0].device_kind
        result = grade_file(loaded, answers, teacher=teacher, out=file, answers_file=shown, **facts)
        if before is not None:
            result = result.compared(before, str(against))
        if file:
            result.save(file)
    return result


# ---------------------------------------------------------------------------------------------------- the answers


def _sample(
    subject: Subject, loaded: Loaded, sampling: Sampling, path: pathlib.Path, *, rows: int, seed: int, kept: bool
) -> None:
    """Samples what ``path`` lacks; nothing is loaded if it has all answers."""
    todo = remaining(path, loaded.prompts, sampling.k)
    if not todo:
        log.info("%s has all %d answers already", path, len(loaded.prompts) * sampling.k)
        return
    mesh = subject.mesh()
    student = subject.load(mesh)
    tokens = {p.id: np.asarray(student.tokenizer.apply_chat_template(p.messages), np.int32) for p in loaded.prompts}
    prompt_len = -(-max(map(len, tokens.values())) // 16) * 16
    if prompt_len + sampling.max_tokens > student.cfg.max_seq_len:
        raise UserError(
            f"prompts of {prompt_len} tokens and answers of {sampling.max_tokens} make more than the "
            f"{student.cfg.max_seq_len} that the student was made for; give --max_tokens "
            f"{student.cfg.max_seq_len - prompt_len} or less"
        )
    shards = mesh.shape["fsdp"]
    engine = EngineConfig(
        rollouts=sampling.k,
        prompts=-(-max(1, rows // sampling.k) // shards) * shards,
        prompt_len=prompt_len,
        max_tokens=sampling.max_tokens,
        stop_ids=student.tokenizer.stop_ids,
        rule=SamplingRule(sampling.temperature, 0, sampling.top_p),
        dtype=subject.dtype,
    )
    log.info("%s: %d problems x %d answers of at most %d tokens, %d at once", loaded.benchmark.title, len(todo),
             sampling.k, sampling.max_tokens, engine.prompts * sampling.k)  # fmt: skip
    interrupt = Interrupt()
    try:
        with interrupt.listening(), jax.set_mesh(mesh):
            groups = sample_groups(
                student.cfg, engine, student.params, student.tokenizer, todo, [tokens[p.id] for p in todo],
                seed=seed, step=0,
            )  # fmt: skip
            _write(path, groups, len(todo), interrupt)
    except Interrupted:
        if kept:
            log.warning("stopped; the answers so far are in %s. The same command continues", path)
        raise


def remaining(path: pathlib.Path, prompts: Sequence[Prompt], k: int) -> list[Prompt]:
    """The problems without k answers in the file; what a kill has left half written is cut off."""
    if not path.exists():
        return list(prompts)
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    write_atomic(path, whole[:end].decode("utf-8"))
    if not end:
        return list(prompts)
    answers = read_answers(path, {p.id: p for p in prompts})
    places = by_problem(answers)
    done = {i for i, at in places.items() if len(at) == k}
    if len(done) < len(places):
        lines = whole[:end].decode("utf-8").split("\n")[:-1]
        write_atomic(path, "".join(f"{lines[n]}\n" for i in done for n in places[i]))
    return [p for p in prompts if p.id not in done]


def answer_lines(group: RolloutGroup) -> str:
    """One line per sample, in the format that ``ropd grade`` reads."""
    rows = (
        {"id": group.prompt.id, "sample": n, "response": r.text, "finish_reason": r.finish_reason,
         "tokens": len(r.tokens_T)}
        for n, r in enumerate(group.rollouts)
    )  # fmt: skip
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def _write(path: pathlib.Path, groups: Iterable[RolloutGroup], of: int, interrupt: Interrupt) -> None:
    begin = reported = time.monotonic()
    tokens = 0
    with path.open("a", encoding="utf-8") as file:
        for done, group in enumerate(groups, 1):
            file.write(answer_lines(group))
            file.flush()
            os.fsync(file.fileno())
            tokens += sum(len(r.tokens_T) for r in group.rollouts)
            now = time.monotonic()
            if now - reported > _REPORT_EVERY_S or done == of:
                reported = now
                left = (now - begin) / done * (of - done)
                rate, spent = tokens / (now - begin), clock(now - begin)
                log.info("answered %d of %d problems in %s  tok/s %.0f  %s left", done, of, spent, rate, clock(left))
            interrupt.check()


# ------------------------------------------------------------------------------------------------------- settings


def _sampling(own: Sampling, given: Mapping[str, Any]) -> Sampling:
    sampling = dataclasses.replace(own, **{name: value for name, value in given.items() if value is not None})
    if sampling.k > 1 and sampling.temperature == 0:
        raise UserError(f"--k={sampling.k} at temperature 0 gives one answer {sampling.k} times; give --k 1")
    return sampling


def _default_out(subject: Subject, name: str) -> str:
    if subject.checkpoint is not None:
        return f"{subject.name.rstrip('/')}/eval/{name}_step{subject.checkpoint['step']}"
    return f"evals/{pathlib.PurePath(subject.name).name}/{name}"


def _claim(out: pathlib.Path, settings: dict[str, Any]) -> None:
    """Makes the directory these settings' own, or checks that it is.

    Raises:
        UserError: it belongs to other settings, holds something else, or cannot be written.
    """
    path = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists() and (out / "answers.jsonl").exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(settings))
            if changed := [k for k in now if there.get(k) != now[k]]:
                shown = "; ".join(f"{k}: {there.get(k)} there, {now[k]} now" for k in changed)
                raise UserError(f"{out} holds answers of other settings ({shown}); choose another --out")
        elif any(out.iterdir()) and not path.exists():
            raise UserError(f"--out {out} is not empty and holds no evaluation; choose another directory")
        else:
            write_atomic(path, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose a directory that can be written") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); choose another --out") from error
