"""Estimates with 95 % intervals over questions: the verdicts on one question are not independent.

Questions are drawn 1,000 times with replacement. A draw is a vector of weights (how often each question was drawn), so
that every figure is a function of sums per question::

    accuracy          w . right_Q / w . all_Q
    AUC               w . wins_QQ . w / w . pairs_QQ . w

An unknown figure is None. If all are right or all are wrong, the bootstrap interval would have zero width, so Wilson's
interval over the questions is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ropd_jax.evaluation.stats import accuracy
from ropd_jax.types import Array

DRAWS = 1_000
UNKNOWN: dict[str, Any] = {"value": None, "low": None, "high": None, "n": 0}


class Bootstrap:
    """Draws of questions.

    Args:
        questions: the number of questions, or the question name of each group. All groups of a question are drawn
            together.
        draws: number of draws.
        seed: for the draws.
    """

    def __init__(self, questions: int | Sequence[str], *, draws: int = DRAWS, seed: int = 0):
        names = [str(n) for n in range(questions)] if isinstance(questions, int) else list(questions)
        places = {name: n for n, name in enumerate(dict.fromkeys(names or [""]))}
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), size=draws)
        self.weights_DQ = drawn.astype(float)[:, [places[name] for name in names or [""]]]

    def estimate(self, value: float | None, draws: Array, n: int) -> dict[str, Any]:
        """A value with the interval of its draws, ignoring NaN."""
        found = np.asarray(draws, float)
        known = found[np.isfinite(found)]
        if value is None or not np.isfinite(value):
            return {**UNKNOWN, "n": n}
        if 2 * len(known) < len(found):  # most draws had nothing to count
            return {"value": float(value), "low": None, "high": None, "n": n}
        low, high = np.percentile(known, [2.5, 97.5])
        return {"value": float(value), "low": float(low), "high": float(high), "n": n}

    def ratio(self, tops_Q: Array, bottoms_Q: Array, *, share: bool = False) -> dict[str, Any]:
        """sum(tops) / sum(bottoms); with ``share``, 0 and 1 get Wilson's interval (`certain`)."""
        tops_Q, bottoms_Q = np.asarray(tops_Q, float), np.asarray(bottoms_Q, float)
        n = int(np.count_nonzero(bottoms_Q)) if not share else int(bottoms_Q.sum())
        if not bottoms_Q.sum():
            return {**UNKNOWN}
        value = tops_Q.sum() / bottoms_Q.sum()
        found = self.estimate(value, divided(self.weights_DQ @ tops_Q, self.weights_DQ @ bottoms_Q), n)
        return certain(found, int(np.count_nonzero(bottoms_Q))) if share else found

    def of_weights(self, f: Callable[[Array], float], n: int, *, draws: int) -> dict[str, Any]:
        """A figure that is any function of the weights, with fewer draws."""
        whole = f(np.ones(self.weights_DQ.shape[1]))
        return self.estimate(whole, np.array([f(w_Q) for w_Q in self.weights_DQ[:draws]]), n)


def certain(found: dict[str, Any], questions: int) -> dict[str, Any]:
    """The estimate of a share; if it is 0 or 1, with Wilson's interval over the questions."""
    if found["value"] not in (0.0, 1.0):
        return found
    wilson = accuracy([bool(found["value"])] * questions)
    return {**found, "low": wilson.low, "high": wilson.high}


def divided(tops: Array, bottoms: Array) -> Array:
    """tops / bottoms, NaN if the bottom is 0."""
    tops, bottoms = np.asarray(tops, float), np.asarray(bottoms, float)
    return np.divide(tops, bottoms, out=np.full(np.broadcast(tops, bottoms).shape, np.nan), where=bottoms != 0)
