"""Kinds of criteria: what a verifier has to look for. A verifier's error rates depend on the kind.

    final_result         the result at the end                      The final answer is 42.
    intermediate_fact    a value or a fact on the way               States that 17 pens are left after the sale.
    method               how the answer is reached                  Adds the prices before it takes the discount.
    form                 how the answer looks                       The last line is "Answer: N".
    constraint           a requirement of the question              Uses at most 30 words.
    no_error             the absence of a mistake                   Every calculation in it is correct.

A rubric names categories freely, and often none of these. `kind_of` uses keywords, first in the category and then in
the text. It is a rule for statistics, not for rewards.
"""

from __future__ import annotations

import re

KINDS = ("final_result", "intermediate_fact", "method", "form", "constraint", "no_error")

_CATEGORIES = (  # (kind, pattern); the first match in a category decides
    ("no_error", r"\b(?:no|absence|without|free)\b.*\b(?:errors?|mistakes?|hallucinations?)\b|\berrors?\b|accuracy"),
    ("final_result", r"\b(?:final|results?|outcomes?|conclusions?)\b|^(?:correct )?answer$|^correctness$"),
    ("intermediate_fact", r"\b(?:intermediate|steps?|facts?|factual|values?|content|details?)\b"),
    ("method", r"\b(?:methods?|approach|reasoning|strategy|procedure|derivation|justification|explanation|logic)\b"),
    ("constraint", r"\b(?:constraints?|requirements?|instructions?|limits?|length|rules?)\b"),
    ("form", r"\b(?:form|format|formatting|layout|style|presentation|structure|clarity|language)\b"),
)
_TEXTS = (  # the same for the text of a criterion
    (
        "no_error",
        r"\b(?:no|without|free of|free from|any|a single)\b[^.]{0,60}\b(?:error|mistake|wrong|incorrect|false|invalid)"
        r"|\b(?:every|all|each)\b[^.]{0,80}\b(?:correct|right|true|valid|accurate)\b"
        r"|\bnone of\b[^.]{0,60}\b(?:wrong|incorrect|false)",
    ),
    (
        "final_result",
        r"\bfinal (?:answer|result|value|conclusion|number)(?! exactly once)"
        r"|\blast line is \"answer: |\b(?:correct|right) (?:answer|result)\b|\bconcludes\b"
        r"|\bthe (?:answer|output) is\b",
    ),
    (
        "constraint",
        r"\b(?:at most|at least|no more than|no fewer than|exactly|fewer than|more than) (?:[\d,]+|one|two|three|four|"
        r"five|six|seven|eight|nine|ten)\b[^.]{0,20}\b(?:words?|sentences?|lines?|characters?|items?|paragraphs?|letters?)"
        r"|\b(?:must not|does not|do not|never|avoids?)\b[^.]{0,20}\b(?:use|mention|contain|include|repeat|exceed)",
    ),
    (
        "form",
        r"\b(?:format|formatted|markdown|bullets?|bold|boxed|heading|headings|table|code block|backticks|"
        r"quotation marks|lower ?case|upper ?case|last line|first line|full sentence|"
        r"numbered|exactly once, in the last line)\b",
    ),
    (
        "intermediate_fact",
        r"\b(?:contains?|states?|gives?|names?|mentions?|identifies|computes?|calculates?|finds?|reads)\b"
        r"[^.]{0,80}(?:\d|\bthe line\b|\bthat\b)|\bintermediate\b|\bwhose result is\b",
    ),
    (
        "method",
        r"\b(?:method|approach|strategy|uses|applies|adds|subtracts|multiplies|divides|compares|explains|shows|derives|"
        r"reasons?|reasoning|goes through|step by step|calculation)\b",
    ),
)
_BY_CATEGORY = tuple((kind, re.compile(pattern)) for kind, pattern in _CATEGORIES)
_BY_TEXT = tuple((kind, re.compile(pattern)) for kind, pattern in _TEXTS)


def kind_of(category: str, text: str) -> str | None:
    """The kind of a criterion by keywords, one of `KINDS`; None if neither category nor text matches.

    >>> kind_of("Final result", "Says 42."), kind_of("", "Every calculation is correct."), kind_of("Essential", "Good.")
    ('final_result', 'no_error', None)
    """
    name = " ".join(category.lower().replace("_", " ").replace("-", " ").split())
    words = " ".join(text.lower().split())[:1000]
    for where, rules in ((name, _BY_CATEGORY), (words, _BY_TEXT)):
        for kind, pattern in rules:
            if pattern.search(where):
                return kind
    return None
