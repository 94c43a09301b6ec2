"""Signals of a teacher with weights on a run's stored rollouts, next to the rubric reward.

``ropd analyze RUN --teacher CHECKPOINT`` adds the numbers to the signal study (``evaluation.analysis``), as in the
paper's Tables A4 and A5. Each is a mean over the tokens of an answer's text, without the stop token:

    teacher_logprob   the log-prob of the token. The answer is re-tokenized by the teacher's own tokenizer after its own
                      chat template, so any checkpoint works
    topk_overlap      the share of the k most likely next tokens (k = 24 in the paper) that student and teacher have in
                      common
    topk_mass         the student's probability of the common tokens. The paper does not define which of the two it
                      uses; its means of 0.9986 to 0.9996 can only be a mass

The student of a rollout is the run's newest checkpoint that is not later than the rollout, or the initial student. Its
tokenizer must be the teacher's.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ropd_jax.methods.lopd import check_tokenizers
from ropd_jax.models import transformer
from ropd_jax.models.config import ModelConfig
from ropd_jax.models.divergence import top_k_overlap
from ropd_jax.models.logprobs import token_logprobs
from ropd_jax.types import Message, UserError
from ropd_jax.utils.every import Every
from ropd_jax.utils.files import write_atomic
from ropd_jax.utils.text import clock
from ropd_jax.weights.student import Student, load_checkpoint
from ropd_jax.workdir.groups import StoredGroup, read_groups
from ropd_jax.workdir.kept import kept_steps
from ropd_jax.workdir.policy import load_policy, run_config

log = logging.getLogger(__name__)

NAME = "teacher_logprob"
SIGNALS = (NAME, "topk_overlap", "topk_mass")
Scores = dict[tuple[int, str, int], dict[str, float]]
PROGRESS_S = 5.0  # seconds between two lines of progress
_STEP = 32  # tokens; rows are padded to a multiple, so that few programs are compiled


class Row(NamedTuple):
    """One answer: its key, and the tokens of prompt and answer; the answer starts at ``start``."""

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
    top_k: int = 0,
    rows: int = 32,
    dtype: str = "float32",
) -> str:
    """Write ``{"step", "prompt_id", "sample", "teacher_logprob", ...}`` of every stored rollout to the JSONL file
    ``out``.

    Args:
        checkpoint: of the teacher, by any name that `student.find` accepts.
        system: the run's system message; the stored question contains its text.
        top_k: tokens for the overlap; 0 omits it. If it cannot be computed (no checkpoints, another tokenizer), the
            log reports the reason and it is omitted.
        rows: answers per batch.

    Raises:
        UserError: no groups, no such checkpoint, or an answer longer than the teacher supports.
    """
    groups = list(read_groups(run, steps=steps))
    teacher = load_checkpoint(checkpoint)
    todo = sorted(_rows(teacher, groups, system), key=lambda row: len(row.tokens))
    longest = max((len(row.tokens) for row in todo), default=0)
    if longest > teacher.cfg.max_seq_len:
        raise UserError(
            f"{run}: prompt and answer of {longest} tokens, but {checkpoint} supports {teacher.cfg.max_seq_len}; "
            "choose another --teacher"
        )
    found: Scores = {}
    for student, mine in _policies(run, teacher, todo, top_k) if top_k else ():
        both = functools.partial(mean_signals, student, teacher, k=top_k, rows=rows, dtype=dtype)
        _measure(mine, rows, found, f"by {checkpoint} and the student", both)
    left = [row for row in todo if row.key not in found]
    _measure(left, rows, found, f"by {checkpoint}", lambda part: [
        {NAME: value} for value in mean_logprobs(teacher, part, rows=rows, dtype=dtype)
    ])  # fmt: skip
    lines = (
        json.dumps({"step": step, "prompt_id": prompt, "sample": sample} | values)
        for (step, prompt, sample), values in sorted(found.items())
    )
    write_atomic(out, "".join(f"{line}\n" for line in lines))
    return os.fspath(out)


def _measure(
    todo: Sequence[Row], rows: int, found: Scores, what: str, values: Callable[[Sequence[Row]], list[dict[str, float]]]
) -> None:
    """Adds the values of all rows, batch by batch, and reports progress."""
    begin, progress = time.monotonic(), Every(PROGRESS_S)
    for at in range(0, len(todo), rows):
        part = todo[at : at + rows]
        for row, more in zip(part, values(part), strict=True):
            found.setdefault(row.key, {}).update(more)
        if progress():
            done = at + len(part)
            left = (time.monotonic() - begin) / done * (len(todo) - done)
            log.info("scored %d of %d answers %s  %s left", done, len(todo), what, clock(left))


def _policies(
    run: str | os.PathLike[str], teacher: Student, todo: Sequence[Row], top_k: int
) -> Iterator[tuple[Student, list[Row]]]:
    """Each available student with the rows that it answered."""
    cfg = run_config(run)
    if cfg is None:
        log.info("no top-k overlap: %s has no checkpoints, so there is no student to compare with", run)
        return
    kept = kept_steps(run)
    by_step: dict[int, list[Row]] = {}
    for row in todo:
        by_step.setdefault(max((s for s in kept if s <= row.key[0]), default=0), []).append(row)
    for step, mine in sorted(by_step.items()):
        student = load_policy(run, step, thinking=cfg.student.enable_thinking)
        try:
            check_tokenizers(student, teacher)
        except UserError as error:
            log.info("no top-k overlap: %s", error)
            return
        if top_k > min(student.cfg.vocab_size, teacher.cfg.vocab_size):
            raise UserError(f"--top_k={top_k}; expected at most {student.cfg.vocab_size}, the size of the vocabulary")
        steps = sorted({row.key[0] for row in mine})
        log.info("overlap of steps %d to %d: the student after step %d", steps[0], steps[-1], step)
        yield student, mine


def mean_logprobs(teacher: Student, part: Sequence[Row], *, rows: int = 0, dtype: str = "float32") -> list[float]:
    """The teacher's mean log-prob of the tokens of each row's answer, natural logarithm.

    Args:
        rows: the batch is padded to this many rows, so that one program serves all; 0 for no padding.
    """
    tokens_BT, answer_BT = _padded(part, rows)
    sums_B = np.asarray(_sums(teacher.cfg, teacher.params, tokens_BT, answer_BT, dtype=dtype))
    return [float(sums_B[b]) / (len(row.tokens) - row.start) for b, row in enumerate(part)]


def mean_signals(
    student: Student, teacher: Student, part: Sequence[Row], *, k: int, rows: int = 0, dtype: str = "float32"
) -> list[dict[str, float]]:
    """All three signals of each row, with one pass of either model; see the module and `divergence.top_k_overlap`.

    Args:
        rows: as of `mean_logprobs`.
    """
    tokens_BT, answer_BT = _padded(part, rows)
    both = (student.cfg, teacher.cfg, student.params, teacher.params)
    sums_B3 = np.asarray(_all_sums(*both, tokens_BT, answer_BT, k=k, dtype=dtype))
    lengths = [len(row.tokens) - row.start for row in part]
    return [{key: float(x) / n for key, x in zip(SIGNALS, sums_B3[b], strict=True)} for b, n in enumerate(lengths)]


def _padded(part: Sequence[Row], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_BT, answer_BT): the batch, and which *targets* belong to the answers."""
    T = -(-max(len(row.tokens) for row in part) // _STEP) * _STEP + 1
    B = max(rows, len(part))
    tokens_BT, answer_BT = np.zeros((B, T), np.int32), np.zeros((B, T - 1), bool)
    for b, row in enumerate(part):
        tokens_BT[b, : len(row.tokens)] = row.tokens
        answer_BT[b, row.start - 1 : len(row.tokens) - 1] = True
    return tokens_BT, answer_BT


def _rows(teacher: Student, groups: Sequence[StoredGroup], system: str) -> Iterator[Row]:
    tokenizer = teacher.tokenizer
    for group in groups:
        prompt = tokenizer.apply_chat_template(_messages(group.prompt.question, system))
        for sample, text in enumerate(group.answers):
            answer = tokenizer.encode(text)
            if answer:
                yield Row((group.step, group.prompt.id, sample), [*prompt, *answer], len(prompt))


def _messages(question: str, system: str) -> tuple[Message, ...]:
    """The chat whose text is the stored question."""
    head = f"system: {system}\n\nuser: "
    if system and question.startswith(head):
        return Message("system", system), Message("user", question.removeprefix(head))
    return (Message("user", question),)


@functools.partial(jax.jit, static_argnames=("cfg", "dtype"))
def _sums(cfg: ModelConfig, params, tokens_BT, answer_BT, *, dtype: str):
    """Sum of the log-probs of each row's answer tokens, float32; ``answer_BT`` marks the *targets* to sum."""
    x_BTD = _hidden(cfg, params, tokens_BT, dtype)
    logp_BT, _ = token_logprobs(cfg, params, x_BTD, tokens_BT[:, 1:])
    return jnp.sum(jnp.where(answer_BT, logp_BT, 0.0), axis=1)


@functools.partial(jax.jit, static_argnames=("cfg", "teacher_cfg", "k", "dtype"))
def _all_sums(cfg: ModelConfig, teacher_cfg: ModelConfig, params, teacher_params, tokens_BT, answer_BT, *, k, dtype):
    """Sums [B, 3] of `SIGNALS` over each row's answer, float32."""
    x_BTD = _hidden(cfg, params, tokens_BT, dtype)
    teacher_x_BTD = _hidden(teacher_cfg, teacher_params, tokens_BT, dtype)
    logp_BT, _ = token_logprobs(teacher_cfg, teacher_params, teacher_x_BTD, tokens_BT[:, 1:])
    overlaps = top_k_overlap(cfg, params, x_BTD, teacher_cfg, teacher_params, teacher_x_BTD, k=k)
    return jnp.stack([jnp.sum(jnp.where(answer_BT, x_BT, 0.0), axis=1) for x_BT in (logp_BT, *overlaps)], axis=1)


def _hidden(cfg: ModelConfig, params, tokens_BT, dtype: str):
    """Hidden states of all but the last token, one sequence per row."""
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T - 1, dtype=jnp.int32)[None], (B, T - 1))
    segments_BT = jnp.ones((B, T - 1), jnp.int32)  # padding follows the answer, and attention is causal
    return transformer.hidden(cfg, params, tokens_BT[:, :-1], positions_BT, segments_BT, dtype=jnp.dtype(dtype))
