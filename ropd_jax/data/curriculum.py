"""The choice of a source's prompts: each once per epoch, or those of medium pass rate more often (the curriculum).

    Epochs      a new permutation for each epoch, drawn from (seed, epoch)
    Curriculum  prompt i is drawn f_i times as often as on average, 1/b <= f_i <= b (b = ``data.curriculum``)

With p_i, the running pass rate of prompt i (`PassRate`), which counts as 1 until it is judged::

    f_i = clip(c b^(8 p_i (1 - p_i) - 1), 1/b, b),    c such that the mean of f is 1

so that p = 1/2 is drawn most often, and prompts that the student always or never solves least often, but never left
out. Credits turn f into draws deterministically: every step adds f_i n/N to the credit of each of the N prompts; the n
prompts of greatest credit are drawn and pay 1 each. So after any number of steps each prompt was drawn in proportion to
its f, to within a few draws, and with equal f every prompt is drawn once per epoch. Its place in the epoch is random: a
number from [0, 1), redrawn at each draw, is added to the credit when credits are compared.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any, NamedTuple

import numpy as np

MEMORY = 4  # visits that the running pass rate averages over


class CurriculumState(NamedTuple):
    """The curriculum's state for a source's N prompts.

    Attributes:
        credit_N: float64, draws that a prompt is owed.
        jitter_N: float64, its random place within an epoch, 0 to 1.
        rate_N: float64, its running pass rate; NaN if it was never judged.
        visits_N: int64, the number of times it was judged.
    """

    credit_N: np.ndarray
    jitter_N: np.ndarray
    rate_N: np.ndarray
    visits_N: np.ndarray

    def as_json(self) -> dict[str, str]:
        """The arrays as strings, lossless."""
        return {name: base64.b64encode(zlib.compress(x.tobytes())).decode() for name, x in self._asdict().items()}

    @classmethod
    def from_json(cls, values: dict[str, str]) -> CurriculumState:
        """The inverse of `as_json`."""
        kinds = {"visits_N": np.int64}
        return cls(**{
            name: np.frombuffer(zlib.decompress(base64.b64decode(text)), kinds.get(name, np.float64)).copy()
            for name, text in values.items()
        })  # fmt: skip


def first_state(n: int, seed: Any) -> CurriculumState:
    """Before the first step."""
    jitter_N = np.random.default_rng(seed).random(n)
    return CurriculumState(np.zeros(n), jitter_N, np.full(n, np.nan), np.zeros(n, np.int64))


def factors(rate_N: np.ndarray, most: float, *, at_once: int = 1) -> np.ndarray:
    """f of the module, float64 [N]: within [1 / most, most], with mean 1.

    Args:
        most: b.
        at_once: prompts that one step draws; a prompt is drawn at most once per step, so f is at most N / at_once.
    """
    high, low = min(most, len(rate_N) / at_once), 1.0 / most
    known_N = np.nan_to_num(rate_N, nan=0.0)
    raw_N = np.where(np.isnan(rate_N), 1.0, most ** (8.0 * known_N * (1.0 - known_N) - 1.0))
    below, above = np.log(low / raw_N.max()), np.log(high / raw_N.min())
    for _ in range(50):
        middle = (below + above) / 2
        if np.clip(np.exp(middle) * raw_N, low, high).mean() < 1.0:
            below = middle
        else:
            above = middle
    return np.clip(np.exp(above) * raw_N, low, high)


def drawn(state: CurriculumState, n: int, most: float, seed: Any) -> tuple[CurriculumState, np.ndarray]:
    """(the state after a step that draws ``n`` prompts, their places); ``seed`` is the step's."""
    credit_N = state.credit_N + factors(state.rate_N, most, at_once=max(n, 1)) * n / len(state.credit_N)
    places = np.argsort(-(credit_N + state.jitter_N), kind="stable")[:n]
    jitter_N = state.jitter_N.copy()
    credit_N[places] -= 1.0
    jitter_N[places] = np.random.default_rng(seed).random(n)
    return state._replace(credit_N=credit_N, jitter_N=jitter_N), places


def learnt(state: CurriculumState, rates: dict[int, float]) -> CurriculumState:
    """The state after a step's pass rates, by place: the mean of the first `MEMORY` visits, then a running mean."""
    rate_N, visits_N = state.rate_N.copy(), state.visits_N.copy()
    for i, rate in rates.items():
        visits_N[i] += 1
        before = rate_N[i]
        rate_N[i] = rate if np.isnan(before) else before + (rate - before) / min(visits_N[i], MEMORY)
    return state._replace(rate_N=rate_N, visits_N=visits_N)
