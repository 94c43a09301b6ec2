"""From judged groups to the arrays of one update. Shapes never depend on what the teacher answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ropd_jax.types import Array

Arrays = TypeVar("Arrays", bound=tuple[Any, ...])  # a NamedTuple of arrays with the same leading dimensions


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


SHARED = 4_096  # the number of sequences that may share one prompt in a row is below this
EMPTY = TokenSequence(np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


class TrainBatch(NamedTuple):
    """Arrays of one update; position t holds an input token and predicts ``targets_BT[:, t]``.

    A row holds one sequence or, packed, several side by side, each with its own segment and positions from 0.
    Sequences with the same prompt may share it (`make_batch`, ``shared``).

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
    shared: bool = False,
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

    With ``shared``, neighbors of a row that have the same prompt hold it once. Prompt ``p q r`` with the completions
    ``a b .`` and ``c .``; each completion begins with the prompt's last token, which predicts its first::

        position      0  1    2  3  4    5  6
        tokens        p  q    r  a  b    r  c
        targets       q  r    a  b  .    c  .
        positions     0  1    2  3  4    2  3
        segments      S  S    S+1 ..     S+2 ..    S = 1 * SHARED: a token sees its own segment and the prompt's
        mask          .  .    x  x  x    x  x

    Args:
        advantage_B, valid_B, informative_B: of each sequence, see `Advantages`.
        length: most tokens of a sequence; a completion that does not fit is cut (only references can be that long).
        places: which sequences each row holds (`first_fit`); None gives each its own row.
        row_len: positions of a row; 0 means ``length - 1``, as the last token of a sequence is only predicted.
        shared: hold a prompt once for those who have it; the attention must know (`self_attention`, ``shared``).
    """
    places = [[i] for i in range(len(sequences))] if places is None else places
    shape = len(places), row_len or length - 1
    ints = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "positions", "segments", "length")}
    mask_BT, informative_BT = np.zeros(shape, bool), np.zeros(shape, bool)
    old_logp_BT, advantage_BT = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for i, b, segment, at, start, end, skipped in _spans(sequences, length, places, shared=shared):
        s, here = sequences[i], slice(at, end)
        row = np.concatenate([s.prompt_T, s.completion_T])[skipped : skipped + end - at + 1]
        ints["tokens"][b, here], ints["targets"][b, here] = row[:-1], row[1:]
        ints["positions"][b, here], ints["segments"][b, here] = np.arange(skipped, skipped + end - at), segment
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


class _Span(NamedTuple):
    """The place of a sequence, or of a prompt that several sequences share.

    Attributes:
        sequence, row, segment: for a shared prompt, those of the first sequence that has it.
        at, start, end: positions of the row; from ``start`` on they predict the completion. A prompt has start = end.
        skipped: tokens of the sequence that are stored elsewhere, in the shared prompt.
    """

    sequence: int
    row: int
    segment: int
    at: int
    start: int
    end: int
    skipped: int


def _spans(
    sequences: Sequence[TokenSequence], length: int, places: Sequence[Sequence[int]], *, shared: bool = False
) -> Iterator[_Span]:
    """In the first drawing of `make_batch` (0, 0, 1, 0, 1, 4, 0) and (1, 0, 2, 4, 4, 6, 0), in the second
    (0, 0, S, 0, 2, 2, 0), (0, 0, S+1, 2, 2, 5, 2) and (1, 0, S+2, 5, 5, 7, 2)."""
    for b, place in enumerate(places):
        at = 0
        for number, unit in enumerate(_by_prompt(sequences, place) if shared else [[i] for i in place], 1):
            known, segment = len(sequences[unit[0]].prompt_T) - 1, number * SHARED
            if not shared:
                known, segment = 0, number - 1
            elif known:
                yield _Span(unit[0], b, segment, at, at + known, at + known, 0)
                at += known
            for k, i in enumerate(unit, 1):
                s = sequences[i]
                end = at + min(len(s.prompt_T) + len(s.completion_T), length) - 1 - known
                yield _Span(i, b, segment + k, at, at + len(s.prompt_T) - 1 - known, end, known)
                at = end


def _by_prompt(sequences: Sequence[TokenSequence], place: Sequence[int]) -> list[list[int]]:
    """Neighbors with the same prompt together: prompts p p q p make [[0, 1], [2], [3]]."""
    found: list[list[int]] = []
    for i in place:
        if found and np.array_equal(sequences[found[-1][0]].prompt_T, sequences[i].prompt_T):
            found[-1].append(i)
        else:
            found.append([i])
    return found


def of_completions(
    x_BT: np.ndarray, sequences: Sequence[TokenSequence], length: int, places: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """Of each sequence its completion's part of ``x_BT``, whose rows were laid out with these places; empty for one
    that has no place."""
    found = [np.zeros(0, x_BT.dtype)] * len(sequences)
    for span in _spans(sequences, length, places):
        found[span.sequence] = x_BT[span.row, span.start : span.end]
    return found


def at_completions(
    values: Sequence[np.ndarray],
    sequences: Sequence[TokenSequence],
    length: int,
    places: Sequence[Sequence[int]],
    row_len: int,
    *,
    nothing: int,
) -> np.ndarray:
    """int32 [B, row_len], the inverse of `of_completions`: each sequence's values where its completion is predicted,
    ``nothing`` elsewhere and for a sequence without values."""
    x_BT = np.full((len(places), row_len), nothing, np.int32)
    for span in _spans(sequences, length, places):
        if len(values[span.sequence]):
            x_BT[span.row, span.start : span.end] = values[span.sequence]
    return x_BT


def positions_needed(sequences: Sequence[TokenSequence], length: int) -> list[int]:
    """Positions that each sequence takes: one less than its tokens, cut at ``length``; 0 without a completion."""
    return [min(len(s.prompt_T) + n, length) - 1 if (n := len(s.completion_T)) else 0 for s in sequences]


def first_fit(sizes: Sequence[int], row_len: int, *others: tuple[Sequence[int], int]) -> list[list[int]]:
    """First-fit-decreasing: indices of the sequences that share a row of ``row_len`` positions.

    A size of 0 takes no place. With sizes of at most m, no more than ceil(n / floor(row_len / m)) rows come out: a row
    is opened only when all others have less than m left, so each of those holds floor(row_len / m) sequences or more.

    Args:
        others: further (sizes, row_len) of the same sequences, in rows of other arrays: sequences share a row only if
            they fit into all of them. The bound then has the smallest of the floors.
    """
    sizes_NK = np.stack([sizes, *(more for more, _ in others)], axis=1)
    len_K = np.array([row_len, *(more_len for _, more_len in others)])
    rows: list[list[int]] = []
    left_NK = np.zeros(sizes_NK.shape, np.int64)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):  # stable: the order of equals is the caller's
        if not sizes[i]:
            break
        assert (sizes_NK[i] <= len_K).all()
        fits = np.flatnonzero((left_NK[: len(rows)] >= sizes_NK[i]).all(axis=1))
        if not fits.size:
            left_NK[len(rows)] = len_K
            rows.append([])
        row = fits[0] if fits.size else len(rows) - 1
        rows[row].append(i)
        left_NK[row] -= sizes_NK[i]
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
    shared: bool = False,
) -> TrainBatch:
    """`make_batch` with several sequences per row. The rows depend only on prompts and lengths, never on a verdict.

    Args:
        row_len: positions of a row, at least ``length - 1``.
        fixed: always give the number of rows that the longest sequences would need, the last ones empty; otherwise
            those that are used, rounded up (`bucket`).
        shared: neighbors with the same prompt share it, as many as fit into a row together.
    """
    lay_out = packing_shared if shared else packing
    places = lay_out(sequences, length, row_len=row_len, fixed=fixed)
    return make_batch(
        sequences, advantage_B, valid_B, informative_B, length, places=places, row_len=row_len, shared=shared
    )


def packing(sequences: Sequence[TokenSequence], length: int, *, row_len: int, fixed: bool) -> list[list[int]]:
    """Which sequences each row of `pack` holds."""
    places = first_fit(positions_needed(sequences, length), row_len)
    return _filled_up(places, -(-len(sequences) // (row_len // (length - 1))), fixed=fixed)


def packing_shared(sequences: Sequence[TokenSequence], length: int, *, row_len: int, fixed: bool) -> list[list[int]]:
    """Which sequences each row of `pack` holds if they share prompts.

    As many sequences with the same prompt as fit are in one row. They need the prompt's positions once, and those of
    their completions.
    """
    needed, units, sizes, most = positions_needed(sequences, length), list[list[int]](), list[int](), 0
    for group in _by_prompt(sequences, range(len(sequences))):
        most += -(-len(group) // (row_len // (length - 1)))
        known, left = len(sequences[group[0]].prompt_T) - 1, 0
        for i in group:
            if not needed[i]:
                continue
            if needed[i] - known > left:
                units.append([])
                sizes.append(known)
                left = row_len - known
            units[-1].append(i)
            sizes[-1] += needed[i] - known
            left -= needed[i] - known
    places = [[i for k in row for i in units[k]] for row in first_fit(sizes, row_len)]
    return _filled_up(places, most, fixed=fixed)


def _filled_up(places: list[list[int]], most: int, *, fixed: bool) -> list[list[int]]:
    return places + [[]] * ((most if fixed else min(bucket(max(len(places), 1)), most)) - len(places))


def split_parts(batch: Arrays, microbatch: int, *, multiple: int = 1) -> Arrays:
    """Arrays [B, T] -> [A, b, T] with b = ``microbatch`` rows a part (0: one part); filled up with empty rows.

    Args:
        multiple: b is rounded up to a multiple of this, the number of shards of a batch.
    """
    B = len(batch[0])
    b = -(-min(microbatch or B, B) // multiple) * multiple
    A = -(-B // b)

    def cut(x_BT):
        x_BT = np.concatenate([x_BT, np.zeros((A * b - B, *x_BT.shape[1:]), x_BT.dtype)])
        return x_BT.reshape(A, b, *x_BT.shape[1:])

    return type(batch)(*(cut(x) for x in batch))


def real_frac(parts: TrainBatch) -> float:
    """Share of real tokens among the positions that an update computes: empty parts at the end are not."""
    real_A = (parts.segments_BT != 0).sum(axis=(1, 2))
    used = np.flatnonzero(real_A).max(initial=-1) + 1
    return float(real_A.sum() / max(used * parts.segments_BT[0].size, 1))
