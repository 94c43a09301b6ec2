r"""The letter that an answer to a multiple-choice question states, A to J.

The letter is read where `ropd_jax.data.final_answer` finds a statement. Two more forms are recognized here:
``Option C`` and ``C is correct`` as a sentence, and a last line that is only a letter in bold, in brackets or in LaTeX.
More than one letter ("C or D", "A and B") is not a choice, nor is a letter that starts a word or a sign ("B+", "A good
estimate"). The table is in docs/graders.md.
"""

from __future__ import annotations

import re

from ropd_jax.data.final_answer import stated
from ropd_jax.data.plain import plain

LETTERS = "ABCDEFGHIJ"

_LABEL = r"(?:(?:the|my|is|final|correct|right|best|answer|option|choice|letter)\b[\s:]*)*"
_CHOICE = re.compile(
    rf"(?i:{_LABEL})(?P<left>[(\[{{]?)\s*(?:(?P<upper>[A-J])|(?P<lower>[a-j]))(?:\s*(?P<right>[)\]}}]))?(?P<rest>.*)",
    re.DOTALL,
)
_TAIL = re.compile(  # what can follow the letter
    r"[\s.,;:!*_\"']*$|\s*[.):\]]+\s+\S.*|\s+-+\s+\S.*|:\s*\S.*|\s*\(.*|\s*=\s+\S.*|[,;]\s+(?!and\b|or\b)[a-z].*"
    r"|,?\s+(?:because|since|as|so|which|where|not|rather than)\b.*"
    r"|\s+is\s+(?:the\s+)?(?:\w+\s+)?(?:correct|right|best|true|answer|choice|option)\b.*",
    re.DOTALL,
)
_OTHER = r"(?:(?:option|choice|answer)\s+)?[(\[]?\s*[A-J]\b(?!['\u2019\w])"
_SECOND = re.compile(  # another letter right after it
    rf"^\W*(?:(?i:or|and|nor|maybe|possibly|perhaps|alternatively|but)\b|[/&,+;|-]+\s*{_OTHER}\s*(?:\W|$))"
    rf"|\b(?i:or|maybe|possibly|perhaps)\s+{_OTHER}[\s).\]:,;]*(?:$|[).:\]])|\band\s+(?:\([A-J]\)|[A-J]\))"
)
_RETRACTED = re.compile(  # "C. No, wait: D"
    rf"\b(?i:wait|actually|correction|scratch that|on second thoughts?|hmm+)\b\W{{0,4}}"
    rf"(?:(?i:no|it's|it|is|the|correct|right)\b\W{{0,4}}){{0,4}}{_OTHER}\s*(?:\W|$)"
)
_INSTEAD = re.compile(rf"\b(?i:not|rather than|instead of)\s+{_OTHER}")
_MARKED = re.compile(  # a last line that is only a formatted letter; a bare one is not a statement
    r"[ \t]*(?:\*\*|__|\\boxed|\\text|\\math|\$|\\\(|\(|\[|`|(?i:option|choice)\b)"
)
_NAMED = re.compile(
    r"(?m)(?:^|(?<=[.!?,:;]\s)|(?i:\b(?:so|thus|hence|therefore),?\s))[*_]{0,3}"
    r"(?:(?i:option|choice)\s+[(\[*_]{0,4}(?P<a>[A-J])[)\]*_]{0,4}|[(*_]{1,4}(?P<b>[A-J])[)*_]{1,4}|(?P<c>[A-J]))"
    r"\s+(?i:is\s+(?:the\s+)?(?:only\s+)?(?:correct|right|best)(?:\s+(?:one|answer|choice|option))?)\s*[.!*_]*$"
)


def last_choice(text: str, letters: str = LETTERS) -> str | None:
    """The letter that the text states; None if it states none, or one that is not in ``letters``.

    Args:
        text: an answer, without its thoughts.
        letters: those of the question's options, e.g. ``ABCD``.
    """
    content = stated(text, lambda content: letter_of(content) is not None)
    letter = None if content is None else letter_of(content)
    if content is None:
        lines = text.strip().splitlines()
        if lines and _MARKED.match(lines[-1]):
            letter = letter_of(lines[-1])
        if letter is None and (named := _NAMED.search(text.strip()[-500:])):
            letter = next(g for g in named.groups() if g)
    return letter if letter is not None and letter in letters else None


def letter_of(content: str) -> str | None:
    """The letter that the content of a statement chooses, in upper case; None if it chooses none or several."""
    content = plain(content).replace("\\", "").strip(" \"'")
    match = _CHOICE.fullmatch(re.sub(r"^([A-Ja-j])[\"']", r"\1", content))
    if match is None or (match["left"] and not match["right"]):
        return None
    rest, closed = match["rest"], match["right"] is not None
    more = bool(rest.strip(" .,;:!*_\"'"))
    if match["lower"] and more and not (closed and not match["left"]):  # "a good question"; "c) 5 m/s" is C
        return None
    fits = not rest[:1].isalnum() if closed else _TAIL.fullmatch(rest) is not None
    if not fits or _SECOND.search(_INSTEAD.sub("", rest)) or _RETRACTED.search(rest):
        return None
    if match["upper"] == "I" and not closed and more:
        return None  # the pronoun
    return (match["upper"] or match["lower"]).upper()
