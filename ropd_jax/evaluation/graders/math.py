r"""Right or wrong in mathematics: only the last balanced ``\boxed{}`` counts, compared with the gold answer.

    1. ``boxed``    the content of the last box, without dollar signs, spacing commands and final punctuation
    2. ``decide``   settles what needs no algebra: no box, equal text, two plain numbers (exactly, as fractions)
    3. ``grade_math``  the rest by math-verify in a pool of processes (``math_pool``)

Without a box an answer is wrong, whatever numbers it holds. What math-verify forgives is forgiven: ``x=5`` for 5,
``1+2+3+4`` for 10, 0.333333 for 1/3, ``(1,2)`` for ``{1,2}``. Not by it but here: plain numbers are equal only
exactly (it rounds to 6 decimals), ``3,``, ``3.`` and ``3\%`` are 3, and spacing commands count for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from ropd_jax.data.final_answer import last_box, without_open_thought
from ropd_jax.data.numbers import LONGEST, number
from ropd_jax.evaluation.graders.math_pool import Verdict, verify_all
from ropd_jax.types import answer_of

_DRESS = re.compile(r"(?P<kept>\\\\)|(?P<nothing>\\?\$)|\\[,;:! ]|\\q?quad(?![a-zA-Z])|~")  # "\\\\" ends a matrix's row
_END = re.compile(r"((?<!\\right)[.,;: ]|\\?%)+$")  # "\right." closes a bracket
_POWER = re.compile(r"(?P<m>[+-]?(\d+\.?\d*|\.\d+))[eE](?P<e>[+-]?\d{1,3})")


def boxed(text: str) -> str | None:
    """The final answer of a text, "" for an empty box, None without a box. Thoughts before ``</think>`` are not read.

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
    """A verdict for each text against the gold answer at the same place; ``right`` None is ungraded.

    Args:
        workers, timeout_s: see ``math_pool.verify_all``.
        report: called with (done, of) of the pairs that need math-verify.
    """
    decided = [decide(gold, boxed(text)) for gold, text in zip(golds, texts, strict=True)]
    pairs = [pair for pair in decided if not isinstance(pair, Verdict)]
    of = len(set(pairs))
    found = verify_all(pairs, workers=workers, timeout_s=timeout_s, report=lambda done: report(done, of))
    verified = iter(found)
    return [verdict if isinstance(verdict, Verdict) else next(verified) for verdict in decided]


def _plain(text: str) -> str:
    text = _DRESS.sub(lambda m: m["kept"] or ("" if m["nothing"] else " "), text.replace("\u2212", "-"))
    return _END.sub("", " ".join(text.split())).strip()


def _value(text: str) -> Fraction | None:
    """The exact value of a plain number, ``1e-7`` and ``1 000`` included."""
    joined = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text)
    if power := _POWER.fullmatch(joined):
        return Fraction(power["m"]) * Fraction(10) ** int(power["e"])
    return number(joined)
