"""``ropd teach``: the references of all training prompts, asked for ahead of time and kept in an index.

1. the prompts      those that a run of the same config trains on
2. what is there    rows of the file, if it was asked in the same way; a torn last line is cut off
3. the rest         m samples a prompt; an answer equal to an earlier one is asked for again, ``EXTRA`` times at most
4. one row each     on the disk before the next: a kill loses what was in flight, and the same command goes on

Every answer is on a tape first, ``OUT.teacher/tape.sqlite`` unless ``teacher.tape.path`` names another; what was spent
stands in ``OUT.teacher/spent.json``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import pathlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ropd_jax.data.questions import load_questions
from ropd_jax.teacher import BudgetError, ConfigurationError, Tape, Teacher, TeacherError
from ropd_jax.teacher.build import Endpoint, reference_sources
from ropd_jax.teacher.clients.batch import BatchApi, open_batch
from ropd_jax.teacher.clients.client import ChatRequest
from ropd_jax.teacher.roles.references import Reference
from ropd_jax.teacher.tape.batch_jobs import ROLE, Ledger, Source, run_jobs
from ropd_jax.teacher.tape.client import open_tape
from ropd_jax.teacher.tape.reference_index import IndexRow, IndexWriter, prompt_hash
from ropd_jax.teacher.tape.store import body_key, request_body
from ropd_jax.types import Prompt, UserError
from ropd_jax.weights.student import find
from ropd_jax.weights.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

EXTRA = 2  # times that an equal answer is asked for again
_SAY_EVERY_S = 5.0


def main(cfg: ConfigDict, out: str | os.PathLike[str], *, batch: bool = False, poll_s: float = 30.0) -> int:
    """Collect what is missing in ``out``; returns the exit code: 0 once nothing is, 4 at a cap of ``teacher.budget``.

    Args:
        batch: through the provider's batch API; the jobs are on the tape. Equal answers, and what a job failed to
            answer, are asked for live.
        poll_s: seconds between two looks at the jobs.

    Raises:
        UserError: some prompts have no references yet, counted by cause (the others are written); a teacher that
            cannot work; a file that was asked in another way.
    """
    tokenizer = load_tokenizer(
        find(cfg.student.checkpoint, weights=False),
        chat_template=cfg.student.chat_template,
        enable_thinking=cfg.student.enable_thinking,
    )
    prompts = load_questions(cfg, tokenizer)[0].prompts
    with cfg.unlocked():
        cfg.teacher.index = ""
    if batch and cfg.teacher.tape.mode != "record":
        raise UserError(
            f"--batch keeps its jobs on the tape; expected teacher.tape.mode=record, not {cfg.teacher.tape.mode!r}"
        )
    room = pathlib.Path(f"{out}.teacher")
    room.mkdir(parents=True, exist_ok=True)
    answer_key = (
        [(p.question, p.solution) for p in prompts if p.solution] if not cfg.teacher.scripted.answer_key else None
    )
    teacher = Teacher.from_config(cfg, seed=cfg.seed, answer_key=answer_key, needs=("reference",), workdir=room)
    tape = open_tape(cfg.teacher.tape.mode, cfg.teacher.tape.path, room)
    with IndexWriter(out, fingerprint=fingerprint(cfg.teacher, teacher)) as writer:
        try:
            asyncio.run(_run(cfg.teacher, teacher, prompts, writer, tape, poll_s if batch else None))
        except BudgetError as error:
            log.error("stopped: %s", error)
            return 4
        finally:
            if tape is not None:
                tape.close()
    return 0


async def _run(
    teacher_cfg: ConfigDict,
    teacher: Teacher,
    prompts: Sequence[Prompt],
    writer: IndexWriter,
    tape: Tape | None,
    poll_s: float | None,
) -> None:
    m, stopped = teacher_cfg.references, None
    if tape is not None and teacher_cfg.tape.mode == "record":
        if (ledger := Ledger(tape)).jobs():
            teacher.budget.book(ROLE, ledger.spent())
        if poll_s is not None:
            stopped = await _batched(teacher_cfg, teacher, writer.index.lacking(prompts, m), tape, poll_s)
    if stopped is not None:  # nothing more is bought: only what jobs have answered is written
        prompts = [p for p in prompts if all(_on_tape(tape, *_asked(teacher_cfg, teacher, p, i)) for i in range(m))]
    await _collect_all(teacher, prompts, m, writer, at_once=teacher_cfg.concurrency)
    if stopped is not None:
        raise stopped


async def _batched(
    teacher_cfg: ConfigDict, teacher: Teacher, prompts: Sequence[Prompt], tape: Tape, poll_s: float
) -> BudgetError | None:
    """Bring what the batch APIs answer to the first m samples of each prompt onto the tape; what stopped it."""
    asked: dict[Endpoint, list[ChatRequest]] = {endpoint: [] for endpoint, _ in reference_sources(teacher_cfg)}
    for endpoint, role in reference_sources(teacher_cfg):
        where = (endpoint.provider, role.model, endpoint.base_url)
        teacher.budget.require_price("reference", *where, batch=True)
    for prompt in prompts:
        for i in range(teacher_cfg.references):
            endpoint, request = _asked(teacher_cfg, teacher, prompt, i)
            asked[endpoint].append(request)
    apis: dict[Endpoint, BatchApi] = {}
    try:
        for endpoint in asked:
            apis[endpoint] = open_batch(**dataclasses.asdict(endpoint), timeout_s=teacher_cfg.timeout_s)
        sources = [Source(endpoint, apis[endpoint], requests) for endpoint, requests in asked.items()]
        return await run_jobs(sources, tape, teacher.budget, prompts=teacher.prompt_shas, poll_s=poll_s)
    finally:
        for api in apis.values():
            await api.close()


def _asked(teacher_cfg: ConfigDict, teacher: Teacher, prompt: Prompt, i: int) -> tuple[Endpoint, ChatRequest]:
    """Whom reference ``i`` of the prompt is asked of, and how."""
    sources = reference_sources(teacher_cfg)
    return sources[i % len(sources)][0], teacher.reference_request(prompt, i)


def _on_tape(tape: Tape | None, endpoint: Endpoint, request: ChatRequest) -> bool:
    return tape is not None and tape.get(body_key(request_body(endpoint.provider, request))) is not None


def fingerprint(teacher_cfg: ConfigDict, teacher: Teacher) -> dict[str, Any]:
    """How the references are asked for: rows of another fingerprint do not go into the same file."""
    sources = reference_sources(teacher_cfg)
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
        known["models"] = known["model"]  # answer i is number i % n's
        known["model"] = ", ".join(known["model"])
    return known | {"prompt_template_version": teacher.template_id("reference"), "seed": teacher.seed}


async def collect(teacher: Teacher, prompt: Prompt, m: int) -> tuple[Reference, ...]:
    """``m`` references of one prompt; equal ones only where ``EXTRA`` more samples brought nothing new.

    Raises:
        TeacherError: the first failure; with fewer than ``m`` there is no row.
    """

    async def ask(indices: Sequence[int]) -> list[Reference]:
        jobs = [asyncio.ensure_future(teacher.reference_samples(prompt, [i])) for i in indices]
        try:
            return [sample for (sample,) in await asyncio.gather(*jobs)]
        finally:
            for job in jobs:
                job.cancel()

    samples = await ask(range(m))
    stride = math.lcm(m, len(teacher.sources))  # a sample's replacement comes from the same model, with another seed
    for extra in range(1, EXTRA + 1):
        again = _equal_ones(samples)
        if not again:
            break
        for i, sample in zip(again, await ask([i + extra * stride for i in again]), strict=True):
            samples[i] = sample
    return tuple(samples)


def _equal_ones(samples: Sequence[Reference]) -> list[int]:
    """The places of samples whose text stands at an earlier place as well."""
    texts = [s.text for s in samples]
    return [i for i, text in enumerate(texts) if text in texts[:i]]


async def _collect_all(
    teacher: Teacher, prompts: Sequence[Prompt], m: int, writer: IndexWriter, *, at_once: int
) -> None:
    wanted = writer.index.lacking(prompts, m)
    if few := [p.id for p in wanted if writer.index.find(p) is not None]:
        raise UserError(
            f"{writer.path} has fewer than teacher.references={m} references of {len(few)} prompts ({few[0]!r}, ...); "
            "it was made for a smaller number: choose another --out, or lower teacher.references"
        )
    log.info("%d prompts, %d with references in %s already", len(prompts), len(prompts) - len(wanted), writer.path)
    slots, failed, equal, done, said = asyncio.Semaphore(max(1, at_once)), Counter(), 0, 0, time.monotonic()
    how = writer.fingerprint

    async def one(prompt: Prompt) -> None:
        nonlocal equal, done, said
        async with slots:
            try:
                samples = await collect(teacher, prompt, m)
            except ConfigurationError:
                raise
            except TeacherError as error:
                failed[error.cause] += 1
                return
        writer.add(IndexRow(prompt.id, prompt_hash(prompt.messages), tuple(s.text for s in samples), how))
        equal += bool(_equal_ones(samples))
        done += 1
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            log.info("references of %d of %d prompts", done, len(wanted))

    tasks = [asyncio.ensure_future(one(p)) for p in wanted]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await teacher.close()
    if equal:
        log.warning(
            "%d of %d prompts have fewer than %d different references: the teacher repeats itself, as one at "
            "temperature 0 must; raise teacher.reference.temperature (it is %s) or name several models "
            "in teacher.references_from",
            equal, done, m, how["temperature"],
        )  # fmt: skip
    if failed:
        causes = ", ".join(f"{cause} {n}" for cause, n in failed.most_common())
        raise UserError(
            f"{failed.total()} of {len(prompts)} prompts have no references yet ({causes}); those of the others are in "
            f"{writer.path}. The same command asks for the rest"
        )
    log.info(
        "references of %d prompts in %s; use them with --config.teacher.index=%s", len(prompts), *[writer.path] * 2
    )
