"""``ropd collect-references``: the references of all training prompts, collected ahead of time into an index file.

The prompts are those that a run of the same config trains on. Every answer is first on a tape,
``OUT.teacher/tape.sqlite`` unless ``teacher.tape.path`` names another one. The spending is in
``OUT.teacher/spent.json``.
"""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from ropd_jax.cli.flags import Arguments, Command, Flag
from ropd_jax.types import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def run(args: Arguments) -> None:
    """Collects what is missing."""
    how = {"poll_s": args["poll_s"], "live_fallback": args["live_fallback"]}
    collect(args.config, args["out"], batch=args["batch"], **how)


def collect(
    cfg: ConfigDict,
    out: str | os.PathLike[str],
    *,
    batch: bool = False,
    poll_s: float = 30.0,
    live_fallback: bool = False,
) -> None:
    """Collect the references that ``out`` lacks.

    Args:
        batch: through the provider's batch API; the jobs are on the tape.
        poll_s: seconds between two polls of the jobs.
        live_fallback: the requests of a job that failed are asked live, at the full price.

    Raises:
        BudgetError: a cap of ``teacher.budget`` is reached.
        UserError: some prompts have no references yet, counted by cause (the others are written); a teacher that
            cannot work; a file whose references were asked for in another way.
    """
    from ropd_jax.data.questions import load_questions
    from ropd_jax.teacher import build_teacher
    from ropd_jax.teacher.build import reference_sources
    from ropd_jax.teacher.collect_references import collect_references
    from ropd_jax.utils.paths import only_local
    from ropd_jax.weights.student import find
    from ropd_jax.weights.tokenizer import load_tokenizer
    from ropd_jax.workdir.lock import locked

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
    out = only_local(out, "--out")
    side = pathlib.Path(f"{out}.teacher")
    answer_key = (
        [(p.question, p.solution) for p in prompts if p.solution] if not cfg.teacher.scripted.answer_key else None
    )
    with locked(side, "--out"):
        teacher = build_teacher(cfg.teacher, seed=cfg.seed, answer_key=answer_key, needs=("reference",), workdir=side)
        collect_references(
            teacher,
            prompts,
            out,
            sources=reference_sources(cfg.teacher),
            at_once=cfg.teacher.concurrency,
            batch=batch,
            poll_s=poll_s,
            timeout_s=cfg.teacher.timeout_s,
            live_fallback=live_fallback,
        )


COMMAND = Command(
    name="collect-references",
    summary="collect the teacher's references of all training prompts before a run",
    intro="""
        Requests teacher.references answers to each training prompt of the config and writes them to FILE, one line per
        prompt (JSONL, the official ropd.teacher_index.v2). Run the same command again with the same FILE to continue,
        also after a kill. If two answers to a prompt are equal, another one is requested, a limited number of times.
    """,
    run=run,
    config="required",
    flags=(
        Flag("out", "FILE", "File of the references.", required="the file of the index, e.g. --out references.jsonl"),
        Flag(
            "batch",
            "",
            "Use the batch API of OpenAI or Gemini: half the price, up to a day. The jobs are on the tape "
            "(FILE.teacher/tape.sqlite); if the command was stopped, it continues to poll the same jobs.",
            False,
        ),
        Flag(
            "live_fallback",
            "",
            "With --batch: if a job fails, ask for its requests live, at the full price. Without it, the command stops "
            "and shows why the job failed.",
            False,
        ),
        Flag("poll_s", "S", "Seconds between two polls of the jobs.", 30.0, low=0.0),
    ),
    examples=(
        "ropd collect-references --config quickstart --out references.jsonl",
        "ropd train --config quickstart --config.teacher.index=references.jsonl \\",
        "    --workdir runs/b",
    ),
)
