r"""JSON as models write it, with deviations from the standard, and LaTeX that only looks like escapes.

There are two levels. A change of *spelling* does not move a bracket, comma or end of string, so it is always safe::

    "\(x\)", "\alpha"            an escape that JSON does not have is a backslash and the next character
    "\frac12", "$\nu$"           so is an escape that JSON has, if it starts a LaTeX command (see `_COMMANDS`)
    a line break in a string     is a line break
    a no-break space             between two tokens is a space

A change of *structure* is allowed only if the reply is a single object (``structure=True``)::

    {"a": [1, 2,],}              a comma before a closing bracket
    {"a": 1 /* one */} // end    comments without quotation marks or brackets
    {"a": True, "b": None}       Python's names
    {'a': 'x'}                   Python's quotation marks, if all strings have them

Nothing is guessed: a missing comma, quotation mark or bracket stays an error, and so does leftover text. An answer that
a judge quotes without escapes must not benefit from this. So a comment cannot hide a key, and an object has one kind of
quotation mark, because a second kind would swallow what the first kind delimits. Only comments and commas are dropped
from the text.

If JSON's own reading also makes sense, it stays: ``"a\nu"`` is a line break and u, ``"$\nu$"`` is LaTeX.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable
from typing import Any

Hook = Callable[[list[tuple[str, Any]]], Any]

_BLANK = " \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"  # the first four are JSON's own
_SPACE = re.compile(f"[{_BLANK}]+")
_STRING = {q: re.compile(rf"{q}([^{q}\\]*(?:\\.[^{q}\\]*)*){q}", re.DOTALL) for q in "\"'"}
_WORD = re.compile(r"(?:true|false|null|True|False|None|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?![\w.])")
_COMMENT = re.compile(r"//[^\n\r\u2028\u2029]*|#[^\n\r\u2028\u2029]*|/\*.*?\*/", re.DOTALL)
_HIDES = re.compile(r"[\"'{}\[\]]")
_NAMES = {"True": "true", "False": "false", "None": "null"}
_KEY_ENDS = re.compile(f"[{_BLANK}]*:")
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)|[\x00-\x1f]", re.DOTALL)
_MATH = re.compile(r"\$(?=\S)[^$\n]+?(?<=\S)\$|\\{1,2}\(.{1,500}?\\{1,2}\)|\\{1,2}\[.{1,500}?\\{1,2}\]", re.DOTALL)
_ROW_BREAK = re.compile(r"\\\\(?=[\s&0-9]|\Z)")  # LaTeX's line break, read by JSON as one backslash


def _pattern(names: str) -> re.Pattern[str]:
    return re.compile(r"\\(?:" + "|".join(names.split()) + r")(?![A-Za-z])")


# Commands that would be a control character in the middle of a word, or one that texts do not contain.
_COMMANDS = _pattern(
    r"""
    backslash bar because begin beta beth between big bigcap bigcup bigg biggl biggr bigl bigoplus bigotimes bigr
    bigvee bigwedge binom blacksquare bm bmod boldsymbol bot bowtie boxed boxtimes bra braket breve bullet
    fbox flat footnotesize forall frac frown
    nabla nearrow neq nexists ngeq nleq nmid nolimits nonumber not notin nparallel nsim nsubseteq nsupseteq nwarrow
    rangle rbrace rbrack rceil rfloor rho right rightarrow rightharpoonup rightleftharpoons rtimes rvert rVert
    tag tanh tau tbinom text textbf textcolor textit textrm textsf textstyle texttt tfrac therefore theta thickapprox
    tilde times triangle triangleleft triangleq triangleright twoheadrightarrow
    """
)
_IN_MATH = _pattern("ne neg ni nu rm to top tan tiny")  # elsewhere these can be a line break or tab and a word
_CANDIDATE = re.compile(r"\\[bfnrt][A-Za-z]")


def raw_decode(text: str, start: int, *, hook: Hook, structure: bool = False) -> tuple[Any, int]:
    """(value at ``start``, its end), like `json.JSONDecoder.raw_decode`.

    Args:
        hook: as ``object_pairs_hook`` of the decoder.
        structure: also read a changed structure; see the module's docstring.

    Raises:
        json.JSONDecodeError: with the reason and the position in ``text``.
        RecursionError: the text is nested too deeply.
    """
    decoder = json.JSONDecoder(object_pairs_hook=hook)
    problem: json.JSONDecodeError | None = None
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if not structure and not _is_spelling(text, error):
            raise
        problem = error
    else:
        if _CANDIDATE.search(text, start, end) is None:
            return value, end
    standard, end = _rewritten(text, start, structure)
    try:
        return decoder.decode(standard), end
    except json.JSONDecodeError as error:
        raise (problem or error) from None  # the first has the position in `text`


def is_comment(text: str) -> bool:
    """True if a text is one comment that `raw_decode` would skip, such as one after the object."""
    return _COMMENT.fullmatch(text) is not None and _HIDES.search(text) is None


def _is_spelling(text: str, error: json.JSONDecodeError) -> bool:
    """True if the error is an escape, a control character in a string, or a space that JSON does not allow."""
    return error.msg.startswith("Invalid ") or _SPACE.match(text, error.pos) is not None


def _rewritten(text: str, start: int, structure: bool) -> tuple[str, int]:
    """(standard JSON for the object or list at ``start``, its end). Checks only the tokens, not their order."""
    parts: list[str] = []
    quote, depth, at = "", 0, start
    while at < len(text):
        if space := _SPACE.match(text, at):
            at = space.end()
            continue
        char = text[at]
        if char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if structure and parts[-1:] == [","] and len(parts) > 1 and parts[-2][-1] not in "{[:,":
                parts.pop()
        if char in "{}[]:,":
            parts.append(char)
            at += 1
            if depth <= 0:
                return "".join(parts), at
            continue
        if char == '"' or (structure and char == "'"):
            quote = quote or char
            found = _STRING[char].match(text, at) if char == quote else None
            if found is None:
                raise json.JSONDecodeError("Unterminated string or a second kind of quotation marks", text, at)
            parts.append(_string(text, found, is_key=_KEY_ENDS.match(text, found.end()) is not None))
        elif found := _WORD.match(text, at):
            word = found.group()
            if word in _NAMES and not structure:
                raise json.JSONDecodeError("Expecting value", text, at)
            parts.append(_NAMES.get(word, word))
        elif structure and (found := _COMMENT.match(text, at)):
            if _HIDES.search(found.group()):
                raise json.JSONDecodeError("A comment with quotation marks or brackets", text, at)
        else:
            raise json.JSONDecodeError("Expecting value", text, at)
        at = found.end()
    raise json.JSONDecodeError("Expecting a closing bracket", text, len(text))


def _string(text: str, found: re.Match[str], *, is_key: bool) -> str:
    """The string in standard JSON. A key can have only JSON's own escapes.

    Raises:
        json.JSONDecodeError: its backslashes are ambiguous, or it is a key with LaTeX.
    """
    raw, quote = found[1], found[0][0]
    if is_key:
        latex = any(_COMMANDS.match(raw, part.start()) for part in _ESCAPE.finditer(raw))
        if latex or (quote == "'" and ("\\" in raw or '"' in raw)):
            raise json.JSONDecodeError("Invalid key", text, found.start())
        return f'"{raw}"'
    math = [m.span() for m in _MATH.finditer(raw)] if "\\" in raw else []
    changed = False

    def standard(part: re.Match[str]) -> str:
        nonlocal changed
        escape, at = part.group(), part.start()
        if escape[0] != "\\":
            return f"\\u{ord(escape):04x}"
        if escape[1] in '"\\/' or len(escape) > 2:
            return escape
        if escape[1] == quote:  # \' inside Python's quotation marks
            return quote
        place = bisect.bisect_right(math, (at, len(raw))) - 1
        in_math = place >= 0 and at < math[place][1]
        command = _COMMANDS.match(raw, at) or (_IN_MATH.match(raw, at) if in_math else None)
        if escape[1] in "bfnrt" and command is None:
            return escape
        if quote == "'" and escape[1] in "axvN01234567U":  # Python also has these
            raise json.JSONDecodeError(f"The escape {escape} is ambiguous", text, found.start(1) + at)
        changed = True
        return "\\" + escape

    made = _ESCAPE.sub(standard, raw)
    if quote == "'":
        made = re.sub(r'\\.|"', lambda m: m.group() if m.group() != '"' else '\\"', made, flags=re.DOTALL)
    if changed and _ROW_BREAK.search(raw):
        raise json.JSONDecodeError("A mix of single and double backslashes is ambiguous", text, found.start())
    return f'"{made}"'
