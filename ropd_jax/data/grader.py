"""Whether an answer is right, from the gold answer alone: no teacher, no model.

``grade`` reads the final answer out of the text (the last of: a line ``Answer: ...``, ``#### ...``, ``\\boxed{...}``,
``answer is NUMBER``) and compares it with the gold answer as a number, or else as text. reasoning-gym tasks whose
answers have a form of their own (fractions in lowest terms, sorted lists, ...) are judged by the task's scorer, where
only a full 1.0 counts: its partial scores reward any text that contains the gold answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

from ropd_jax.types import Prompt

LONGEST = 200  # characters of a final answer; longer ones are wrong, and cost no time

# reasoning-gym tasks whose gold answer is one number: exact comparison, the scorer is not asked
NUMBER_TASKS = frozenset(
    ("basic_arithmetic", "chain_sum", "count_bits", "count_primes", "gcd", "gsm_symbolic", "lcm", "leg_counting")
    + ("letter_counting", "products", "simple_equations")
)

_MARK = re.compile(
    r"(?im)^[ \t>*_#-]*(?:final[ \t]+)?answer[ \t*_]*[:=][ \t*_]*(?P<line>\S[^\n]*)|####[ \t]*(?P<gsm>\S[^\n]*)"
    r"|\banswer is:?[ \t*_$]*(?P<said>[+-]?\d[\d,]*(?:\.\d+)?)"
)
_BRACE = re.compile(r"\\boxed\s*\{|\\[{}\\]|[{}]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_FRACTION = re.compile(r"([+-]?\d+)/(\d+)")


def grade(prompt: Prompt, text: str) -> bool | None:
    """True or False; None where the prompt carries nothing to grade by (no gold answer, no scorer)."""
    entry = prompt.metadata.get("reasoning_gym")
    if entry is not None and prompt.task not in NUMBER_TASKS:
        return _scored(prompt.task, entry, final_answer(text))
    if prompt.answer is None:
        return None
    found = final_answer(text)
    return found is not None and same(found, prompt.answer)


def final_answer(text: str) -> str | None:
    """What the text gives as its answer, a box around it removed; None if it marks none, or one over 200 characters.

    A number in the middle of a sentence is not an answer: the last number of a wrong solution is right too often.
    """
    last = None
    for match in _MARK.finditer(text):
        last = match
    box_at, box = last_box(text)
    if last is None or (box is not None and box_at > last.end()):
        found = box
    else:
        found = last.group("line") or last.group("gsm") or last.group("said")
        _, inner = last_box(found)
        if inner is not None:
            found = inner
    if found is None or len(found) > LONGEST:
        return None
    return found.strip().strip("*_`").strip() or None


def last_box(text: str) -> tuple[int, str | None]:
    r"""Place and content of the last ``\boxed{...}`` that closes, an outer box off; (-1, None) without one.

    One pass over the text: braces are matched by a stack, ``\{`` and ``\}`` are characters and not braces.
    ``\boxed5``, ``\fbox{5}`` and a box that never closes are none.
    """
    opened: list[tuple[int, int] | None] = []  # of each open brace None, or (place of the box, first of its content)
    closed: tuple[int, int, int] | None = None
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}":
            if opened and (box := opened.pop()) is not None:
                closed = (*box, match.start())
        elif token == "{":
            opened.append(None)
        elif token.endswith("{") and token != "\\{":
            opened.append((match.start(), match.end()))
    if closed is None:
        return -1, None
    at, first, end = closed
    inner = last_box(text[first:end])[1] if end - first <= LONGEST else None
    return at, text[first:end] if inner is None else inner


def same(found: str, gold: str) -> bool:
    """Equal as numbers (``1,000`` is ``1000.0``, ``1/2`` is ``0.5``), or else as text but for case and spaces."""
    a, b = number(found), number(gold)
    if a is not None and b is not None:
        return a == b
    return _plain(found).casefold() == _plain(gold).casefold()


def number(text: str) -> Fraction | None:
    """The exact value of a plain decimal number or a fraction of integers; None for any other text."""
    text = _plain(text).replace(" ", "")
    if len(text) > LONGEST:
        return None
    text = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text)
    if fraction := _FRACTION.fullmatch(text):
        top, bottom = int(fraction[1]), int(fraction[2])
        return Fraction(top, bottom) if bottom else None
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def _plain(text: str) -> str:
    """Without dollar signs, a final full stop and doubled spaces; a minus is an ASCII minus."""
    text = text.replace("\u2212", "-").replace("\\$", "").replace("$", "").replace("\\,", "")
    return " ".join(text.split()).rstrip(".").strip()


def _scored(task: str, entry: dict, found: str | None) -> bool:
    """The task's own scorer, full marks only. A scorer that raises on the student's text says "wrong"; one that
    raises on its own gold answer is broken, and its error is not hidden."""
    if found is None:
        return False
    from reasoning_gym import get_score_answer_fn

    score = get_score_answer_fn(task)
    try:
        return score(found, entry) == 1.0
    except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError, RecursionError):
        if entry["answer"] is not None:
            score(entry["answer"], entry)
        return False
