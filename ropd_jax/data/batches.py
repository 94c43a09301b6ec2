"""From judged groups to the arrays of one update. Shapes never depend on what the teacher answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One sequence to train on: prompt, completion, and the completion's log-probs when it was sampled."""

    prompt_T: np.ndarray
    completion_T: np.ndarray
    old_logp_T: np.ndarray


class TrainBatch(NamedTuple):
    """Arrays of one update; position t holds an input token and predicts ``targets_BT[:, t]``.

    Attributes:
        tokens_BT, targets_BT: int32.
        positions_BT, segments_BT: int32; segment 0 is padding.
        mask_BT: bool, completion tokens of valid rows: what the mean of the loss is taken over.
        informative_BT: bool, those of them that may give a gradient (zero-variance groups may not).
        old_logp_BT: float32, log-probs under the sampling policy.
        advantage_BT: float32, the row's advantage.
    """

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    positions_BT: np.ndarray
    segments_BT: np.ndarray
    mask_BT: np.ndarray
    informative_BT: np.ndarray
    old_logp_BT: np.ndarray
    advantage_BT: np.ndarray


def make_batch(
    sequences: Seq[Sequence], advantage_B: np.ndarray, valid_B: np.ndarray, informative_B: np.ndarray, length: int
) -> TrainBatch:
    """One row a sequence, prompt and completion side by side, padded on the right.

    Args:
        length: tokens of a row; a completion that does not fit is cut (only references can be that long).
    """
    B, T = len(sequences), length - 1
    tokens_BT = np.zeros((B, length), np.int32)
    segments_BT, positions_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    mask_BT, old_logp_BT = np.zeros((B, T), bool), np.zeros((B, T), np.float32)
    for b, s in enumerate(sequences):
        row = np.concatenate([s.prompt_T, s.completion_T])[:length]
        tokens_BT[b, : len(row)] = row
        n = min(len(row), T)
        segments_BT[b, :n], positions_BT[b, :n] = 1, np.arange(n)
        start, end = len(s.prompt_T) - 1, len(row) - 1
        mask_BT[b, start:end] = valid_B[b]
        old_logp_BT[b, start:end] = s.old_logp_T[: end - start]
    return TrainBatch(
        tokens_BT=tokens_BT[:, :-1],
        targets_BT=tokens_BT[:, 1:],
        positions_BT=positions_BT,
        segments_BT=segments_BT,
        mask_BT=mask_BT,
        informative_BT=mask_BT & informative_B[:, None],
        old_logp_BT=old_logp_BT,
        advantage_BT=np.where(mask_BT, advantage_B[:, None], 0.0).astype(np.float32),
    )


def split_parts(batch: TrainBatch, microbatch: int, *, multiple: int = 1) -> TrainBatch:
    """[B, T] -> [A, b, T] with b = ``microbatch`` rows a part (0: one part); filled up with empty rows.

    Args:
        multiple: b is rounded up to a multiple of this, the number of shards of a batch.
    """
    B = len(batch.tokens_BT)
    b = -(-min(microbatch or B, B) // multiple) * multiple
    A = -(-B // b)

    def cut(x_BT):
        x_BT = np.concatenate([x_BT, np.zeros((A * b - B, *x_BT.shape[1:]), x_BT.dtype)])
        return x_BT.reshape(A, b, *x_BT.shape[1:])

    return TrainBatch(*(cut(x) for x in batch))
