"""Collects the references of many prompts ahead of time, live or by batch jobs, into an index file.

1. existing rows   kept if their references were requested with the same settings; a torn last line is removed
2. the rest        m samples per prompt; an answer equal to an earlier one is requested again, at most ``EXTRA`` times
3. one row each    each row is on disk before the next, so a kill loses only requests in flight; run again to continue

The samples of one prompt, m = 4 (numbers are sample indices, letters are texts)::

    0: a   1: a   2: b   3: a      1 and 3 repeat sample 0
           5: c          7: a      requested again with index + 4; 7 repeats sample 0
                        11: d      requested again with index + 8
    row: a c b d

With n models, the index grows by lcm(m, n), so that a replacement comes from the same model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ropd_jax.teacher.build import Sources
from ropd_jax.teacher.clients.batch import BatchApi, open_batch
from ropd_jax.teacher.clients.chat import ChatRequest
from ropd_jax.teacher.clients.endpoint import Endpoint
from ropd_jax.teacher.clients.errors import BudgetError, ConfigurationError, TeacherError
from ropd_jax.teacher.roles.references import Reference
from ropd_jax.teacher.tape.batch_jobs import ROLE, Ledger, Source, run_jobs
from ropd_jax.teacher.tape.reference_index import IndexRow, IndexWriter, prompt_hash
from ropd_jax.teacher.tape.store import Tape, body_key, request_body
from ropd_jax.teacher.teacher import Teacher
from ropd_jax.teacher.traffic.budget import Budget
from ropd_jax.types import Prompt, UserError

log = logging.getLogger(__name__)

EXTRA = 2  # how often an answer equal to an earlier one is requested again
_REPORT_EVERY_S = 5.0


@dataclasses.dataclass(frozen=True)
class _Batch:
    """How batch jobs are polled; see the arguments of ``collect_references``."""

    poll_s: float
    timeout_s: float
    live_fallback: bool


def collect_references(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    out: str | os.PathLike[str],
    *,
    sources: Sources,
    at_once: int,
    batch: bool = False,
    poll_s: float = 30.0,
    timeout_s: float = 120.0,
    live_fallback: bool = False,
) -> None:
    """Collects the references that ``out`` lacks, then closes the teacher.

    Args:
        teacher: a teacher without an index. With a tape in mode ``record``, the jobs of earlier calls count toward its
            budget.
        prompts: the prompts that need references.
        out: the index file; created or extended.
        sources: where the references come from, see `build.reference_sources`.
        at_once: maximum number of prompts in flight.
        batch: use the providers' batch APIs, with the jobs on the teacher's tape. Replacements for equal answers, and
            the few requests that a job failed to answer, are sent live.
        poll_s: seconds between two polls of the jobs.
        timeout_s: time limit for one HTTP exchange with a batch API.
        live_fallback: also send the requests of a failed job live, at the full price.

    Raises:
        BudgetError: a cap is reached. The references so far are in ``out``.
        UserError: some prompts have no references yet, counted by cause (the others are written); the references in
            ``out`` were requested with other settings; a batch job failed, without ``live_fallback``.
    """
    with IndexWriter(out, fingerprint=fingerprint(teacher, sources)) as writer:
        try:
            how = _Batch(poll_s, timeout_s, live_fallback) if batch else None
            asyncio.run(_run(teacher, prompts, writer, sources, at_once, how))
        finally:
            if teacher.tape is not None:
                teacher.tape.close()


def fingerprint(teacher: Teacher, sources: Sources) -> dict[str, Any]:
    """The settings of the references. Rows with another fingerprint do not go into the same file."""
    known: dict[str, Any] = {
        "provider": [e.provider for e, _ in sources],
        "base_url": [e.address for e, _ in sources],
        "model": [r.model for _, r in sources],
        "temperature": [r.temperature for _, r in sources],
        "max_output_tokens": [r.max_output_tokens for _, r in sources],
    }
    if len(sources) == 1:
        known = {name: values[0] for name, values in known.items()}
    else:
        known["models"] = known["model"]  # answer i comes from number i % n
        known["model"] = ", ".join(known["model"])
    if any(r.extra for _, r in sources):  # absent otherwise, as in files of earlier versions
        known["extra"] = [dict(r.extra) for _, r in sources] if len(sources) > 1 else dict(sources[0][1].extra)
    return known | {"prompt_template_version": teacher.template_id("reference"), "seed": teacher.seed}


async def collect_one(teacher: Teacher, prompt: Prompt, m: int) -> tuple[Reference, ...]:
    """``m`` references for one prompt, with equal ones only if ``EXTRA`` more samples were equal too.

    Raises:
        TeacherError: the first failure; a prompt with fewer than ``m`` references gets no row.
    """

    async def ask(indices: Sequence[int]) -> list[Reference]:
        jobs = [asyncio.ensure_future(teacher.reference_samples(prompt, [i])) for i in indices]
        try:
            return [sample for (sample,) in await asyncio.gather(*jobs)]
        finally:
            for job in jobs:  # after a failure, the others would be paid for but not used
                job.cancel()

    samples = await ask(range(m))
    stride = math.lcm(m, len(teacher.sources))
    for extra in range(1, EXTRA + 1):
        repeated = _equal_ones(samples)
        if not repeated:
            break
        for i, sample in zip(repeated, await ask([i + extra * stride for i in repeated]), strict=True):
            samples[i] = sample
    return tuple(samples)


def _equal_ones(samples: Sequence[Reference]) -> list[int]:
    """The indices of samples whose text equals that of an earlier one."""
    texts = [s.text for s in samples]
    return [i for i, text in enumerate(texts) if text in texts[:i]]


async def _run(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    writer: IndexWriter,
    sources: Sources,
    at_once: int,
    batch: _Batch | None,
) -> None:
    m, tape, budget, stopped = teacher.references_m, teacher.tape, teacher.budget, None
    if tape is not None and budget is not None and not tape.read_only and not teacher.refreshes:
        if (ledger := Ledger(tape)).jobs():
            budget.set_spent(ROLE, ledger.spent())
        if batch is not None:
            lacking = writer.index.lacking(prompts, m)
            stopped = await _batched(teacher, lacking, sources, tape, budget, batch)
        if stopped is not None:  # nothing more is bought: write only what jobs have answered
            prompts = [p for p in prompts if all(_on_tape(tape, *_asked(teacher, sources, p, i)) for i in range(m))]
    await _collect_all(teacher, prompts, writer, at_once=at_once)
    if stopped is not None:
        raise stopped


# --------------------------------------------------------------------------------------------------------- batch


async def _batched(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    sources: Sources,
    tape: Tape,
    budget: Budget,
    how: _Batch,
) -> BudgetError | None:
    """Puts the batch APIs' answers to the first m samples of each prompt on the tape.

    Returns:
        The budget error that stopped it, or None.
    """
    asked: dict[Endpoint, list[ChatRequest]] = {endpoint: [] for endpoint, _ in sources}
    for endpoint, role in sources:
        budget.require_price("reference", endpoint.provider, role.model, endpoint.base_url, batch=True)
    for prompt in prompts:
        for i in range(teacher.references_m):
            endpoint, request = _asked(teacher, sources, prompt, i)
            asked[endpoint].append(request)
    apis: dict[Endpoint, BatchApi] = {}
    try:
        for endpoint in asked:
            apis[endpoint] = open_batch(**dataclasses.asdict(endpoint), timeout_s=how.timeout_s)
        jobs = [Source(endpoint, apis[endpoint], requests) for endpoint, requests in asked.items()]
        return await run_jobs(
            jobs, tape, budget, prompts=teacher.prompt_shas, poll_s=how.poll_s, live_fallback=how.live_fallback
        )
    finally:
        for api in apis.values():
            await api.close()


def _asked(teacher: Teacher, sources: Sources, prompt: Prompt, i: int) -> tuple[Endpoint, ChatRequest]:
    """The endpoint and the request of reference ``i`` of a prompt."""
    return sources[i % len(sources)][0], teacher.reference_request(prompt, i)


def _on_tape(tape: Tape, endpoint: Endpoint, request: ChatRequest) -> bool:
    return tape.get(body_key(request_body(endpoint.provider, request))) is not None


# ---------------------------------------------------------------------------------------------------------- live


@dataclasses.dataclass
class _Progress:
    wanted: int
    done: int = 0
    with_equal: int = 0  # prompts with fewer than m different references
    failed: Counter[str] = dataclasses.field(default_factory=Counter)  # prompts by the cause of their failure
    reported: float = dataclasses.field(default_factory=time.monotonic)

    def report(self) -> None:
        """Logs the progress, at most once per ``_REPORT_EVERY_S`` seconds."""
        if time.monotonic() - self.reported > _REPORT_EVERY_S:
            self.reported = time.monotonic()
            log.info("references for %d of %d prompts", self.done, self.wanted)


async def _collect_all(teacher: Teacher, prompts: Sequence[Prompt], writer: IndexWriter, *, at_once: int) -> None:
    m = teacher.references_m
    wanted = writer.index.lacking(prompts, m)
    if few := [p.id for p in wanted if writer.index.find(p) is not None]:
        raise UserError(
            f"{writer.path} has fewer than teacher.references={m} references for {len(few)} prompts ({few[0]!r}, ...); "
            "it was made with a smaller number: choose another --out, or lower teacher.references"
        )
    log.info("%d prompts, %d already with references in %s", len(prompts), len(prompts) - len(wanted), writer.path)
    slots, progress = asyncio.Semaphore(max(1, at_once)), _Progress(len(wanted))

    async def one(prompt: Prompt) -> None:
        async with slots:
            try:
                samples = await collect_one(teacher, prompt, m)
            except ConfigurationError:
                raise
            except TeacherError as error:
                progress.failed[error.cause] += 1
                return
        texts = tuple(s.text for s in samples)
        writer.add(IndexRow(prompt.id, prompt_hash(prompt.messages), texts, writer.fingerprint))
        progress.with_equal += bool(_equal_ones(samples))
        progress.done += 1
        progress.report()

    tasks = [asyncio.ensure_future(one(p)) for p in wanted]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await teacher.close()
    _log_result(progress, writer, prompts, m)


def _log_result(progress: _Progress, writer: IndexWriter, prompts: Sequence[Prompt], m: int) -> None:
    """Logs the result, with a warning about equal references.

    Raises:
        UserError: some prompts have no references.
    """
    if progress.with_equal:
        log.warning(
            "%d of %d prompts have fewer than %d different references. The teacher repeats its answers, as every model "
            "does at temperature 0: raise teacher.reference.temperature (it is %s) or name several models in "
            "teacher.references_from",
            progress.with_equal, progress.done, m, writer.fingerprint["temperature"],
        )  # fmt: skip
    if progress.failed:
        causes = ", ".join(f"{cause} {n}" for cause, n in progress.failed.most_common())
        raise UserError(
            f"{progress.failed.total()} of {len(prompts)} prompts have no references yet ({causes}); the references "
            f"for the others are in {writer.path}. Run the same command to get the rest"
        )
    log.info(
        "references for %d prompts in %s; use them with --config.teacher.index=%s", len(prompts), *[writer.path] * 2
    )
