"""From judged groups to the arrays of one update. Shapes never depend on what the teacher answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ropd_jax.types import Array


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """One sequence to train on: prompt, completion, and the completion's log-probs when it was sampled.

    Attributes:
        told: other prompts, by name, under which the completion is scored (`Method.contexts`).
    """

    prompt_T: np.ndarray
    completion_T: np.ndarray
    old_logp_T: np.ndarray
    told: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


EMPTY = TokenSequence(np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


class TrainBatch(NamedTuple):
    """Arrays of one update; position t holds an input token and predicts ``targets_BT[:, t]``.

    A row holds one sequence or, packed, several side by side, each with a segment of its own and positions from 0.

    Attributes:
        tokens_BT, targets_BT: int32.
        positions_BT, segments_BT: int32; segment 0 is padding.
        mask_BT: bool, completion tokens of valid rows: what the mean of the loss is taken over.
        informative_BT: bool, those of them that give the policy loss a gradient (groups of equal rewards do not).
        old_logp_BT: float32, log-probs under the student that sampled (`Rollout.logp_T`).
        advantage_BT: float32, the sequence's advantage.
        length_BT: int32, how many tokens of the token's sequence ``mask_BT`` admits; 0 where it does not.
    """

    tokens_BT: Array
    targets_BT: Array
    positions_BT: Array
    segments_BT: Array
    mask_BT: Array
    informative_BT: Array
    old_logp_BT: Array
    advantage_BT: Array
    length_BT: Array


def make_batch(
    sequences: Sequence[TokenSequence],
    advantage_B: np.ndarray,
    valid_B: np.ndarray,
    informative_B: np.ndarray,
    length: int,
    *,
    places: Sequence[Sequence[int]] | None = None,
    row_len: int = 0,
) -> TrainBatch:
    """Lay sequences into rows, the completion after its prompt, padded on the right.

    A row of two sequences: prompt ``p q`` with completion ``a b .``, and prompt ``r`` with completion ``c .``, which is
    unscored (``valid_B`` False)::

        position      0 1 2 3   4 5   6
        tokens        p q a b   r c   0      the input: all but the last token of each sequence
        targets       q a b .   c .   0      the next token, which the position predicts
        positions     0 1 2 3   0 1   0      start again in each sequence
        segments      1 1 1 1   2 2   0      attention stays within a segment; 0 is padding
        mask          . x x x   . .   .      completion tokens that count: the first is predicted by the prompt's last
        length        0 3 3 3   0 0   0      tokens of the completion, for means over sequences

    Args:
        advantage_B, valid_B, informative_B: of each sequence, see `Advantages`.
        length: most tokens of a sequence; a completion that does not fit is cut (only references can be that long).
        places: which sequences each row holds (`first_fit`); None gives each a row of its own.
        row_len: positions of a row; 0 means ``length - 1``, as the last token of a sequence is only predicted.
    """
    places = [[i] for i in range(len(sequences))] if places is None else places
    shape = len(places), row_len or length - 1
    ints = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "positions", "segments", "length")}
    mask_BT, informative_BT = np.zeros(shape, bool), np.zeros(shape, bool)
    old_logp_BT, advantage_BT = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for i, b, segment, at, start, end in _spans(sequences, length, places):
        s, here = sequences[i], slice(at, end)
        row = np.concatenate([s.prompt_T, s.completion_T])[:length]
        ints["tokens"][b, here], ints["targets"][b, here] = row[:-1], row[1:]
        ints["positions"][b, here], ints["segments"][b, here] = np.arange(end - at), segment
        old_logp_BT[b, start:end] = s.old_logp_T[: end - start]
        if valid_B[i]:
            mask_BT[b, start:end], informative_BT[b, start:end] = True, informative_B[i]
            advantage_BT[b, start:end], ints["length"][b, start:end] = advantage_B[i], end - start
    return TrainBatch(
        tokens_BT=ints["tokens"],
        targets_BT=ints["targets"],
        positions_BT=ints["positions"],
        segments_BT=ints["segments"],
        mask_BT=mask_BT,
        informative_BT=informative_BT,
        old_logp_BT=old_logp_BT,
        advantage_BT=advantage_BT,
        length_BT=ints["length"],
    )


def _spans(
    sequences: Sequence[TokenSequence], length: int, places: Sequence[Sequence[int]]
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(sequence, row, segment, first position, first position that predicts the completion, end) of each sequence: in
    the drawing of `make_batch` (0, 0, 1, 0, 1, 4) and (1, 0, 2, 4, 4, 6)."""
    for b, place in enumerate(places):
        at = 0
        for segment, i in enumerate(place, 1):
            s = sequences[i]
            end = at + min(len(s.prompt_T) + len(s.completion_T), length) - 1
            yield i, b, segment, at, at + len(s.prompt_T) - 1, end
            at = end


