"""From labels and verdicts to the figures of a report.

    measure(said)  ->  {"overall", "kinds", "families", "answers", "auc", "bias", "flips", "unscored", "noise", ...}

Accuracy and similar figures come from the first look, over the verdicts that could be read and whose truth is known. A
verdict that could not be read is in no share; ``unscored`` counts its answer by cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ropd_jax.calibration import bias
from ropd_jax.calibration.agreement import agreement, auc, cells
from ropd_jax.calibration.bias import HaloModel, Look, Said
from ropd_jax.calibration.bootstrap import DRAWS, Bootstrap
from ropd_jax.teacher.roles.kinds import KINDS
from ropd_jax.teacher.scripted.grade_noise import GradeNoise
from ropd_jax.teacher.scripted.noise import OTHER
from ropd_jax.types import Array

_NAMES = (*KINDS, OTHER)
_LEAST_HALO = 0.01
SCALE = (1, 10)  # of the scorer


def measure(said: Sequence[Said], *, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """All figures for the judged questions, as plain data. An unknown figure is None.

    Args:
        draws, seed: for the bootstrap over questions.
    """
    names = [one.question.id for one in said]
    boot = Bootstrap(names, draws=draws, seed=seed)
    rows = _Rows(said)
    model = HaloModel(rows.question_V, rows.answer_V, rows.cell_V, rows.said_V)
    found_halo = bias.halo(model, boot)
    length, place, flips = bias.paired(said, boot, "length"), bias.position(said, boot), bias.flips(said, boot)
    return {
        "questions": len(set(names)),
        "answers": sum(len(one.question.answers) for one in said),
        "verdicts": sum(_size(one.first) for one in said),
        "overall": agreement(rows.cells(), boot),
        "kinds": {k: agreement(rows.cells(rows.kind_V == n), boot) for n, k in enumerate(_NAMES) if n in rows.kind_V},
        "families": {f: _family(rows, f, boot) for f in dict.fromkeys(rows.family_V)},
        "answer_kinds": {k: agreement(rows.cells(rows.made_V == k), boot) for k in dict.fromkeys(rows.made_V)},
        "auc": rows.auc(boot),
        "scorer_auc": _scorer_auc(said, boot),
        "bias": {
            "position": place,
            "length": length,
            "style": bias.paired(said, boot, "style"),
            "halo": found_halo,
        },
        "flips": flips,
        "unscored": _unscored(said),
        "noise": _noise(said, model, found_halo, place, length["per_doubling"], flips),
    }


class _Rows:
    """All verdicts of the first look as columns: V verdicts with a known truth and A answers with a verdict."""

    def __init__(self, said: Sequence[Said]):
        self.questions = len(said)
        verdicts: list[tuple[int, int, bool, bool, int, str, str]] = []
        rewards: list[tuple[int, float, bool, str]] = []
        number = 0
        for q, one in enumerate(said):
            rubric = one.question.rubric
            kinds = [_NAMES.index(c.kind or OTHER) for c in one.question.criteria]
            family = one.question.family or "all"
            for answer, row in zip(one.question.answers, one.first.passed, strict=True):
                number += 1
                if row is None:
                    continue
                if answer.correct is not None:
                    rewards.append((q, rubric.score(row), answer.correct, family))
                for kind, verdict, truth in zip(kinds, row, answer.truth, strict=True):
                    if truth is not None:
                        verdicts.append((q, number, truth, verdict, kind, family, answer.kind or "answer"))
        columns: Sequence[Any] = list(zip(*verdicts, strict=True)) or [()] * 7
        self.question_V, self.answer_V, self.kind_V = (np.array(columns[i], int) for i in (0, 1, 4))
        self.truth_V, self.said_V = (np.array(columns[i], bool) for i in (2, 3))
        self.family_V, self.made_V = (np.array(columns[i], object) for i in (5, 6))
        self.cell_V = 2 * self.kind_V + self.truth_V
        graded: Sequence[Any] = list(zip(*rewards, strict=True)) or [()] * 4
        self._of_A, self._reward_A = np.array(graded[0], int), np.array(graded[1], float)
        self._correct_A, self._family_A = np.array(graded[2], bool), np.array(graded[3], object)

    def cells(self, which_V: Array | None = None) -> Array:
        pick = slice(None) if which_V is None else np.asarray(which_V, bool)
        return cells(self.question_V[pick], self.truth_V[pick], self.said_V[pick], self.questions)

    def auc(self, boot: Bootstrap, family: str | None = None) -> dict[str, Any]:
        pick = slice(None) if family is None else self._family_A == family
        return auc(self._of_A[pick], self._reward_A[pick], self._correct_A[pick], boot, self.questions)


def _family(rows: _Rows, family: str, boot: Bootstrap) -> dict[str, Any]:
    return {**agreement(rows.cells(rows.family_V == family), boot), "auc": rows.auc(boot, family)}


def _scorer_auc(said: Sequence[Said], boot: Bootstrap) -> dict[str, Any] | None:
    """The AUC of the scorer's scores; None if the scorer was not used."""
    if all(one.scores is None for one in said):
        return None
    rows = [
        (q, score, answer.correct)
        for q, one in enumerate(said)
        for answer, score in zip(one.question.answers, one.scores or (), strict=False)
        if score is not None and answer.correct is not None
    ]
    of_A, value_A, correct_A = (np.array(c) for c in zip(*rows, strict=True)) if rows else (np.array([], int),) * 3
    return auc(of_A, value_A.astype(float), correct_A.astype(bool), boot, len(said))


