"""Noise for the scripted verifier: it makes the measured errors of a real judge.

    {"kinds": {"final_result": {"false_positive": 0.05, "false_negative": 0.1}, "other": {...}},
     "halo": 0.2, "position": -0.1, "length": 0.03, "redraw": 0.3}

``kinds``     for each kind of criterion (`roles.kinds`): share of false criteria that are judged true, and of true ones
              that are judged false. ``other`` applies to all other kinds; without it they have no errors.
``halo``      share of answers whose criteria all get the same verdict: that on one of them, drawn by hash.
``position``  change in the probability of "true" from the first position in a request to the last.
``length``    change in the probability of "true" with each doubling of the answer's length, from 400 characters; at
              most three doublings count.

``redraw``    share of verdicts that are redrawn if the order, the other answers or the sample (votes) change. The rest
              are the judge's own errors, which it repeats however often it is asked.
``grades``    errors of grades for whole answers (`scripted.grade_noise`)

The order of events: the probability of "true" follows from the truth, the kind, the position and the length. One
number, a hash of answer and criterion (and of the request, if redrawn), draws the verdict. Then the halo is applied. So
the same request always gets the same reply.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ropd_jax.teacher.clients.errors import ConfigurationError
from ropd_jax.teacher.roles.kinds import KINDS
from ropd_jax.teacher.scripted.grade_noise import GradeNoise, number_in
from ropd_jax.teacher.scripted.tasks import uniform
from ropd_jax.utils.paths import local_file

OTHER = "other"
USUAL_LENGTH = 400  # characters, at which the length bias is zero
MOST_DOUBLINGS = 3.0
_KEYS = ("kinds", "halo", "position", "length", "redraw", "grades")
_EXPECTED = (
    'the path of a calibration report, or JSON such as {"kinds": {"other": {"false_positive": 0.1, "false_negative": '
    '0.1}}, "halo": 0.0, "position": 0.0, "length": 0.0, "redraw": 0.0}'
)


@dataclasses.dataclass(frozen=True)
class Noise:
    """The errors of verdicts and grades; see the module's docstring.

    Attributes:
        false_positive, false_negative: rates by kind, including ``other``; a missing kind has no errors.
        grades: None if the grades have no errors.

    Raises:
        ConfigurationError: a number is out of range, or a kind is unknown.
    """

    false_positive: Mapping[str, float] = dataclasses.field(default_factory=dict)
    false_negative: Mapping[str, float] = dataclasses.field(default_factory=dict)
    halo: float = 0.0
    position: float = 0.0
    length: float = 0.0
    redraw: float = 0.0
    grades: GradeNoise | None = None

    def __post_init__(self) -> None:
        for name in ("false_positive", "false_negative"):
            for kind, rate in getattr(self, name).items():
                if kind not in (*KINDS, OTHER):
                    known = ", ".join((*KINDS, OTHER))
                    raise ConfigurationError(f"teacher.scripted.noise: kind {kind!r:.60}; expected one of {known}")
                number_in(rate, f"teacher.scripted.noise: kinds.{kind}.{name}")
        for name in ("halo", "redraw"):
            number_in(getattr(self, name), f"teacher.scripted.noise: {name}")
        for name in ("position", "length"):
            number_in(getattr(self, name), f"teacher.scripted.noise: {name}", -1.0)

    @classmethod
    def read(cls, value: str | Mapping[str, Any] | None) -> Noise | None:
        """Reads the path of a calibration report or a JSON file, a JSON text, or a mapping; None if "".

        Raises:
            ConfigurationError: the value cannot be read, or a part of it is not as expected.
        """
        if not value:
            return None
        if isinstance(value, str):
            try:
                text = value
                if not value.lstrip().startswith("{"):
                    text = local_file(value, "teacher.scripted.noise").read_text(encoding="utf-8")
                value = json.loads(text)
            except (OSError, ValueError, RecursionError) as e:
                raise ConfigurationError(
                    f"cannot read teacher.scripted.noise={value!r:.100} ({e}); expected {_EXPECTED}"
                ) from e
        if isinstance(value, Mapping) and "schema_version" in value:  # a report
            value = value.get("noise")
            if value is None:
                raise ConfigurationError(
                    "teacher.scripted.noise: this report has no noise, because too few verdicts could be read; "
                    "expected a report from ropd calibrate-judge with known error rates"
                )
        if not isinstance(value, Mapping) or (unknown := sorted(set(map(str, value)) - set(_KEYS))):
            what = f"unknown key {unknown[0]!r:.60}" if isinstance(value, Mapping) else f"{value!r:.60}"
            raise ConfigurationError(f"teacher.scripted.noise: {what}; expected {_EXPECTED}")
        kinds = value.get("kinds", {})
        if not isinstance(kinds, Mapping) or not all(isinstance(rates, Mapping) for rates in kinds.values()):
            raise ConfigurationError(f"teacher.scripted.noise: kinds is {kinds!r:.60}; expected {_EXPECTED}")
        for kind, rates in kinds.items():
            if unknown := sorted(set(map(str, rates)) - {"false_positive", "false_negative"}):
                raise ConfigurationError(f"teacher.scripted.noise: {kind}: unknown key {unknown[0]!r:.60}; {_EXPECTED}")
        return cls(
            {k: r["false_positive"] for k, r in kinds.items() if r.get("false_positive") is not None},
            {k: r["false_negative"] for k, r in kinds.items() if r.get("false_negative") is not None},
            **{name: value[name] for name in _KEYS[1:-1] if value.get(name) is not None},
            grades=None if value.get("grades") is None else GradeNoise.read(value["grades"]),
        )

    def apply(
        self,
        truths: Sequence[bool],
        kinds: Sequence[str | None],
        *,
        criteria: Sequence[str],
        question: str,
        answer: str,
        place: int,
        answers: int,
        request: str = "",
    ) -> list[bool]:
        """The verdicts on one answer.

        Args:
            truths, kinds, criteria: the truth, the kind and the text of each criterion.
            place: position of the answer in the request, from 0; ``answers`` is their number.
            request: text that distinguishes this request from others about the same answer; used for redrawn verdicts.
        """
        shift = self.position * (place / (answers - 1) - 0.5 if answers > 1 else 0.0)
        doublings = math.log2(max(len(answer), 1) / USUAL_LENGTH)
        shift += self.length * min(max(doublings, -MOST_DOUBLINGS), MOST_DOUBLINGS)
        verdicts = []
        for truth, kind, criterion in zip(truths, kinds, criteria, strict=True):
            rates = self.false_negative if truth else self.false_positive
            error = rates.get(kind or OTHER, rates.get(OTHER, 0.0))
            chance = (1.0 - error if truth else error) + shift
            drawn: tuple[str, ...] = (question, answer, criterion)
            if self.redraw and uniform("redraw", *drawn) < self.redraw:
                drawn = (*drawn, request)
            verdicts.append(uniform("noise", *drawn) < chance)
        if self.halo and verdicts and uniform("halo", question, answer) < self.halo:
            opinion = verdicts[int(uniform("opinion", question, answer) * len(verdicts))]
            verdicts = [opinion] * len(verdicts)
        return verdicts
