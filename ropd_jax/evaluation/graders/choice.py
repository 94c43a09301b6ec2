"""The letter that an answer to a multiple-choice question gives.

``last_choice`` is what we grade by: the last ``Answer: X`` whose X is a word of its own. ``first_choice_original``
is the published regular expression of simple-evals, which is kept because published figures are made with it: it
takes the *first* match, reads ``Answer: Both`` as B, and does not see ``**Answer:** C``, ``Answer: (C)`` or
``Answer: \\boxed{C}``.
"""

from __future__ import annotations

import re

from ropd_jax.types import answer_of

_LAST = re.compile(
    r"(?i:\banswer)(?:\s+is)?[ \t*_]*:?[ \t*_]*(?:\$?\\boxed\{|\$?\\text\{|[($\[{*_ \t])*"
    r"(?:(?P<upper>[A-D])(?![\w'])|(?P<lower>[a-d])(?=[)\]}$*_. \t]*(?:\n|$)))"
)
_BOX = re.compile(r"\\boxed\{\s*(?:\\text(?:bf)?\{\s*)?\(?(?P<upper>[A-D])\)?\s*\}")
_ORIGINAL = re.compile(r"(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?")


def last_choice(text: str) -> str | None:
    """The letter of the last ``Answer: X`` or ``\\boxed{X}``; None without one. Thoughts are not read."""
    last = None
    answer = answer_of(text)
    for match in (*_LAST.finditer(answer), *_BOX.finditer(answer)):
        if last is None or match.end() > last.end():
            last = match
    return None if last is None else next(g for g in last.groupdict().values() if g).upper()


def first_choice_original(text: str) -> str | None:
    """The answer as simple-evals reads it."""
    match = _ORIGINAL.search(text)
    return match.group(1).upper() if match else None
