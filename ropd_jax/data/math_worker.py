"""The child process of `named` and of ``evaluation.graders.math_pool``: math-verify on two answers."""

from __future__ import annotations

import functools
from typing import Any


class UnreadableGold(Exception):
    """math-verify finds no expression in the gold answer, so that any answer would be "wrong"."""


def verify(gold: str, answer: str) -> bool:
    """True if math-verify finds the two equal. The gold answer comes first: math-verify is not symmetric."""
    from math_verify import verify as same

    known = list(_parsed(gold))
    if not known:
        raise UnreadableGold
    return bool(same(known, list(_parsed(answer)), timeout_seconds=None, raise_on_error=True))


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    how = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return tuple(parse(f"\\boxed{{{text}}}", extraction_config=how, parsing_timeout=None))


def warm_up() -> None:
    """Imports everything, about a second, before the time of the first pair starts."""
    verify("1", "1")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """``{"gold": "1/2", "answer": "0.5"}`` -> ``{"right": true}``; math-verify's exceptions propagate."""
    try:
        return {"right": verify(request["gold"], request["answer"])}
    except UnreadableGold:
        return {"error": "gold"}
