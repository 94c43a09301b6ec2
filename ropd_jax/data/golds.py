"""The kind of a question's gold answer, which decides how answers are graded: decided only here.

    number       5, 1,000.5, 3/4, 656 nm        compared exactly, as fractions; units must match if both state one
    choice       C, (C)                         the stated letter
    expression   3x + 2, (1, 2), \\sqrt{2}      as texts, lists item by item, formulas by sympy in a sandboxed child
    name         Evelyn, even, nitric acid      as texts, up to letter case
    free_text    a sentence                     no comparison: a judge reads it, see `check_judged`

``data.task=exact`` treats free text as a name: the answer must match it exactly. With ``judge`` every gold answer is
free text (`ropd_jax.data.named`).
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from ropd_jax.data.named import EXACT, JUDGE, MATH
from ropd_jax.data.numbers import quantity
from ropd_jax.data.plain import plain
from ropd_jax.types import Prompt, UserError

log = logging.getLogger(__name__)

NUMBER, CHOICE, EXPRESSION, NAME, FREE_TEXT = "number", "choice", "expression", "name", "free_text"
MOST_WORDS = 3  # in a name
MOST_UNGRADED = 0.1  # largest share of free-text golds that a run without a judge leaves ungraded

_CHOICE = re.compile(r"\(?(?P<letter>[A-J])\)?[.):]?")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")
_FUNCTIONS = frozenset(
    [
        "sqrt",
        "sinh",
        "cosh",
        "tanh",
        "asin",
        "acos",
        "atan",
        "arcsin",
        "arccos",
        "arctan",
        "cbrt",
        "matrix",
        "pmatrix",
        "bmatrix",
    ]
)
_MATH = re.compile(r"[\d=^*/+\\(){}<>|\[\]_\u03c0\u221a\u221e\u2264\u2265-]")


@functools.lru_cache(maxsize=65_536)
def kind(gold: str) -> str:
    """The kind of a gold answer."""
    text = plain(gold)
    if _CHOICE.fullmatch(text):
        return CHOICE
    if quantity(gold) is not None:
        return NUMBER
    words = [w for w in _LONG_WORD.findall(_COMMAND.sub(" ", text)) if w.lower() not in _FUNCTIONS]
    if "\\begin" in text or (_MATH.search(text) and not words):
        return EXPRESSION
    items = [part.split() for part in text.split(",")]
    if len(text.split()) <= MOST_WORDS and not re.search(r"[.!?;]\s", text):
        return NAME
    return NAME if len(items) > 2 and all(len(item) == 1 for item in items) else FREE_TEXT


def kind_of(prompt: Prompt) -> str | None:
    """The kind of a prompt's gold answer; None without one, or for a reasoning-gym item, whose task has a scorer.

    A row of RaR has a reference and a rubric instead of a gold answer: free text. So is all with ``data.task=judge``.
    """
    if prompt.task == JUDGE or (prompt.answer is None and prompt.solution and "criteria" in prompt.metadata):
        return FREE_TEXT
    if prompt.answer is None or "reasoning_gym" in prompt.metadata:
        return None
    found = kind(prompt.answer)
    if found == FREE_TEXT and prompt.task == MATH:
        return EXPRESSION
    return NAME if found == FREE_TEXT and prompt.task == EXACT else found


def reference_of(prompt: Prompt) -> str:
    """The free-text gold for the held-out judge; "" for any other kind."""
    return (prompt.answer or prompt.solution) if kind_of(prompt) == FREE_TEXT else ""


def letter(gold: str) -> str:
    """The letter of a gold answer of the kind ``choice``."""
    match = _CHOICE.fullmatch(plain(gold))
    assert match is not None
    return match["letter"]


def gold_text(answer: Any, where: str) -> str | None:
    """The gold answer of a row as text; None for null.

    Args:
        where: file and row, for the message.

    Raises:
        UserError: neither text nor number, or NaN, infinite, empty, or a division by zero, so that no answer could
            ever be right.
    """
    if answer is None:
        return None
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UserError(f"{where}: answer is {answer!r:.80}; expected a string, a number or null")
    if isinstance(answer, float):
        if not math.isfinite(answer):
            raise UserError(f"{where}: answer is {answer}, which no answer equals; expected a number, or null for none")
        return _decimal(answer)
    text = str(answer)
    if not plain(text) or plain(text).casefold() in ("nan", "+nan", "-nan"):
        raise UserError(f"{where}: answer is {text!r}, which no answer equals; expected an answer, or null for none")
    if re.fullmatch(r"[-+]?\s?\d+\s?/\s?0+", plain(text)):
        raise UserError(f"{where}: answer is {text!r}, a division by zero; expected an answer, or null for none")
    return text


def _decimal(answer: float) -> str:
    """``0.00001`` instead of Python's ``1e-05``."""
    return format(Decimal(repr(answer)), "f") if 1e-30 < abs(answer) < 1e30 else repr(answer)


# ---------------------------------------------------------------------------------------------------- a judge for it


def check_judged(train: Sequence[Prompt], heldout: Sequence[Prompt], *, judge: bool, exact_method: str = "") -> None:
    """Rejects golds that nothing in the run can grade.

    Args:
        judge: whether ``teacher.judge.model`` is set.
        exact_method: the method's name if its reward is the exact grade (rlvr), else "".

    Raises:
        UserError: the golds are free text, and there is no judge, or the reward needs exact golds.
    """
    if exact_method and (found := _free(train)):
        raise UserError(
            f"{found}; method={exact_method} rewards by exact comparison, so no answer would be rewarded: choose a "
            "method that uses a teacher (ropd, rar), or data.task=exact if an answer must match exactly"
        )
    if not judge and (found := _free(heldout)):
        raise UserError(
            f"{found}; free text can't be graded by comparison: name a judge with --config.teacher.judge.model=MODEL "
            "(docs/graders.md), or set data.task=exact if an answer must match exactly"
        )


def _free(prompts: Sequence[Prompt]) -> str:
    """The message if too many golds are free text, else ""."""
    known = [p for p in prompts if kind_of(p) is not None]
    free = [p for p in known if kind_of(p) == FREE_TEXT]
    if len(free) <= MOST_UNGRADED * len(known):
        if free:
            log.warning(
                "%d of %d gold answers are free text (%s, for example) and stay ungraded",
                len(free),
                len(known),
                free[0].id,
            )
        return ""
    shown = " ".join(reference_of(free[0]).split())
    return f"{len(free)} of {len(known)} gold answers are free text (the first: {free[0].id}, {shown!r:.60})"
