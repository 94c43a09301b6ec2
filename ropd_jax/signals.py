"""What a teacher with weights would have said of a run's stored rollouts: its mean log-prob of each answer.

``ropd analyze RUN --teacher CHECKPOINT`` puts the numbers beside the rubric reward (``evaluation.analysis``), as the
paper's Table A4 does. The answer is tokenized anew by the teacher's own tokenizer behind the teacher's own chat
template, so any checkpoint will do; the mean is over the tokens of the text, a stop token is not among them.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.groups import StoredGroup, read_groups
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.report import clock, write_atomic
from ropd_jax.student import Student, load_student
from ropd_jax.types import Message, UserError

log = logging.getLogger(__name__)

NAME = "teacher_logprob"
_SAY_EVERY_S = 5.0
_STEP = 32  # tokens; rows are padded to a multiple, so that few programs are compiled


class Row(NamedTuple):
    """One answer: its key, and the tokens of prompt and answer; the answer begins at ``start``."""

    key: tuple[int, str, int]
    tokens: list[int]
    start: int


def score_run(
    run: str | os.PathLike[str],
    checkpoint: str,
    out: str | os.PathLike[str],
    *,
    steps: tuple[int, int] | None = None,
    system: str = "",
    rows: int = 32,
    dtype: str = "float32",
) -> pathlib.Path:
    """Write ``{"step", "prompt_id", "sample", "teacher_logprob"}`` of every stored rollout to the JSONL file ``out``.

    Args:
        checkpoint: of the teacher, by any name that `student.find` knows.
        system: the run's system message; the stored question holds it in words.
        rows: answers side by side.

    Raises:
        UserError: no groups, no such checkpoint, or an answer longer than the teacher was made for.
    """
    groups = list(read_groups(run, steps=steps))
    teacher = load_student(checkpoint)
    todo = sorted(_rows(teacher, groups, system), key=lambda row: len(row.tokens))
    longest = max((len(row.tokens) for row in todo), default=0)
    if longest > teacher.cfg.max_seq_len:
        raise UserError(
            f"{run}: prompt and answer of {longest} tokens, but {checkpoint} was made for {teacher.cfg.max_seq_len}; "
            "choose another --teacher"
        )
    found: dict[tuple[int, str, int], float] = {}
    begin = said = time.monotonic()
    for at in range(0, len(todo), rows):
        part = todo[at : at + rows]
        found |= zip((row.key for row in part), mean_logprobs(teacher, part, rows=rows, dtype=dtype), strict=True)
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            left = (said - begin) / len(found) * (len(todo) - len(found))
            log.info("scored %d of %d answers by %s  %s left", len(found), len(todo), checkpoint, clock(left))
    lines = (
        json.dumps({"step": step, "prompt_id": prompt, "sample": sample, NAME: value})
        for (step, prompt, sample), value in sorted(found.items())
    )
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return path


def mean_logprobs(teacher: Student, part: Sequence[Row], *, rows: int = 0, dtype: str = "float32") -> list[float]:
    """The teacher's mean log-prob of the tokens of each row's answer, natural logarithm.

    Args:
        rows: the batch is filled up to so many, 0 to none, so that one program serves all.
    """
    T = -(-max(len(row.tokens) for row in part) // _STEP) * _STEP + 1
    B = max(rows, len(part))
    tokens_BT, answer_BT = np.zeros((B, T), np.int32), np.zeros((B, T - 1), bool)
    for b, row in enumerate(part):
        tokens_BT[b, : len(row.tokens)] = row.tokens
        answer_BT[b, row.start - 1 : len(row.tokens) - 1] = True
    sums_B = np.asarray(_sums(teacher.cfg, teacher.params, tokens_BT, answer_BT, dtype=dtype))
    return [float(sums_B[b]) / (len(row.tokens) - row.start) for b, row in enumerate(part)]


def _rows(teacher: Student, groups: Sequence[StoredGroup], system: str) -> Iterator[Row]:
    tokenizer = teacher.tokenizer
    for group in groups:
        prompt = tokenizer.apply_chat_template(_messages(group.prompt.question, system))
        for sample, text in enumerate(group.answers):
            answer = tokenizer.encode(text)
            if answer:
                yield Row((group.step, group.prompt.id, sample), [*prompt, *answer], len(prompt))


def _messages(question: str, system: str) -> tuple[Message, ...]:
    """The chat that the stored question is the words of."""
    head = f"system: {system}\n\nuser: "
    if system and question.startswith(head):
        return Message("system", system), Message("user", question.removeprefix(head))
    return (Message("user", question),)


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def _sums(cfg: ModelConfig, params, tokens_BT, answer_BT, *, dtype: str):
    """Sum of the log-probs of each row's answer tokens, float32; ``answer_BT`` marks the *targets* that count."""
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T - 1, dtype=jnp.int32)[None], (B, T - 1))
    segments_BT = jnp.ones((B, T - 1), jnp.int32)  # padding stands behind the answer, and nobody looks ahead
    x_BTD = transformer.hidden(cfg, params, tokens_BT[:, :-1], positions_BT, segments_BT, dtype=jnp.dtype(dtype))
    logp_BT, _ = token_logprobs(cfg, params, x_BTD, tokens_BT[:, 1:])
    return jnp.sum(jnp.where(answer_BT, logp_BT, 0.0), axis=1)
