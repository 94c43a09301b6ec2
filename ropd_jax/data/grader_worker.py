"""The child process of ``data.grader``: it grades the reasoning-gym tasks whose answers must be parsed.

    request   {"task": "countdown", "answer": "94*4 - 61 - 6", "entry": the item, pickled by the parent process}
    request   {"formula": "2 + 3x", "gold": "3x + 2"}: two formulas, equal or not
    reply     {"right": true}, or {"error": ...} if that cannot be decided

Most tasks are scored by reasoning-gym's own scorer; only a full 1.0 counts. Nine of its scorers would run the answer as
a program (``eval``, ``sympy.parse_expr``) and are never called. Four of them give full marks only for an equal text, so
``data.grader`` compares texts. The other five are in `CHECKS`: they read the answer with ``data.expressions``.
"""

from __future__ import annotations

import base64
import functools
import pickle
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from ropd_jax.data import expressions
from ropd_jax.data.expressions import NotAFormula, TooLarge, parse, to_sympy

# raised by scorers on texts that are not answers to their task
NOT_AN_ANSWER = (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError)


class BrokenScorer(Exception):
    """A scorer that fails on its own gold answer. The cause is its error."""


class NoFormula(Exception):
    """The gold answer is not in the grammar, so an answer outside it is not necessarily wrong."""


def warm_up() -> None:
    """Imports reasoning-gym and sympy, 1 to 4 seconds."""
    import reasoning_gym.factory  # noqa: F401
    import sympy  # noqa: F401


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request."""
    if "formula" in request:
        try:
            return {"right": same_formula(request["formula"], request["gold"])}
        except TooLarge:
            return {"error": "too_large"}
    entry = pickle.loads(base64.b64decode(request["entry"]))  # from the parent process, never from a student or a file
    try:
        return {"right": right(request["task"], entry, request["answer"])}
    except TooLarge:
        return {"error": "too_large"}
    except NoFormula:
        return {"error": "no_formula"}
    except BrokenScorer as error:
        cause = error.__cause__
        return {"error": "broken", "message": f"{type(cause).__name__}: {cause}"[:300]}


def right(task: str, entry: dict[str, Any], found: str) -> bool:
    """True if ``found`` solves the task.

    Raises:
        TooLarge: the numbers are too large to decide.
        NoFormula: neither ``found`` nor the gold answer is in the grammar.
        BrokenScorer: the scorer fails on its own gold answer.
    """
    if check := CHECKS.get(task):
        try:
            return check(found, entry)
        except TooLarge:
            raise
        except (NotAFormula, ArithmeticError, TypeError):
            _check_formula(entry["answer"])
            return False
    score = _scorer(task)
    try:
        return bool(score(found, entry) == 1.0)
    except NOT_AN_ANSWER:
        _check_gold(score, entry)
        return False


def same_formula(found: str, gold: str) -> bool:
    """True if both are formulas of the grammar, written as in mathematics (``3x^2``), and their difference is 0.

    Raises:
        TooLarge: the numbers are too large to decide.
    """
    import sympy

    try:
        ours, theirs = (to_sympy(parse(expressions.spelled_out(text))) for text in (found, gold))
        return bool(sympy.simplify(ours - theirs) == 0)
    except TooLarge:
        raise
    except (NotAFormula, ArithmeticError, TypeError, ValueError):
        return False


def _check_formula(gold: str | None) -> None:
    """Raises NoFormula if the gold answer is not in the grammar either."""
    try:
        if gold:
            parse(gold)
    except NotAFormula:
        raise NoFormula from None


@functools.cache
def _scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(task)


def _check_gold(score: Callable[[str, dict[str, Any]], float], entry: dict[str, Any]) -> None:
    """Raises BrokenScorer if the scorer fails on the gold answer as well, so that the student is not at fault."""
    if entry["answer"] is None:
        return
    try:
        score(entry["answer"], entry)
    except Exception as error:
        raise BrokenScorer from error


def countdown(found: str, entry: Mapping[str, Any]) -> bool:
    """The formula uses each given number once and has exactly the target's value."""
    tree = parse(found)
    if sorted(expressions.numbers(tree)) != sorted(entry["metadata"]["numbers"]):
        return False
    return expressions.value(tree) == Fraction(str(entry["metadata"]["target"]))


def puzzle24(found: str, entry: Mapping[str, Any]) -> bool:
    """The formula uses each of the four given numbers once and has exactly the value 24."""
    tree = parse(found)
    return sorted(expressions.numbers(tree)) == sorted(entry["metadata"]["numbers"]) and expressions.value(tree) == 24


def integration(found: str, entry: Mapping[str, Any]) -> bool:
    """The derivative of the formula is the integrand; any constant of integration is right.

    ``Integral(f, x)`` is outside the grammar, because it repeats the question. About one gold answer in eight has that
    form; then an answer outside the grammar is ungraded, because there might be no formula.
    """
    import sympy

    metadata = entry["metadata"]
    derivative = sympy.diff(to_sympy(parse(found)), sympy.Symbol(metadata["variable"]))
    return bool(sympy.simplify(derivative - to_sympy(parse(metadata["integrand"]))) == 0)


def polynomial(found: str, entry: Mapping[str, Any]) -> bool:
    """The formula has the terms of the gold answer: a product that is not multiplied out is not an answer."""
    return bool(to_sympy(parse(found)) == to_sympy(parse(entry["answer"])))


CHECKS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "countdown": countdown,
    "puzzle24": puzzle24,
    "simple_integration": integration,
    "intermediate_integration": integration,
    "polynomial_multiplication": polynomial,
}
