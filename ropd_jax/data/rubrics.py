"""Rubrics that come with the data: published ones (RaR), and a user's own in the rows of a JSONL file.

    {"question": "...", "rubric": [{"criterion": "States the unit.", "points": 2}]}
    {"question": "...", "rubric": [{"title": "Essential", "description": "Names the law.", "weight": 5}]}     RaR

They are stored in ``Prompt.metadata["criteria"]``. `published_rubric` turns them into a rubric for the verifier.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

from ropd_jax.types import Criterion, Judgement, Prompt, Rubric, UserError

log = logging.getLogger(__name__)

TEACHER, PUBLISHED = "teacher", "published"  # the source of a rubric
SOURCES = (TEACHER, PUBLISHED)


@dataclasses.dataclass(frozen=True)
class RarCriterion:
    """One criterion of RaR. ``points`` is |weight|; ``met_is_good`` is None if its polarity is not known.

    Pitfalls have weight -1 or -2 in both sets. But in Science most are worded as virtues ("must not imply ..."), so a
    signed sum would penalize good answers; in Medicine most are worded as faults ("incorrectly states ...").
    """

    title: str
    text: str
    points: int
    met_is_good: bool | None


_VIRTUE = re.compile(r"\b(must|should|does|do|may|can) not\b|\bavoids?\b|\brefrains?\b|\bwithout\b|\bcorrectly\b", re.I)
_FAULT = re.compile(
    r"\b(incorrect(ly)?|wrong(ly)?|fails?|failing|omits?|omitting|neglects?|ignores?|ignoring|mistaken(ly)?|confus\w+|"
    r"(does|do) not (mention|include|address|state|explain|consider|recognize|provide|specify|identify))\b",
    re.I,
)


def rar_criterion(title: str, text: str, weight: int) -> RarCriterion:
    """A criterion; if its weight is negative, its polarity is read from its words.

    >>> rar_criterion("Pitfall", "The response must not imply a violation.", -1).met_is_good
    True
    >>> rar_criterion("Pitfall", "Incorrectly states that the dose is safe.", -2).met_is_good
    False
    """
    if weight >= 0:
        return RarCriterion(title, text, weight, True)
    virtue, fault = bool(_VIRTUE.search(_FAULT.sub("", text))), bool(_FAULT.search(text))
    prohibits = re.search(r"\b(must|should) not\b|\bavoids?\b", text, re.I) is not None
    good = True if prohibits or (virtue and not fault) else False if fault and not virtue else None
    return RarCriterion(title, text, -weight, good)


def rar_score(criteria: Sequence[RarCriterion], met: Sequence[bool | None]) -> float | None:
    """Points earned over points possible, for criteria of known polarity: in 0..1, good answers are never penalized.

    None if no criterion has a known polarity, or if one of those has no verdict.
    """
    known = [(c, m) for c, m in zip(criteria, met, strict=True) if c.met_is_good is not None]
    total = sum(c.points for c, _ in known)
    if not total or any(m is None for _, m in known):
        return None
    return sum(c.points for c, m in known if m == c.met_is_good) / total


# ------------------------------------------------------------------------------------------------- for the verifier


def usable(prompt: Prompt) -> tuple[RarCriterion, ...]:
    """The prompt's criteria of known polarity, each worded so that it is good to meet it.

    For a fault ("Incorrectly states ...") the verifier is asked whether it is avoided. Then true is good for every
    criterion, as for those that a teacher writes, and readers of the verdicts need no signs.
    """
    return tuple(
        c if c.met_is_good else dataclasses.replace(c, text=f"The answer avoids this fault: {c.text}", met_is_good=True)
        for c in prompt.metadata.get("criteria", ())
        if c.met_is_good is not None and c.points
    )


def published_rubric(prompt: Prompt) -> Rubric | None:
    """The prompt's own rubric; None if it has none, or no criterion of known polarity."""
    criteria = usable(prompt)
    found = [Criterion(f"c{i}", c.text, c.points, c.title) for i, c in enumerate(criteria, 1)]
    return Rubric(tuple(found)) if found else None


def check_rubrics(prompts: Sequence[Prompt], key: str) -> None:
    """Rejects prompts without a rubric; logs the number of rubrics without a usable criterion.

    Args:
        key: the config key that selects rubrics of the data.

    Raises:
        UserError: with the first such prompt and their number.
    """
    without, unusable = [], []
    for p in prompts:
        if "criteria" not in p.metadata:
            without.append(p.id)
        elif published_rubric(p) is None:
            unusable.append(p.id)
    if without or len(unusable) == len(prompts):
        raise UserError(
            f"{key}='published', but {len(without) or len(prompts)} of {len(prompts)} prompts have no usable rubric "
            f"(the first: {(without or unusable)[0]}); expected rows with rubric: [{{criterion, points}}] "
            f"(docs/data.md), or {key}='teacher'"
        )
    if unusable:
        log.warning(
            "for %d prompts (%s, for example) it is unknown whether meeting a criterion is good; their groups are "
            "unscored",
            len(unusable),
            unusable[0],
        )


def no_criteria(n: int) -> Judgement:
    """The judgement of ``n`` answers to a prompt without a usable criterion."""
    return Judgement(rewards=(None,) * n, causes=("no_criteria",) * n)


def own_rubric(value: Any, where: str) -> tuple[RarCriterion, ...]:
    """The criteria of a row: ``{criterion, points}``, or RaR's ``{title, description, weight}``.

    A criterion with negative points is a fault: meeting it is bad.

    Raises:
        UserError: wrong form, an empty text, or points that are not a nonzero whole number.
    """
    form = "[{criterion: a text, points: a whole number, not 0}, ...]"
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: rubric is {value!r:.60}; expected {form}")
    found = []
    for n, row in enumerate(value, 1):
        own = row if isinstance(row, dict) else {}
        text, points = own.get("criterion", own.get("description")), own.get("points", own.get("weight"))
        if isinstance(points, float) and points.is_integer():
            points = int(points)
        whole = isinstance(points, int) and not isinstance(points, bool)
        if not isinstance(text, str) or not text.strip() or not points or not whole:
            raise UserError(f"{where}: criterion {n} is {row!r:.80}; expected rubric: {form}")
        weight = int(points)
        title = str(own.get("category") or own.get("title") or "")
        if "criterion" in own:
            found.append(RarCriterion(title, text, abs(weight), weight > 0))
        else:
            found.append(rar_criterion(title, text, weight))
    return tuple(found)
