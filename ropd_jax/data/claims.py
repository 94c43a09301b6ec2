r"""Whether a final answer gives its value as the one answer, or also denies it, takes it back or offers another one.

    34 or 68, 68 (or 34), 34 \text{ is wrong}, > 34, \neq 34, 68 <!-- 34 -->     no single claim
    C. No, wait: D                                                              taken back

The numbers of `ropd_jax.data.numbers` are read completely, so these forms are not numbers. This module is for the other
graders: math-verify ignores such words, and finds the gold answer in any of the texts above.
"""

from __future__ import annotations

import re

_OTHER_WORDS = re.compile(
    r"\b(?:or|not|either|neither|nor|wrong|incorrect|false|maybe|perhaps|possibly|probably|unless|except|alternatively"
    r"|wait|actually|instead|but|at least|at most|more than|less than|between)\b",
    re.I,
)
_RELATION = re.compile(r"[<>\u2260\u2264\u2265]|!=|\\(?:neq?|lt|gt|leq?|geq?|leqslant|geqslant|not)(?![a-zA-Z])")
_SEVERAL = re.compile(r"[,;]|\\pm|\\mp|\u00b1|\b(?:or|and)\b|\\cup|\\infty")  # a gold answer with several values
_RANGE = re.compile(
    r"^\s*\$?\s*(?:\\left)?\s*(?:[(\[]|\\\{|\\langle|\\begin)|\\in(?![a-z])|\\cup"
)  # it can be written as a relation
_RETRACTS = re.compile(
    r"\W*(?:no\b\s*[,.:;!-]|nope\b|wait\b|actually\b|hmm+\b|scratch that\b|correction\b|on second thoughts?\b|sorry\b"
    r"|i was wrong\b|(?:that|this|it) (?:is|was) (?:wrong|incorrect|not right|not correct)\b)",
    re.I,
)


def is_single(found: str, gold: str) -> bool:
    """True if the final answer claims one value, or if the gold answer has the same words and relations.

    >>> is_single("34 or 68", "34"), is_single("1 or -1", "1, -1"), is_single("34", "34")
    (False, True, True)
    """
    if _RELATION.search(found) and not _RELATION.search(gold) and not _RANGE.search(gold):
        return False
    known = {word.lower() for word in _OTHER_WORDS.findall(gold)}
    words = {word.lower() for word in _OTHER_WORDS.findall(found)} - known
    return not (words - {"or"} if _SEVERAL.search(gold) else words)


def is_retracted(rest: str) -> bool:
    """True if the text after a statement takes it back.

    >>> is_retracted(". No, wait: 7"), is_retracted(". No prime divides it.")
    (True, False)
    """
    return _RETRACTS.match(rest) is not None
