"""What influences a verdict besides the truth: position, length, style and the answer's other criteria.

    position   change in the share of "true" from the first to the last position, from answers judged twice in different
               orders; if they were judged once, from their random positions
    length     paired: an answer and the same answer with padding
    style      paired: an answer and the same answer as Markdown in a confident tone
    halo       share of answers whose criteria all get the same verdict, beyond what the error rates explain

The model of the halo is that of the scripted noise (`teacher.scripted.noise`): each criterion is judged true with the
probability of its kind and truth; then, for a share h of the answers, one verdict is copied to all criteria. With p the
probability of a cell (kind, truth) and m the mean probability over an answer's criteria::

    share judged true   = (1 - h) p + h m           solved for p
    all verdicts equal  = h + (1 - h) (prod p + prod (1 - p))       solved for h
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ropd_jax.calibration.bootstrap import UNKNOWN, Bootstrap
from ropd_jax.teacher.labels import LabelledQuestion
from ropd_jax.types import Array

HALO_DRAWS = 200
_ROUNDS = 30
_MOST = 0.95  # maximum halo, so that the rates can be solved for


@dataclasses.dataclass(frozen=True)
class Look:
    """The verdicts on the answers to one question, in the order of the answers.

    Attributes:
        passed: the verdicts on each answer, or None if it is unscored.
        causes: why each answer is unscored, or None.
        places: the position of each answer in its request, from 0.0 (first) to 1.0 (last); None if it was the only one.
    """

    passed: tuple[tuple[bool, ...] | None, ...]
    causes: tuple[str | None, ...]
    places: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Said:
    """All verdicts on one labelled question. ``again`` is the second look, ``scores`` are the scorer's."""

    question: LabelledQuestion
    first: Look
    again: Look | None = None
    scores: tuple[int | None, ...] | None = None


def error_of(said: Said, look: Look, index: int) -> float | None:
    """Mean of verdict minus truth over an answer's criteria: above 0, "true" is given too often."""
    row = look.passed[index]
    if row is None:
        return None
    truths = said.question.answers[index].truth
    known = [float(v) - float(t) for v, t in zip(row, truths, strict=True) if t is not None]
    return sum(known) / len(known) if known else None


def position(said: Sequence[Said], boot: Bootstrap) -> dict[str, Any]:
    """The change in the share of "true" from the first position to the last."""
    tops, bottoms = np.zeros(len(said)), np.zeros(len(said))
    for q, one in enumerate(said):
        looks = [one.first, *([one.again] if one.again else [])]
        rows = [
            [(place, error) for look in looks
             if (place := look.places[i]) is not None and (error := error_of(one, look, i)) is not None]
            for i in range(len(one.question.answers))
        ]  # fmt: skip
        if one.again is None:  # only one look: compare its answers with their mean
            rows = [[pair for row in rows for pair in row]]
        for row in rows:
            x, y = np.array(row, float).reshape(-1, 2).T
            if len(x) > 1:
                tops[q] += ((x - x.mean()) * (y - y.mean())).sum()
                bottoms[q] += ((x - x.mean()) ** 2).sum()
    return boot.ratio(tops, bottoms)


def paired(said: Sequence[Said], boot: Bootstrap, differs: str) -> dict[str, Any]:
    """How much the share of "true" rises from an answer to its longer or styled version.

    Returns:
        ``difference``, and for the length ``per_doubling`` of the number of characters; ``pairs`` is their number.
    """
    rise, ones, tops, bottoms = (np.zeros(len(said)) for _ in range(4))
    for q, one in enumerate(said):
        index = {a.id: i for i, a in enumerate(one.question.answers)}
        for i, answer in enumerate(one.question.answers):
            if answer.differs != differs or answer.like not in index:
                continue
            plain = index[answer.like]
            before, after = error_of(one, one.first, plain), error_of(one, one.first, i)
            if before is None or after is None:
                continue
            lengths = [max(len(one.question.answers[k].text), 1) for k in (plain, i)]
            doublings = float(np.log2(lengths[1] / lengths[0]))
            sign = -1.0 if differs == "length" and doublings < 0 else 1.0
            rise[q] += sign * (after - before)
            ones[q] += 1
            tops[q] += doublings * (after - before)
            bottoms[q] += doublings**2
    found: dict[str, Any] = {"pairs": int(ones.sum()), "difference": boot.ratio(rise, ones)}
    if differs == "length":
        found["per_doubling"] = boot.ratio(tops, bottoms)
    return found


