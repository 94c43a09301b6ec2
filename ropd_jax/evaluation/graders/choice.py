"""The letter chosen by an answer to a multiple-choice question.

``last_choice`` is what we grade by: the letter of the last statement in an answer, by the grammar of
`ropd_jax.data.choices`. ``first_choice_original`` is the published regular expression of simple-evals. It is kept
because published figures are made with it: it takes the *first* match, reads ``Answer: Both`` as B, and does not see
``**Answer:** C``, ``Answer: (C)`` or ``Answer: \\boxed{C}``.
"""

from __future__ import annotations

import re

from ropd_jax.data import choices
from ropd_jax.data.final_answer import without_open_thought
from ropd_jax.types import answer_of

_ORIGINAL = re.compile(r"(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?")


def last_choice(text: str, letters: str = choices.LETTERS) -> str | None:
    """The letter that the text states, or None. Thoughts are not read.

    Args:
        letters: the letters of the question's options.
    """
    return choices.last_choice(answer_of(text), letters)


def first_choice_original(text: str) -> str | None:
    """The answer as simple-evals reads it; None if the text states none before a thought that never ends."""
    match = _ORIGINAL.search(without_open_thought(text))
    return match.group(1).upper() if match else None
