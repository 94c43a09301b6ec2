"""``ropd teach``: the references of all training prompts, asked for ahead of time and kept in an index.

1. the prompts      those that a run of the same config trains on
2. what is there    rows of the file, if it was asked in the same way; a torn last line is cut off
3. the rest         m samples a prompt; an answer equal to an earlier one is asked for again, ``EXTRA`` times at most
4. one row each     on the disk before the next: a kill loses what was in flight, and the same command goes on
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

from ml_collections import ConfigDict

from ropd_jax.data.questions import load_questions
from ropd_jax.student import find
from ropd_jax.teacher import ConfigurationError, Teacher, TeacherError
from ropd_jax.teacher.batch import BatchApi, Jobs, Prefetched, Replies, open_batch, run_jobs
from ropd_jax.teacher.build import reference_sources
from ropd_jax.teacher.index import IndexRow, IndexWriter, prompt_hash
from ropd_jax.teacher.references import Reference
from ropd_jax.text.tokenizer import load_tokenizer
from ropd_jax.types import Prompt, UserError

log = logging.getLogger(__name__)

EXTRA = 2  # times that an equal answer is asked for again
_SAY_EVERY_S = 5.0


def main(cfg: ConfigDict, out: str | os.PathLike[str], *, batch: bool = False, poll_s: float = 30.0) -> int:
    """Collect what is missing in ``out``; returns the exit code 0 once nothing is.

    Args:
        batch: through the provider's batch API; the jobs' ids lie beside ``out``. Equal answers, and what a job failed
            to answer, are asked for live.
        poll_s: seconds between two looks at the jobs.

    Raises:
        UserError: some prompts have no references yet, counted by cause (the others are written); a teacher that
            cannot work; a file that was asked in another way.
    """
    tokenizer = load_tokenizer(find(cfg.student.checkpoint), chat_template=cfg.student.chat_template)
    prompts = load_questions(cfg, tokenizer)[0].prompts
    with cfg.unlocked():
        cfg.teacher.index = ""
    book = [(p.question, p.solution) for p in prompts if p.solution] if not cfg.teacher.scripted.book else None
    teacher = Teacher.from_config(cfg, seed=cfg.seed, book=book, needs=("reference",))
    with IndexWriter(out, fingerprint=fingerprint(cfg.teacher, teacher)) as writer:
        asyncio.run(_run(cfg.teacher, teacher, prompts, writer, poll_s if batch else None))
    return 0


async def _run(
    teacher_cfg: ConfigDict, teacher: Teacher, prompts: Sequence[Prompt], writer: IndexWriter, poll_s: float | None
) -> None:
    m, jobs = teacher_cfg.references, Jobs(f"{writer.path}.jobs.json")
    if poll_s is not None:
        wanted = writer.index.lacking(prompts, m)
        teacher.client = Prefetched(teacher.client, await _batched(teacher_cfg, teacher, wanted, jobs, poll_s))
    await _collect_all(teacher, prompts, m, writer, at_once=teacher_cfg.concurrency)
    if poll_s is not None:
        jobs.forget()


async def _batched(
    teacher_cfg: ConfigDict, teacher: Teacher, prompts: Sequence[Prompt], jobs: Jobs, poll_s: float
) -> Replies:
    """What the batch APIs answer to the first m samples of each prompt."""
    if any(teacher_cfg.budget.to_dict().values()):
        raise UserError("teacher.budget caps are not enforced through batch jobs; set them to 0, or leave out --batch")
    sources = reference_sources(teacher_cfg)
    apis: list[BatchApi] = []
    try:
        for endpoint, _ in sources:
            apis.append(open_batch(**dataclasses.asdict(endpoint), timeout_s=teacher_cfg.timeout_s))
        asked = [
            [teacher.reference_request(p, i) for p in prompts for i in range(s, teacher_cfg.references, len(sources))]
            for s in range(len(sources))
        ]
        return await run_jobs(apis, asked, jobs, poll_s=poll_s)
    finally:
        for api in apis:
            await api.close()


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