def flips(said: Sequence[Said], boot: Bootstrap) -> dict[str, Any]:
    """The share of verdicts that changed when the same answers were shown in another order."""
    changed, both = np.zeros(len(said)), np.zeros(len(said))
    for q, one in enumerate(said):
        if one.again is not None:
            for a, b in zip(one.first.passed, one.again.passed, strict=True):
                if a is not None and b is not None:
                    changed[q] += sum(x != y for x, y in zip(a, b, strict=True))
                    both[q] += len(a)
    return boot.ratio(changed, both, share=True)


def moved(said: Sequence[Said]) -> float:
    """Mean change of an answer's position (0..1) between the two looks; 0 if there was no second look."""
    ways = [
        abs(a - b)
        for one in said
        if one.again is not None
        for a, b in zip(one.first.places, one.again.places, strict=True)
        if a is not None and b is not None
    ]
    return sum(ways) / len(ways) if ways else 0.0


# ------------------------------------------------------------------------------------------------------------- halo


class HaloModel:
    """Error rates and halo fitted together.

    Args:
        question_V, answer_V, cell_V, said_V: one entry per verdict; a cell is 2 * kind + truth.
    """

    def __init__(self, question_V: Array, answer_V: Array, cell_V: Array, said_V: Array):
        self._question_V, self._cell_V, self._said_V = question_V, cell_V, np.asarray(said_V, float)
        _, self._answer_V = np.unique(answer_V, return_inverse=True)
        self.answers = int(self._answer_V.max()) + 1 if len(answer_V) else 0
        self._size_A = self._by_answer(np.ones(len(answer_V)))
        truths = self._by_answer(np.asarray(cell_V) % 2)
        true = self._by_answer(self._said_V)
        self._mixed_A = (truths > 0) & (truths < self._size_A)  # if all verdicts are equal, some are wrong
        self._equal_A = (true == 0) | (true == self._size_A)
        self._question_A = np.zeros(self.answers, int)
        self._question_A[self._answer_V] = question_V

    def _by_answer(self, values_V: Array) -> Array:
        return np.bincount(self._answer_V, weights=values_V, minlength=self.answers)

    @property
    def mixed(self) -> int:
        """The number of answers that meet some of their criteria and not others; only these show a halo."""
        return int(self._mixed_A.sum())

    def changes(self, chances: Mapping[int, float]) -> float:
        """The share of verdicts that would change if all were drawn again with these probabilities of "true"."""
        p_V = np.array([chances[int(cell)] for cell in self._cell_V])
        return float(np.mean(2 * p_V * (1 - p_V))) if len(p_V) else 0.0

    def halo(self, w_Q: Array) -> float:
        """The halo with these weights of the questions; NaN if no answer shows one."""
        return self.fit(w_Q)[0]

    def fit(self, w_Q: Array, halo: float | None = None) -> tuple[float, dict[int, float]]:
        """The halo (or the given one), and the probability of "true" in each cell that occurs."""
        w_V, w_A = w_Q[self._question_V], w_Q[self._question_A] * self._mixed_A
        if not w_A.sum() and halo is None:
            return float("nan"), {}
        n_C = np.bincount(self._cell_V, weights=w_V)
        seen_C = n_C > 0
        share_C = np.bincount(self._cell_V, weights=w_V * self._said_V)
        share_C = np.divide(share_C, n_C, out=np.zeros_like(share_C), where=seen_C)
        h, p_C = halo or 0.0, share_C
        for _ in range(_ROUNDS):
            p_V = p_C[self._cell_V]
            mean_A = self._by_answer(p_V) / self._size_A
            mean_C = np.bincount(self._cell_V, weights=w_V * mean_A[self._answer_V])
            mean_C = np.divide(mean_C, n_C, out=np.zeros_like(mean_C), where=seen_C)
            p_C = np.clip((share_C - h * mean_C) / (1 - h), 0.0, 1.0)
            if halo is None:
                p_V = np.clip(p_C[self._cell_V], 1e-9, 1 - 1e-9)
                equal_A = np.exp(self._by_answer(np.log(p_V))) + np.exp(self._by_answer(np.log1p(-p_V)))
                top, bottom = (w_A * (self._equal_A - equal_A)).sum(), (w_A * (1 - equal_A)).sum()
                h = float(np.clip(top / bottom, 0.0, _MOST)) if bottom > 0 else 0.0
        return h, {int(c): float(p_C[c]) for c in np.flatnonzero(seen_C)}


def halo(model: HaloModel, boot: Bootstrap) -> dict[str, Any]:
    """The halo with its interval; None if every answer meets all of its criteria or none."""
    return boot.of_weights(model.halo, model.mixed, draws=HALO_DRAWS) if model.mixed else {**UNKNOWN}