def _size(look: Look) -> int:
    return sum(len(row) for row in look.passed if row is not None)


def _unscored(said: Sequence[Said]) -> dict[str, Any]:
    """Answers without a verdict, over both looks, by cause."""
    looks = [look for one in said for look in (one.first, one.again) if look is not None]
    causes = Counter(cause for look in looks for cause in look.causes if cause is not None)
    asked = sum(len(look.causes) for look in looks)
    return {
        "asked": asked,
        "answers": sum(causes.values()),
        "share": sum(causes.values()) / asked if asked else None,
        "causes": dict(sorted(causes.items())),
    }


def _noise(
    said: Sequence[Said],
    model: HaloModel,
    found_halo: dict[str, Any],
    place: dict[str, Any],
    length: dict[str, Any],
    flips: dict[str, Any],
) -> dict[str, Any] | None:
    """Settings that give the scripted judge the same errors (`teacher.scripted.noise`); None without verdicts.

    A bias whose interval contains 0 is left out. The redraw rate follows from the flips: if a verdict with probability
    p of "true" is drawn twice, it changes with probability 2 p (1 - p); the position bias causes some changes without
    it.
    """
    if not model.answers:
        return None
    shown = (found_halo["low"] or 0.0) > _LEAST_HALO
    h, chances = model.fit(np.ones(len(said)), found_halo["value"] if shown else 0.0)
    kinds: dict[str, dict[str, float]] = {}
    for cell, chance in chances.items():
        rates = kinds.setdefault(_NAMES[cell // 2], {})
        rates["false_negative" if cell % 2 else "false_positive"] = 1 - chance if cell % 2 else chance
    known = {name: [r[name] for r in kinds.values() if name in r] for name in ("false_positive", "false_negative")}
    kinds.setdefault(OTHER, {name: sum(rates) / len(rates) for name, rates in known.items() if rates})
    redraw = 0.0
    twice = model.changes(chances)
    if (flips["low"] or 0.0) > 0 and twice > 0:
        moved = abs(_shown(place)) * bias.moved(said)
        redraw = min(max((flips["value"] - moved) / twice, 0.0), 1.0)
    grades = GradeNoise.fit(_graded(said))
    return {
        "kinds": kinds, "halo": h, "position": _shown(place), "length": _shown(length), "redraw": redraw,
        "grades": None if grades is None else grades.as_dict(),
    }  # fmt: skip


def _graded(said: Sequence[Said]) -> Iterator[list[tuple[float, float]]]:
    """For each request of grades: (share of the points that the answer earns in truth, grade as a share of `SCALE`)."""
    low, high = SCALE
    for one in said:
        rubric, row = one.question.rubric, list[tuple[float, float]]()
        for answer, score in zip(one.question.answers, one.scores or (), strict=False):
            if score is not None and None not in answer.truth:
                row.append((rubric.score(tuple(map(bool, answer.truth))), (score - low) / (high - low)))
        yield row


def _shown(found: dict[str, Any]) -> float:
    low, high = found["low"], found["high"]
    return found["value"] if low is not None and high is not None and low * high > 0 else 0.0
