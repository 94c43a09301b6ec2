r"""Grading of mathematics: only the last balanced ``\boxed{}`` counts, compared with the gold answer.

    1. ``boxed``    the content of the last box, without dollar signs, spacing commands and final punctuation
    2. ``decide``   decides without algebra: no box, equal text, two plain numbers (exactly, as fractions)
    3. ``grade_math``  sends the rest to math-verify in a pool of processes (``math_pool``)

An answer without a box is wrong, whatever numbers it contains. Whatever math-verify accepts is right: ``x=5`` for 5,
``1+2+3+4`` for 10, 0.333333 for 1/3, ``(1,2)`` for ``{1,2}``. This module adds: plain numbers are equal only if exactly
equal (math-verify rounds to 6 decimals); ``3,``, ``3.`` and ``3\%`` are 3; spacing commands are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from ropd_jax.data.final_answer import last_box, without_open_thought
from ropd_jax.data.numbers import LONGEST, number
from ropd_jax.evaluation.graders.math_pool import Verdict, verify_all
from ropd_jax.types import answer_of

_DRESS = re.compile(
    r"(?P<kept>\\\\)(?:\[-?[\d.]+ ?[a-z]{2}\])?"  # the end of a matrix's row: its second backslash begins no command
    r"|(?P<comma>,)\s?\\! ?|(?P<nothing>\\?\$)|\\[,;:! ]|\\q?quad(?![a-zA-Z])|~"
)
_END = re.compile(r"((?<!\\right)[.,;: ]|\\?%)+$")  # "\right." closes a bracket


def boxed(text: str) -> str | None:
    """The final answer of a text, "" for an empty box, None without one. Thoughts before ``</think>`` are not read.

    >>> boxed(r"\\boxed{5}. Wait, no: \\boxed{7.}")
    '7'
    """
    content = last_box(without_open_thought(answer_of(text)))[1]
    return None if content is None else _plain(content)


def decide(gold: str, answer: str | None) -> Verdict | tuple[str, str]:
    """The verdict if it needs no algebra, else the pair (gold, answer) for math-verify."""
    if answer is None:
        return Verdict(False, "no_box")
    if len(answer) > LONGEST:
        return Verdict(False, "too_long")
    gold = _plain(gold)
    if answer == gold:
        return Verdict(True)
    if not answer:
        return Verdict(False, "empty")
    a, b = _value(gold), _value(answer)
    if a is not None and b is not None:
        return Verdict(a == b, "" if a == b else "different")
    return gold, answer


def grade_math(
    golds: Sequence[str],
    texts: Sequence[str],
    *,
    workers: int = 0,
    timeout_s: float = 5.0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Verdict]:
    """A verdict for each text against the gold answer at the same index; ``right`` None is ungraded.

    Args:
        workers, timeout_s: see ``math_pool.verify_all``.
        report: called with (done, of), counted in pairs that need math-verify.
    """
    answers = [boxed(text) for text in texts]
    return compare(list(zip(golds, answers, strict=True)), workers=workers, timeout_s=timeout_s, report=report)


def compare(
    asked: Sequence[tuple[str, str | None]],
    *,
    workers: int = 0,
    timeout_s: float = 5.0,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[Verdict]:
    """A verdict for each (gold answer, final answer); the arguments are those of `grade_math`."""
    decided = [decide(gold, answer) for gold, answer in asked]
    pairs = [pair for pair in decided if not isinstance(pair, Verdict)]
    of = len(set(pairs))
    found = verify_all(pairs, workers=workers, timeout_s=timeout_s, report=lambda done: report(done, of))
    verified = iter(found)
    return [verdict if isinstance(verdict, Verdict) else next(verified) for verdict in decided]


def _plain(text: str) -> str:
    text = _DRESS.sub(lambda m: m["kept"] or m["comma"] or ("" if m["nothing"] else " "), text.replace("\u2212", "-"))
    return _END.sub("", " ".join(text.split())).strip()


def _value(text: str) -> Fraction | None:
    """The exact value of a plain number, ``1e-7`` and ``1 000`` included; None for LaTeX, which math-verify reads."""
    return None if "\\" in text else number(text)
