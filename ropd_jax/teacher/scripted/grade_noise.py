"""Noise for the scripted scorer: it makes the measured errors of a real judge's grades.

    {"flat": 0.6, "common": [[1.0, 0.9], [0.0, 0.1]],
     "by_quality": [[[0.0, 0.5], [1.0, 0.5]], [...], [...], [[1.0, 1.0]]]}

``flat``        share of requests in which all answers get the same grade
``common``      the grades of those requests: pairs (grade, share)
``by_quality``  the grades in all other requests, for true qualities below 1/3, below 2/3, below 1, and 1

Grades are shares of the scale: 0.0 is its lowest, 1.0 its highest. Draws are hashes of the texts, so the same request
always gets the same reply, and the same answer the same grade in all requests that are not flat.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.scripted.tasks import uniform

EDGES = (1 / 3, 2 / 3, 1.0)  # between the bins of the true quality
Table = tuple[tuple[float, float], ...]  # pairs (grade as a share of the scale, share of the draws)
_NEAR = 1e-6


@dataclasses.dataclass(frozen=True)
class GradeNoise:
    """The errors of grades; see the module's docstring."""

    flat: float
    common: Table
    by_quality: tuple[Table, ...]

    @classmethod
    def read(cls, value: Any) -> GradeNoise:
        """Reads the mapping of the module's docstring.

        Raises:
            ConfigurationError: a key is missing or unknown, or a number is out of range.
        """
        name = "teacher.scripted.noise: grades"
        if not isinstance(value, Mapping) or set(value) != {"flat", "common", "by_quality"}:
            raise ConfigurationError(f"{name} is {value!r:.60}; expected an object with flat, common and by_quality")
        bins = value["by_quality"]
        if not isinstance(bins, Sequence) or isinstance(bins, str) or len(bins) != len(EDGES) + 1:
            raise ConfigurationError(f"{name}.by_quality is {bins!r:.60}; expected {len(EDGES) + 1} tables")
        return cls(
            number_in(value["flat"], f"{name}.flat"),
            _table(value["common"], f"{name}.common"),
            tuple(_table(one, f"{name}.by_quality[{i}]") for i, one in enumerate(bins)),
        )

    @classmethod
    def fit(cls, requests: Iterable[Sequence[tuple[float, float]]]) -> GradeNoise | None:
        """The noise that measured requests show; None without a request of at least two answers.

        Args:
            requests: for each request its answers: (true quality, grade as a share of the scale), both 0 to 1.
        """
        rows = [row for row in requests if len(row) > 1]
        if not rows:
            return None
        flat = [row for row in rows if len({grade for _, grade in row}) == 1]
        common = _shares(row[0][1] for row in flat)
        found: list[list[float]] = [[] for _ in range(len(EDGES) + 1)]
        for row in rows:
            if row not in flat:
                for quality, grade in row:
                    found[_bin(quality)].append(grade)
        filled = [i for i, grades in enumerate(found) if grades]
        tables = [
            _shares(found[min(filled, key=lambda j: abs(i - j))]) if filled else common for i in range(len(found))
        ]
        return cls(len(flat) / len(rows), common or tables[-1], tuple(tables))

    def as_dict(self) -> dict[str, Any]:
        """What `read` takes."""
        return {
            "flat": self.flat,
            "common": [list(pair) for pair in self.common],
            "by_quality": [[list(pair) for pair in table] for table in self.by_quality],
        }

    def apply(self, question: str, answers: Sequence[str], qualities: Sequence[float]) -> list[float]:
        """The grades of the answers of one request, as shares of the scale."""
        if uniform("flat", question, *answers) < self.flat:
            return [_draw(self.common, uniform("common", question, *answers))] * len(answers)
        return [
            _draw(self.by_quality[_bin(quality)], uniform("grade", question, answer))
            for answer, quality in zip(answers, qualities, strict=True)
        ]


def _bin(quality: float) -> int:
    return sum(quality >= edge - _NEAR for edge in EDGES)


def _shares(grades: Iterable[float]) -> Table:
    counts = Counter(grades)
    total = sum(counts.values())
    return tuple((grade, n / total) for grade, n in sorted(counts.items()))


def _draw(table: Table, chance: float) -> float:
    for grade, share in table:
        chance -= share
        if chance < 0:
            return grade
    return table[-1][0]


def _table(value: Any, name: str) -> Table:
    pairs = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not pairs or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in value):
        raise ConfigurationError(f"{name} is {value!r:.60}; expected pairs [grade, share]")
    table = tuple((number_in(grade, name), number_in(share, name)) for grade, share in value)
    if not math.isclose(sum(share for _, share in table), 1.0, abs_tol=1e-3):
        raise ConfigurationError(f"{name}: the shares sum to {sum(share for _, share in table):g}; expected 1")
    return table


def number_in(value: Any, name: str, low: float = 0.0) -> float:
    """The value.

    Raises:
        ConfigurationError: it is not a number from ``low`` to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= 1.0:
        raise ConfigurationError(f"{name} is {value!r:.60}; expected a number {low:g} to 1")
    return float(value)