def of_completions(
    x_BT: np.ndarray, sequences: Sequence[TokenSequence], length: int, places: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Of each sequence its completion's part of ``x_BT``, whose rows were laid out with these places; empty for one
    that has no place."""
    found = [np.zeros(0, x_BT.dtype)] * len(sequences)
    for i, b, _, _, start, end in _spans(sequences, length, places):
        found[i] = x_BT[b, start:end]
    return found


def positions_needed(sequences: Sequence[TokenSequence], length: int) -> list[int]:
    """Positions that each sequence takes: one less than its tokens, cut at ``length``; 0 without a completion."""
    return [min(len(s.prompt_T) + n, length) - 1 if (n := len(s.completion_T)) else 0 for s in sequences]


def first_fit(sizes: Sequence[int], row_len: int) -> list[list[int]]:
    """First-fit-decreasing: indices of the sequences that share a row of ``row_len`` positions.

    A size of 0 takes no place. With sizes of at most m, no more than ceil(n / floor(row_len / m)) rows come out: a row
    is opened only when all others have less than m left, so each of those holds floor(row_len / m) sequences or more.
    """
    rows: list[list[int]] = []
    left = np.zeros(len(sizes), np.int64)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):  # stable: the order of equals is the caller's
        if not sizes[i]:
            break
        assert sizes[i] <= row_len
        fits = np.flatnonzero(left[: len(rows)] >= sizes[i])
        if not fits.size:
            left[len(rows)] = row_len
            rows.append([])
        row = fits[0] if fits.size else len(rows) - 1
        rows[row].append(i)
        left[row] -= sizes[i]
    return rows


def bucket(rows: int) -> int:
    """``rows`` rounded up to five significant bits (at most 1/16 more), so that few shapes are ever compiled."""
    step = 1 << max(rows.bit_length() - 5, 0)
    return -(-rows // step) * step


def pack(
    sequences: Sequence[TokenSequence],
    advantage_B: np.ndarray,
    valid_B: np.ndarray,
    informative_B: np.ndarray,
    length: int,
    *,
    row_len: int,
    fixed: bool,
) -> TrainBatch:
    """`make_batch` with several sequences a row. Which rows there are depends on lengths alone, never on a verdict.

    Args:
        row_len: positions of a row, at least ``length - 1``.
        fixed: always give the number of rows that the longest sequences would need, the last ones empty; otherwise
            those that are used, rounded up (`bucket`).
    """
    places = packing(sequences, length, row_len=row_len, fixed=fixed)
    return make_batch(sequences, advantage_B, valid_B, informative_B, length, places=places, row_len=row_len)


def packing(sequences: Sequence[TokenSequence], length: int, *, row_len: int, fixed: bool) -> list[list[int]]:
    """Which sequences each row of `pack` holds."""
    places = first_fit(positions_needed(sequences, length), row_len)
    most = -(-len(sequences) // (row_len // (length - 1)))
    return places + [[]] * ((most if fixed else min(bucket(max(len(places), 1)), most)) - len(places))


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


def real_frac(parts: TrainBatch) -> float:
    """Share of real tokens among the positions that an update computes: empty parts at the end are not."""
    real_A = (parts.segments_BT != 0).sum(axis=(1, 2))
    used = np.flatnonzero(real_A).max(initial=-1) + 1
    return float(real_A.sum() / max(used * parts.segments_BT[0].size, 1))
