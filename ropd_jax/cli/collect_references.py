"""``ropd collect-references``: the references of all training prompts, collected ahead of time into an index file.

The prompts are those that a run of the same config trains on. Every answer is first on a tape,
``OUT.teacher/tape.sqlite`` unless ``teacher.tape.path`` names another one. The spending is in
``OUT.teacher/spent.json``.
"""

from __future__ import annotations

import logging
import os
import pathlib

from ml_collections import ConfigDict

from ropd_jax.data.questions import load_questions
from ropd_jax.teacher import BudgetError, build_teacher
from ropd_jax.teacher.build import reference_sources
from ropd_jax.teacher.collect_references import collect_references
from ropd_jax.types import UserError
from ropd_jax.weights.student import find
from ropd_jax.weights.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


def main(cfg: ConfigDict, out: str | os.PathLike[str], *, batch: bool = False, poll_s: float = 30.0) -> int:
    """Collect the references that ``out`` lacks; returns the exit code: 0 if none is lacking, 4 at a budget cap.

    Args:
        batch: through the provider's batch API; the jobs are on the tape.
        poll_s: seconds between two polls of the jobs.

    Raises:
        UserError: some prompts have no references yet, counted by cause (the others are written); a teacher that
            cannot work; a file whose references were asked for in another way.
    """
    tokenizer = load_tokenizer(
        find(cfg.student.checkpoint, weights=False),
        chat_template=cfg.student.chat_template,
        enable_thinking=cfg.student.enable_thinking,
    )
    prompts = load_questions(cfg.data, tokenizer)[0].prompts
    with cfg.unlocked():
        cfg.teacher.index = ""
    if batch and cfg.teacher.tape.mode != "record":
        raise UserError(
            f"--batch keeps its jobs on the tape; expected teacher.tape.mode=record, not {cfg.teacher.tape.mode!r}"
        )
    side = pathlib.Path(f"{out}.teacher")
    side.mkdir(parents=True, exist_ok=True)
    answer_key = (
        [(p.question, p.solution) for p in prompts if p.solution] if not cfg.teacher.scripted.answer_key else None
    )
    teacher = build_teacher(cfg.teacher, seed=cfg.seed, answer_key=answer_key, needs=("reference",), workdir=side)
    try:
        collect_references(
            teacher,
            prompts,
            out,
            sources=reference_sources(cfg.teacher),
            at_once=cfg.teacher.concurrency,
            batch=batch,
            poll_s=poll_s,
            timeout_s=cfg.teacher.timeout_s,
        )
    except BudgetError as error:
        log.error("stopped: %s", error)
        return 4
    return 0
