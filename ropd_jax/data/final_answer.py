r"""Finds the final answer that a text states, for every grader.

A statement is one of these, and the last one counts. The table with examples is in docs/graders.md.

    box         \boxed{5}                      the last closed one; boxes joined by "and", "or" or a comma are a list
    hashes      #### 5                         as in GSM8K, but not a heading such as "#### Step 2"
    answer      Answer: 5                      at the start of a line or a sentence, or as a heading above its line
    sentence    The answer is 5.               less explicit: after another kind it must contain a number or a letter

A sentence that doubts or denies ("I do not think the answer is 5", "if ..., the answer is 5") is not a statement. If
the last statement cannot be read as one answer ("5 or 7"), no earlier one replaces it.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ropd_jax.data.numbers import LONGEST, LOOK, quantity
from ropd_jax.types import END_THINK, THINK

BOX, HASHES, ANSWER, SENTENCE = "box", "hashes", "answer", "sentence"


class Statement(NamedTuple):
    """One statement: its kind, where it begins, and what it states, up to the end of its line."""

    kind: str
    at: int
    content: str


_BRACE = re.compile(r"\\\\|\\boxed\s*\{|\\[{}]|[{}]")
_JOIN = re.compile(r"[\s$,;&]*(?:\\text\{\s*(?:and|or)\s*\}|\\(?:quad|qquad|[ ,;])|\b(?:and|or)\b|[\s$,;&])*")

_ADJECTIVE = r"(?:final|correct|right|exact|best|numerical|overall|complete|most likely)"
_WHICH = r"(?:[ \t]{1,4}(?:to|for|of)[ \t][^\n:.]{1,60}?|[ \t]{0,4}\([^()\n]{1,40}\))?"
_NAME = (
    rf"(?:(?:the|my|our|so|thus|hence|therefore),?[ \t]{{1,4}}){{0,3}}(?:{_ADJECTIVE}[ \t]{{1,4}}){{0,3}}"
    r"(?:answers?|ans\.?|option|choice)"
)
_DRESS = r"[ \t*_`\"]{0,16}"  # bounded, like every repetition here: a wall of stars must not take time
_ANSWER = re.compile(
    rf"(?im)(?:^[ \t>*_#\-\u2022]{{0,24}}(?:\d{{1,3}}[.)][ \t]{{1,4}}[*_]{{0,3}})?|(?<=[.!?;:(])[ \t*_]{{1,8}})"
    rf"{_NAME}{_WHICH}{_DRESS}"
    rf"(?:(?:is|are)[ \t]*)?[:=\uff1a]{_DRESS}"
    rf"|^[ \t]{{0,8}}(?:#{{1,6}}[ \t]{{0,4}}|\*\*|__)[ \t]{{0,4}}{_NAME}{_DRESS}(?=\n)"
    r"|<answer>|(?:\u7b54\u6848)[ \t]*(?:[\u662f\u4e3a\u70ba][ \t]*[:\uff1a]?|[:\uff1a])[ \t]*"
)
_SENTENCE = re.compile(
    rf"(?i)\b(?:answer|option|choice){_WHICH}(?:[ \t]+(?:should|would|will|must)[ \t]+be|[ \t]+(?:is|are|equals|was))\b"
    rf"(?:[ \t]+(?:therefore|thus|then|hence|simply|just|indeed|given by|equal to|now|clearly|exactly))*"
    rf"{_DRESS}[:,]?{_DRESS}"
)
_HASHES = re.compile(r"(?m)^.*?(?<!#)####(?!#)[ \t]*")
_STEP = re.compile(r"\d+[.):][ \t]+\S")
_OPENED = re.compile(r"\s*(\$\$|\\\[|```)")  # "$" may be a currency
_CLOSES = {"$$": "$$", r"\[": r"\]", "```": "```"}
_DOUBTED = re.compile(
    r"\b(?:not|never|if|unless|whether|\w+n['\u2019]t|suppose|assume|assuming|imagine|doubt|wrong|incorrect|mistaken|"
    r"false|might|may|could|maybe|perhaps|possibly|claims?|claimed|guess(?:es|ed)?|says)\b",
    re.I,
)
_CLAUSE = re.compile(r"[.!?;](?=\s)|,?\s(?:because|since|as|so|which|where)\b")
_SENTENCE_END = re.compile(r"(?<=[^\s.])[.!?](?=\s|$)")
_ALTERNATIVE = re.compile(r"[\s$.,;)\]}*_\\]*(?:or\b|/|alternatively\b|maybe\b|perhaps\b)", re.I)
_NEXT_LINE = re.compile(r"\s*\n[ \t*_]{0,8}(?:or|alternatively|maybe|perhaps|possibly)\b[^\n]{1,80}", re.I)  # "or 68"


def final_answer(text: str) -> str | None:
    """The final answer that the text states, without a box around it; None if it states none.

    A number in the middle of a sentence is not an answer: the last number of a wrong solution is right too often.
    Final answers over 200 characters are ignored.
    """
    return stated(text, lambda content: quantity(content) is not None)


def stated(text: str, readable: Callable[[str], bool]) -> str | None:
    """The content of the statement that counts, with its formatting; None without one, or if over 200 characters.

    Args:
        readable: whether a content is one answer. Used only for sentences and headings: one that cannot be read is
            ignored if there is another statement.
    """
    found = sorted(_statements(without_open_thought(text)), key=lambda s: s.at)
    while found:
        last = found.pop()
        heading = last.kind == HASHES and "\n" in text[last.at :].strip("\n #")
        if (last.kind == SENTENCE or heading) and not readable(last.content) and (found or heading):
            firm = [s for s in found if s.kind != SENTENCE]
            if heading or firm:
                continue
        return _one(last, readable)
    return None


def without_open_thought(text: str) -> str:
    """The text up to a ``<think>`` that never ends: a statement in an unfinished thought is not an answer."""
    at = text.rfind(THINK)
    return text if at < 0 or END_THINK in text[at:] else text[:at]


def _one(statement: Statement, readable: Callable[[str], bool]) -> str | None:
    """The content. For sentences and long lines: the first clause, or everything if only the clause could be read.

    "5. No, wait, 7" and "5!" are not 5.
    """
    content = _bare(statement.content)
    if statement.kind == SENTENCE or len(content) > LONGEST:
        end = _CLAUSE.search(content) if len(content) > LONGEST else _SENTENCE_END.search(content)
        cut = _bare(content[: end.start()]) if end else content
        if readable(content) or not readable(cut):
            content = content if readable(content) and len(content) <= LONGEST else cut
    return content if content and len(content) <= LONGEST else None


def _bare(content: str) -> str:
    return content.strip().strip("*_`").strip()


def _statements(text: str) -> Iterator[Statement]:
    if box := last_boxes(text):
        at, end, content = box
        after = text[end : end + 80].partition("\n")[0]
        other = after if _ALTERNATIVE.match(after) else _next_line(text, end + len(after))
        yield Statement(BOX, at, content + other)
    for match in _HASHES.finditer(text):
        heading = _STEP.match(text, match.end()) and "\n" in text[match.end() :].strip()
        if not heading:  # such as "#### 2. Add the parts"
            yield _from(text, HASHES, match.end(), same_line=True)
    for match in _ANSWER.finditer(text):
        yield _from(text, ANSWER, match.end())
    for match in collections.deque(_SENTENCE.finditer(text), maxlen=50):
        before = text[max(0, match.start() - 120) : match.start()]
        if not _DOUBTED.search(re.split(r"\n|[.!?;:]\)?\s", before)[-1]):
            yield _from(text, SENTENCE, match.end())


def _from(text: str, kind: str, at: int, *, same_line: bool = False) -> Statement:
    """The statement that begins at ``at``: the rest of the line, or the next line that is not blank."""
    line_end = text.find("\n", at)
    line_end = len(text) if line_end < 0 else line_end
    if not same_line and not text[at:line_end].strip(" \t*_`"):
        rest = re.compile(r"\s*").match(text, line_end)
        assert rest is not None
        begin = rest.end()
        line_end = text.find("\n", begin)
        line_end = len(text) if line_end < 0 else line_end
    else:
        begin = at
    if opened := _OPENED.match(text, begin, begin + 20):  # display math can take several lines
        close = text.find(_CLOSES[opened[1]], opened.end(), opened.end() + LONGEST)
        if close > line_end:
            after = _next_line(text, close + len(_CLOSES[opened[1]]))
            return Statement(kind, at, " ".join(text[opened.end() : close].split()) + after)
    content, closed, after = text[begin : min(line_end, begin + LOOK)].replace("```", "").partition("</answer>")
    other = after if closed and _ALTERNATIVE.match(after) else _next_line(text, line_end)
    return Statement(kind, at, content + other)


def _next_line(text: str, at: int) -> str:
    """The line after the one that ends at ``at`` if it offers another answer, on one line; else ""."""
    found = _NEXT_LINE.match(text, at)
    line = found.group().strip(" \n\t*_") if found else ""
    return f" {line[:1].lower()}{line[1:]}" if line else ""


# ------------------------------------------------------------------------------------------------------------- boxes


def last_box(text: str) -> tuple[int, str | None]:
    r"""Position and content of the last closed ``\boxed{...}``, or of the list that it ends; (-1, None) without one.

    In nested boxes the inner content counts. Boxes separated only by "and", "or", commas and spaces state one answer
    together: ``\boxed{1} and \boxed{-2}`` is ``1, -2``.
    """
    box = last_boxes(text)
    return (-1, None) if box is None else (box[0], box[2])


def last_boxes(text: str) -> tuple[int, int, str] | None:
    r"""(start, end, content) of the last ``\boxed{...}``, joined with its neighbours; None without one.

    One pass over the text: a stack matches the braces. ``\{`` and ``\}`` are characters, not braces, and ``\\`` is a
    line break. ``\boxed5``, ``\fbox{5}`` and a box that never closes do not count.
    """
    opened: list[tuple[int, int] | None] = []  # per open brace None, or (position of the box, start of its content)
    closed: list[tuple[int, int, int]] = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "}":
            if opened and (box := opened.pop()) is not None:
                closed = [c for c in closed[-8:] if c[0] < box[0]] + [(*box, match.start())]
        elif token == "{":
            opened.append(None)
        elif token.startswith("\\boxed"):
            opened.append((match.start(), match.end()))
    if not closed:
        return None
    at, _, end = closed[-1]
    contents = [_inner(text, closed[-1])]
    for other in reversed(closed[:-1]):
        between = text[other[2] + 1 : at]
        if len(between) > 40 or _JOIN.fullmatch(between) is None or not between.strip():
            break
        at = other[0]
        contents.insert(0, _inner(text, other))
    return at, end + 1, ", ".join(dict.fromkeys(contents))


def _inner(text: str, box: tuple[int, int, int]) -> str:
    _, first, end = box
    inner = last_box(text[first:end])[1] if end - first <= LONGEST else None
    return text[first:end] if inner is None else inner
