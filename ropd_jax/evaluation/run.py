"""A student's answers to a benchmark: sampled by the engine, stored as they end, then graded.

    1. prepare         which weights (`subject`), which problems, which settings; nothing is loaded
    2. sample          answers.jsonl gets one line whenever an answer ends; the same call resumes after the stored lines
    3. grade           result.json is what ``ropd grade`` computes from that file: anyone can regrade the same answers

The random stream of a sample is a function of (seed, problem, sample), so an interrupted and resumed evaluation ends
with the same file as an uninterrupted one. With several hosts, all of them sample (one program over one mesh), and
host 0 writes and grades.

The KV cache is allocated as a whole before the first token, for as many rows as fit into the devices'
memory, so an evaluation that starts does not run out of memory at its longest answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ropd_jax.evaluation import results
from ropd_jax.evaluation.answers import append, missing, put_in_order
from ropd_jax.evaluation.benchmarks import Loaded, Sampling, load_benchmark, slug
from ropd_jax.evaluation.grade_file import grade_file
from ropd_jax.evaluation.grading import check_installed
from ropd_jax.evaluation.results import EvalResult
from ropd_jax.evaluation.subject import Subject, subject_of, weights_sha
from ropd_jax.parallel import hosts
from ropd_jax.sampling import capacity
from ropd_jax.sampling.engine import EngineConfig, sample_rollouts
from ropd_jax.sampling.rules import SamplingRule
from ropd_jax.types import Rollout, UserError
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.interrupt import Interrupt, Interrupted
from ropd_jax.utils.logs import show_logs
from ropd_jax.utils.paths import local_file, written
from ropd_jax.utils.text import clock
from ropd_jax.weights.student import Student
from ropd_jax.workdir.lock import FOLDER, locked

log = logging.getLogger(__name__)
FILES = ("settings.json", "answers.jsonl", "result.json", "tape.sqlite", "spent.json")

ROWS = 64  # decoded at once, unless the caller sets a number or fewer fit
_REPORT_EVERY_S = 10.0
_CHECK_EVERY = 16  # number of chunks between two checks whether any host was interrupted


def evaluate(
    student: Student | str | os.PathLike[str],
    benchmark: str,
    *,
    out: str | os.PathLike[str] | None = None,
    **how: Any,
) -> EvalResult:
    """Samples a student's answers to a benchmark and grades them.

    ::

        result = evaluate("smollm2", "reasoning_gym:chain_sum", k=2, limit=50, max_tokens=64)
        result.value            # Estimate: 0.310 [0.240, 0.390] n=50
        result.show()

    Args:
        student: a loaded `Student`, a run's directory, or a checkpoint by any name that `load_student` accepts.
        benchmark: a name in `benchmarks.BENCHMARKS`, or ``reasoning_gym:TASK[,key=value,...]``.
        out: the directory for answers and result. The same call with the same ``out`` resumes. "" means a
            directory named after the student and the benchmark. None keeps everything in memory.
        how: the other arguments of `prepare`: ``k``, ``temperature``, ``limit``, ``rows``, ``dtype`` and so on.

    Raises:
        UserError: as `prepare`; an answer does not fit into memory; there are several hosts, which must call
            `Evaluation.sample` on each and `Evaluation.grade` on host 0.
        Interrupted: Ctrl-C; the answers so far are in ``out``.
    """
    if hosts.count() > 1:
        raise UserError(
            "evaluate() runs on one host; on several use ropd eval, or evaluation = prepare(...), evaluation.sample() "
            "on each and evaluation.grade() on host 0"
        )
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out
        evaluation = prepare(student, benchmark, out=place, kept=out is not None, **how)
        evaluation.sample()
        return evaluation.grade()


def prepare(
    student: Student | str | os.PathLike[str],
    benchmark: str,
    *,
    out: str | os.PathLike[str],
    kept: bool = True,
    data: str = "",
    k: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    limit: int | None = None,
    template: str = "",
    thinking: bool | None = None,
    chat_template: str = "",
    pick: str = "last",
    rows: int | None = None,
    seed: int = 0,
    dtype: str = "",
    cache_dtype: str = "",
    fsdp: int | None = None,
    tp: int | None = None,
    against: str | os.PathLike[str] = "",
    teacher: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Checks an evaluation without loading anything. Collective: every host must call it.

    Args:
        student, benchmark, out: as for `evaluate`.
        kept: False if ``out`` is removed afterwards.
        data: a directory with the benchmark's rows, or ``hub`` (see ``data.reading.read_source``).
        k, temperature, top_p, max_tokens: None means the benchmark's own values, which are the paper's.
        limit: only the first ``limit`` problems.
        template: replaces the benchmark's own user message; it contains ``{question}``.
        thinking: mode of the chat template, if it has two (as for Qwen3); None means the run's or the template's own.
        chat_template: a Jinja file; "" means the run's or the checkpoint's own.
        pick: which checkpoint of a run, ``last`` or ``heldout`` (see `subject.choose_step`).
        rows: the most sequences that are decoded at once. None means 64, or what fits into memory.
        seed: for sampling.
        dtype: for compute, matrices and KV cache; "" means the run's own, or float32.
        cache_dtype: for the KV cache: float32, bfloat16 or int8; "" means ``dtype``.
        fsdp, tp: sizes of the device mesh; None means the run's own, or all devices and 1.
        against: an earlier result of the same benchmark; the result then has the paired difference to it.
        teacher: the section ``teacher`` of a config: configures HealthBench's judge. No other benchmark uses it.

    Raises:
        UserError: unknown student or benchmark, missing data, ``out`` holds answers made with other settings, a missing
            grader, settings that cannot work, or hosts with different settings.
    """
    show_logs()
    subject = subject_of(
        student, pick=pick, thinking=thinking, dtype=dtype, chat_template=chat_template, fsdp=fsdp, tp=tp
    )
    loaded = load_benchmark(benchmark, data, limit=limit, template=template)
    if hosts.index() == 0:
        check_installed(loaded.benchmark)
    given = {"k": k, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    sampling = _sampling(loaded.benchmark.sampling, given)
    engine = EngineConfig(
        rollouts=sampling.k,
        prompts=1,
        prompt_len=0,
        max_tokens=sampling.max_tokens,
        stop_ids=(),
        rule=SamplingRule(sampling.temperature, 0, sampling.top_p),
        dtype=subject.dtype,
        cache_dtype=cache_dtype,
        reserve=True,
    )
    facts = _facts(subject, loaded, sampling, seed, cache_dtype, chat_template)
    if isinstance(student, Student) and kept:
        facts["weights"] = weights_sha(student)  # its name does not identify the weights
    settings = {"benchmark": benchmark, "data": loaded.found.sha, **facts}
    hosts.check_same("the evaluation", settings | {"rows": rows, "mesh": (fsdp, tp)})
    before = (str(against), hosts.on_host0(lambda: results.read_result(against))) if against else None
    named = os.fspath(out) or _default_out(subject, slug(benchmark, thinking))
    upload = contextlib.ExitStack()

    def place() -> str:
        found = upload.enter_context(written(named, "--out", earlier=FILES))
        _claim(found, settings)
        return os.fspath(found)

    return Evaluation(subject, loaded, engine, facts, pathlib.Path(hosts.on_host0(place)), named.rstrip("/"), upload,
                      kept=kept, rows=rows, seed=seed, teacher=teacher, before=before)  # fmt: skip


def _facts(
    subject: Subject, loaded: Loaded, sampling: Sampling, seed: int, cache_dtype: str, chat_template: str
) -> dict[str, Any]:
    """The settings that determine the answers; the last two only if they differ from the student's own."""
    facts: dict[str, Any] = {
        "student": subject.name,
        "checkpoint": subject.checkpoint,
        "template": loaded.benchmark.template,
        "sampling": dataclasses.asdict(sampling),
        "seed": seed,
        "thinking": subject.thinking,
        "dtype": subject.dtype,
    }
    if cache_dtype and cache_dtype != subject.dtype:
        facts["cache_dtype"] = cache_dtype
    if chat_template:
        facts["chat_template"] = _file_sha(chat_template)
    return facts


@dataclasses.dataclass
class Evaluation:
    """A checked evaluation. Nothing is loaded yet.

    Attributes:
        engine: settings for sampling; `sample` adds what depends on tokenizer, mesh and memory.
        facts: the settings that the result keeps.
        place: directory of answers and result on host 0; ``kept`` is True if it stays.
        named: the directory as the user named it, possibly a bucket URL; ``upload`` is closed when it is complete.
        rows: the most sequences that are decoded at once, or None.
        before: (file, contents) of an earlier result to compare with.
    """

    subject: Subject
    loaded: Loaded
    engine: EngineConfig
    facts: dict[str, Any]
    place: pathlib.Path
    named: str
    upload: contextlib.ExitStack
    kept: bool
    rows: int | None
    seed: int
    teacher: Mapping[str, Any] | None
    before: tuple[str, dict[str, Any]] | None

    @property
    def answers(self) -> pathlib.Path:
        return self.place / "answers.jsonl"

    def sample(self) -> None:
        """Samples the answers that the file lacks. Loads nothing if none are missing.

        Collective: every host must call it.

        Raises:
            UserError: prompts and answers are longer than the student supports, or do not fit into memory; or another
                process is writing to the directory.
            Interrupted: Ctrl-C or SIGTERM on any host; the answers so far are in the file.
        """
        with contextlib.ExitStack() as stack:

            def lock() -> None:
                if self.kept:
                    stack.enter_context(locked(self.named, "--out"))

            hosts.on_host0(lock)
            try:
                self._sample()
            except BaseException:
                self.upload.close()
                raise

    def _sample(self) -> None:
        prompts, k = self.loaded.prompts, self.engine.rollouts
        todo = hosts.on_host0(lambda: missing(self.answers, prompts, k))
        self.facts["device"] = jax.devices()[0].device_kind
        if not todo:
            log.info("%s already has all %d answers", self.named, len(prompts) * k)
            return
        mesh = self.subject.mesh()
        student = self.subject.load(mesh)
        tokens = [np.asarray(student.tokenizer.apply_chat_template(p.messages), np.int32) for p in prompts]
        engine = self._complete(student, mesh, max(map(len, tokens)))
        of = sum(map(len, todo.values()))
        log.info("%s: %d answers to %d problems, of at most %d tokens, %d at once", self.loaded.benchmark.title, of,
                 len(todo), engine.max_tokens, engine.rows)  # fmt: skip
        progress = _Progress({i: len(absent) for i, absent in todo.items()}, engine.max_tokens)
        interrupt = Interrupt(hosts.any_host)
        limits = [[engine.max_tokens if n in absent else 0 for n in range(k)] for absent in todo.values()]
        try:
            with interrupt.listening(), jax.set_mesh(mesh):
                ended = sample_rollouts(
                    student.cfg, engine, student.params, student.tokenizer, [prompts[i] for i in todo],
                    [tokens[i] for i in todo], seed=self.seed, step=0, limits=limits,
                    between=_between(progress, interrupt),
                )  # fmt: skip
                self._write(((list(todo)[i], n, rollout) for i, n, rollout in ended), progress)
        except Interrupted:
            if self.kept:
                log.warning("stopped; the answers so far are in %s. Run the same command to resume", self.named)
            raise
        hosts.on_host0(lambda: put_in_order(self.answers, prompts, k))

    def _write(self, ended: Iterable[tuple[int, int, Rollout]], progress: _Progress) -> None:
        with self.answers.open("a", encoding="utf-8") if hosts.index() == 0 else contextlib.nullcontext() as file:
            for i, n, rollout in ended:
                if file is not None:
                    append(file, self.loaded.prompts[i], n, rollout)
                progress.answered(i)

    def _complete(self, student: Student, mesh: jax.sharding.Mesh, longest: int) -> EngineConfig:
        """The engine with the padded length of the prompts and as many of the requested rows as fit."""
        prompt_len, most = -(-longest // 16) * 16, student.cfg.max_seq_len
        if prompt_len + self.engine.max_tokens > most:
            raise UserError(
                f"prompts of {prompt_len} tokens and answers of {self.engine.max_tokens} make more than the {most} "
                f"that the student supports; use --max_tokens {most - prompt_len} or less"
            )
        shards = mesh.shape["fsdp"]
        engine = dataclasses.replace(self.engine, prompt_len=prompt_len, stop_ids=student.tokenizer.stop_ids)
        found = hosts.exchange(capacity.free_bytes(mesh))
        known = [free for free in found if free is not None]
        wanted = self.rows or max(ROWS // shards, 1) * shards
        if known:
            engine = capacity.choose_copy(student.cfg, engine, mesh, min(known), wanted, asked=bool(self.rows))
        rows = self._fitting(student, engine, mesh, min(known), wanted) if known else wanted
        return capacity.with_rows(engine, rows, shards)

    def _fitting(
        self, student: Student, engine: EngineConfig, mesh: jax.sharding.Mesh, free: float, wanted: int
    ) -> int:
        """``wanted`` rows, or as many as fit if the user gave no number."""
        if capacity.fits(student.cfg, engine, mesh, free, wanted):
            return wanted
        rows = capacity.most_rows(student.cfg, engine, mesh, free, wanted)
        if rows and self.rows is None:
            return rows
        more = [] if engine.cache_dtype == "int8" else ["--config.sampling.cache_dtype=int8"]
        more += ["a larger --config.mesh.tp", "fewer --max_tokens"]
        asked = f"--rows={self.rows}" if self.rows else "one row for each part of the mesh"
        raise UserError(
            f"{asked} with answers of {engine.max_tokens} tokens do not fit into the {free / 1e9:.1f} GB free "
            f"on each device; use {f'--rows {rows}, ' if rows else ''}{' or '.join(more)}"
        )

    def grade(self) -> EvalResult:
        """Grades the answers and stores the result.

        With several hosts, only host 0 calls it; call `hosts.joined` first if grading can take long.
        """
        file = str(self.place / "result.json") if self.kept else ""
        shown = f"{self.named}/answers.jsonl" if self.kept else "in memory"
        with self.upload:
            result = grade_file(
                self.loaded, self.answers, teacher=self.teacher, out=file, answers_file=shown, **self.facts
            )
            if self.before is not None:
                result = result.compared(self.before[1], self.before[0])
            if file:
                result.save(file)
        return result


class _Progress:
    """Logs the progress of an evaluation every ten seconds, on host 0."""

    def __init__(self, todo: Mapping[int, int], most: int):
        """``todo``: the number of answers each problem lacks; ``most``: maximum tokens per answer."""
        self._todo, self._of, self._most = dict(todo), sum(todo.values()), most
        self._done, self._tokens = 0, 0
        self._begin = self._reported = time.monotonic()

    def answered(self, problem: int) -> None:
        self._done += 1
        self._todo[problem] -= 1
        if self._done == self._of:
            self._report()

    def sampled(self, tokens: int) -> None:
        self._tokens += tokens
        if time.monotonic() - self._reported > _REPORT_EVERY_S:
            self._report()

    def _report(self) -> None:
        self._reported = time.monotonic()
        if hosts.index():
            return
        spent = max(self._reported - self._begin, 1e-9)
        whole = sum(not n for n in self._todo.values())
        log.info("answered %d of %d problems (%d of %d answers) in %s  tok/s %.0f  %s", whole, len(self._todo),
                 self._done, self._of, clock(spent), self._tokens / spent, self.left(spent))  # fmt: skip

    def left(self, spent: float) -> str:
        """The time left, estimated from the answers so far, and at most as if all others had the maximum length.

        Answers per second are tokens per second over the mean length that the tokens so far (unfinished answers
        included) suggest, if answers end by chance: 10 of 100 answers in 60 s leave 9 minutes.
        """
        most = (self._of - self._done) * self._most / max(self._tokens, 1) * spent
        if not self._done:
            return f"at most {clock(most)} left"
        return f"{clock(min(most, spent / self._done * (self._of - self._done)))} left"


def _between(progress: _Progress, interrupt: Interrupt) -> Callable[[int], None]:
    """Called between two chunks: reports progress and regularly checks whether to stop."""
    every, chunks = (_CHECK_EVERY if hosts.count() > 1 else 1), 0

    def between(tokens: int) -> None:
        nonlocal chunks
        chunks += 1
        progress.sampled(tokens)
        if chunks % every == 0:  # the same chunk on all hosts
            interrupt.check()

    return between


# ------------------------------------------------------------------------------------------------------- settings


def _sampling(own: Sampling, given: Mapping[str, Any]) -> Sampling:
    sampling = dataclasses.replace(own, **{name: value for name, value in given.items() if value is not None})
    if sampling.k > 1 and sampling.temperature == 0:
        raise UserError(f"--k={sampling.k} at temperature 0 gives the same answer {sampling.k} times; use --k 1")
    return sampling


def _file_sha(path: str) -> str:
    """Hash of a file's bytes, 12 hex digits; "" if it cannot be read, which loading reports later."""
    try:
        return hashlib.sha256(local_file(path).read_bytes()).hexdigest()[:12]
    except OSError:
        return ""


def _default_out(subject: Subject, name: str) -> str:
    if subject.checkpoint is not None:
        return f"{subject.name.rstrip('/')}/eval/{name}_step{subject.checkpoint['step']}"
    return f"evals/{pathlib.PurePath(subject.name).name}/{name}"


def _claim(out: pathlib.Path, settings: dict[str, Any]) -> None:
    """Claims the directory for these settings, or checks that it belongs to them.

    Raises:
        UserError: the directory belongs to other settings, holds something else, or cannot be written.
    """
    path = out / "settings.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if path.exists() and (out / "answers.jsonl").exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(settings))
            if changed := [k for k in {**now, **there} if there.get(k) != now.get(k)]:
                shown = "; ".join(f"{k}: {there.get(k)} there, {now.get(k)} now" for k in changed)
                raise UserError(f"{out} holds answers made with other settings ({shown}); choose another --out")
        elif any(p.name != FOLDER for p in out.iterdir()) and not path.exists():
            raise UserError(f"--out {out} is not empty and does not hold an evaluation; choose another directory")
        else:
            write_atomic(path, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}; choose a directory that can be written") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); choose another --out") from error
