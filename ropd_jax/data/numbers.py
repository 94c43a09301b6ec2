"""The number that a final answer states: the whole answer or nothing, never a part of something else.

    "5 apples, because 3 + 2 = 5"   5, with the unit "apples"
    "10:30", "3x + 2", "5 or 7"     no number

``quantity`` reads what a student states: a number, optionally a unit, then only text that cannot change the number.
``number`` reads only a number. The table for both is in docs/graders.md.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from ropd_jax.data.expressions import NotAFormula, TooLarge, parse, value
from ropd_jax.data.plain import plain
from ropd_jax.data.units import NO_UNIT, SCALES, SINGLE, TOUCHING, same_unit

LOOK = 1_000  # characters of a line that are read, including its explanation
LONGEST = 200  # characters of a final answer; longer ones count as wrong, without being parsed


class Quantity(NamedTuple):
    """A number with its unit, "" without one."""

    value: Fraction
    unit: str


# --------------------------------------------------------------------------------------------------- one number

_INT = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)|[1-9]\d{0,2}(?:'\d{3})+(?!\d)|[1-9]\d{0,2}(?: \d{3})+(?![\d/])|\d+)"
_DEC = rf"(?:{_INT}(?:\.\d+)?|\.\d+)"
_POWER = r"(?:\{\s*[-+]?\s?\d{1,4}\s*\}|\(\s*[-+]?\s?\d{1,4}\s*\)|[-+]?\d{1,4})"
_PART = rf"(?:[-+]?{_DEC}|\(\s*[-+]?\s?{_DEC}\s*\))"
_FORMS = {  # the longest match counts
    "mixed": re.compile(rf"(?P<whole>{_INT})\s(?:and )?(?P<top>\d+)\s?/\s?(?P<bottom>\d+)"),
    "tens": re.compile(rf"(?P<factor>{_DEC})\s?[*x]\s?10\s?\^\s?(?P<power>{_POWER})"),
    "exponent": re.compile(rf"(?P<factor>{_DEC})[eE](?P<power>[-+]?\d{{1,4}})(?!\d)"),
    "power": re.compile(rf"(?P<base>{_DEC})\s?\^\s?(?P<power>{_POWER})"),
    "fraction": re.compile(rf"(?P<top>{_PART})\s?/\s?(?P<bottom>{_PART})"),
    "decimal": re.compile(_DEC),
}
_SIGNED = re.compile(
    r"(?P<a>[-+]?)\s?(?:(?:USD|EUR|GBP|CAD|AUD|INR|US|Rs\.?)\s?)?[\u20ac\u00a3\u00a5\u20b9]?\s?(?P<b>[-+]?)\s?"
)
_WORD_SIGN = re.compile(r"^(?:minus|negative)\s+(?=[\d.(])", re.I)
HIGHEST_POWER = 1_000
MOST_BITS = 10_000


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, in any form of the table; None for any other text."""
    if len(text) > LONGEST:
        return None
    text = _outer(plain(text)).rstrip(".,;: ").strip()
    found = _leading(text)
    return found[0] if found is not None and found[1] == len(text) else None


def _outer(text: str) -> str:
    """The text without brackets around all of it."""
    while (
        len(text) > 1
        and (text[0], text[-1]) in (("(", ")"), ("[", "]"), ("{", "}"))
        and not set("()[]{},") & set(text[1:-1])
    ):
        text = text[1:-1].strip()
    return text


def _leading(text: str) -> tuple[Fraction, int] | None:
    """(value, end) of the longest number at the start of a plain text."""
    cut = len(text)
    text = _WORD_SIGN.sub("-", text)
    cut -= len(text)
    signs = _SIGNED.match(text)
    assert signs is not None  # the whole pattern is optional
    best: tuple[str, re.Match[str]] | None = None
    for name, form in _FORMS.items():
        match = form.match(text, signs.end())
        if match and (best is None or match.end() > best[1].end()):
            best = name, match
    if best is None or (signs["a"] and signs["b"]):
        return None
    found = _value(*best)
    if found is None:
        return None
    return (-found if "-" in (signs["a"], signs["b"]) else found), best[1].end() + cut


def _value(form: str, match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    if form == "decimal":
        return _decimal(match.group())
    if form == "mixed":
        proper = int(part["top"]) < int(part["bottom"])
        return _decimal(part["whole"]) + Fraction(int(part["top"]), int(part["bottom"])) if proper else None
    if form == "fraction":
        bottom = _decimal(part["bottom"])
        return _decimal(part["top"]) / bottom if bottom else None
    power = int(re.sub(r"[{}()\s]", "", part["power"]))
    base = Fraction(10) if form != "power" else _decimal(part["base"])
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(power) > HIGHEST_POWER or bits * abs(power) > MOST_BITS or (power < 0 and not base):
        return None
    return base**power if form == "power" else _decimal(part["factor"]) * base**power


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[,' ()]", "", text))


# ------------------------------------------------------------------------------------- a number in what is stated

_SCALE = re.compile(r"\s(hundred|thousand|million|billion|trillion|dozen)s?\b", re.I)
_LETTERS = "[A-Za-z\u00b5\u03bc\u03a9]"
_EXPONENT = r"(?:\^?\{?-?\d\}?)?"
_WORD = re.compile(
    rf"\s((?:[ap]\.m\b)|{_LETTERS}[\w'-]*?{_EXPONENT}(?:[/*]\(?{_LETTERS}+{_EXPONENT}\)?)*)(?![\w^*/'-])"
)
_TOUCH = re.compile(
    r"(?P<unit>[A-Za-z\u00b5\u03bc\u03a9]+)(?P<more>(?:\^\{?-?\d\}?)?(?:[/*][A-Za-z]+(?:\^\{?-?\d\}?)?)*)(?![\w^*/])"
)
_PERCENT = re.compile(r"\s?(?:%|per ?cent\b)", re.I)

_EXPLAINS = re.compile(
    r"[,;:.]?\s*(?:-\s)?(?:because|since|as|so|which|where|given|i\.?e\b|that is|therefore|thus|hence"
    r"|from|due|after|when|for)\b",
    re.I,
)
_DOUBT = re.compile(
    r"\b(?:maybe|perhaps|possibly|alternatively|otherwise|unless|wait|actually|hmm+|but|however|scratch that"
    r"|correction)\b"
    r"|\bor\s+(?:[-+$(]*\d|[a-z]+\s?=)", re.I,
)  # fmt: skip
_RETRACTS = re.compile(r"(?:or|and also|no|nope|not)\b", re.I)
_IS_RIGHT = re.compile(r"\s+is (?:the |my )?(?:final |correct |right )*(?:answer|correct|right|result)[.! ]*", re.I)
_INSTEAD = re.compile(r",?\s*\(?(?:not|rather than|instead of)\b", re.I)
_LEAD = re.compile(
    r"(?:[=:\u2248~]|(?:approximately|approx\.?|about|around|roughly|exactly|precisely|just|only|simply|equal to|"
    r"equals|therefore|thus|hence|indeed|given by|clearly|obviously|now|still|also|a total of)\b,?|it is\b|it's\b)\s*",
    re.I,
)
_SUBJECT = re.compile(  # "There are 5 apples", "Tom has 5 apples", "x is 5", "The total cost: 5"
    r"(?P<words>\\?[A-Za-z][\w'\\{}() -]{0,80}?)(?:\s(?:is|are|was|were|be|has|have|had|equals|gets?|needs?|"
    r"makes?|earns?|costs?|pays?|takes?|spends?|sells?|became|becomes|there are|left|total|exactly)|:)"
    r"\s+(?=[-+]?[\d.(\u20ac\u00a3])",
    re.I,
)
_NOT_A_SUBJECT = re.compile(
    r"\b(?:not?|never|cannot|can't|\w+n't|none|least|most|more|less|fewer|greater|smaller|than|between|if|or|and|either"
    r"|maybe|perhaps|might|may|could|would|should|problem|question|step|part|case|option|unless|wrong|incorrect|neither"
    r"|both)\b",
    re.I,
)
_ARITHMETIC = re.compile(r"[\d\s.,+*/^(){}-]*\d[\d\s.,+*/^(){}-]*")
_NAME = re.compile(r"\\?[A-Za-z][\w\\{}' ]{0,40}(?:\([^()]*\))?")


@functools.lru_cache(maxsize=8192)
def quantity(text: str) -> Quantity | None:
    """The number that a final answer states, with its unit; None if it states none, or more than one."""
    if len(text) > LOOK:
        return None
    text = _outer(plain(text).replace("\\pm", "+-").rstrip(" .,;:"))
    return None if re.search(r"[<>\u2264\u2265\u2260]|!=|\\(?:le|ge|ne|lt|gt)", text) else _stated(text, 0)


def _stated(text: str, depth: int) -> Quantity | None:
    text = text.strip()
    for _ in range(3):  # "therefore, about 5"
        lead = _LEAD.match(text)
        if lead is None or not lead.end():
            break
        text = text[lead.end() :]
    if (found := _leading(text)) is not None:
        got = _with_rest(found[0], text[found[1] :], depth)
        if got is not None:
            return got
    if depth < 2 and "=" in text and (got := _equation(text, depth)) is not None:
        return got
    subject = _SUBJECT.match(text)
    if subject and not _NOT_A_SUBJECT.search(subject["words"]) and not re.search(r"\d", subject["words"]):
        return _stated(text[subject.end() :], depth)
    return None


def _equation(text: str, depth: int) -> Quantity | None:
    """``x = 5``, ``3 + 2 = 5``: the last side, if all other sides that can be computed have its value."""
    *sides, last = text.split("=")
    found = _stated(last, depth + 1)
    if found is None:
        return None
    for side in map(str.strip, sides):
        computed = _computed(side)
        if computed is not None and computed != found.value:
            return None
        if computed is None and _other_measure(side, found, depth):
            return None
        if computed is None and (re.search(r"\d\s*[,;]|[,;]\s*\S|\b(?:or|and)\b", side) or not side):
            return None
    return found


def _other_measure(side: str, found: Quantity, depth: int) -> bool:
    """True for "7 meters" of "7 meters = 5 meters"; "5 m = 500 cm" is a conversion."""
    other = _stated(side, depth + 1) if depth < 2 else None
    return other is not None and bool(other.unit) and other.value != found.value and same_unit(other.unit, found.unit)


def _computed(side: str) -> Fraction | None:
    """The value of a side of an equation, if it is arithmetic or a number; else None."""
    if (found := _leading(side)) is not None and found[1] == len(side):
        return found[0]
    if not _ARITHMETIC.fullmatch(side):
        return None
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", side).replace("{", "(").replace("}", ")").replace("^", "**")
    try:
        return value(parse(text))
    except (NotAFormula, TooLarge, ArithmeticError, ValueError):
        return None


def _with_rest(found: Fraction, rest: str, depth: int) -> Quantity | None:
    """The number with its unit, if the rest cannot change it."""
    if scale := _SCALE.match(rest):
        found, rest = found * SCALES[scale[1].lower()], rest[scale.end() :]
    unit, rest = _unit(rest)
    if unit is None or not _harmless(rest, found, depth, bare=not unit):
        return None
    return Quantity(found, unit)


def _unit(rest: str) -> tuple[str | None, str]:
    """(unit, the rest); the unit is None if a letter that is not a unit touches the number, as in ``3x``."""
    if percent := _PERCENT.match(rest):
        words, rest = ["%"], rest[percent.end() :]
    elif rest[:1].isalpha() or rest.startswith(("\\", "_")):
        touch = _TOUCH.match(rest)
        if touch is None or touch["unit"] not in TOUCHING:
            return None, rest
        words = [touch.group()]
        rest = rest[touch.end() :]
    else:
        words = []
    if rest[:1] == "-" and (joined := re.match(r"-([A-Za-z]{3,})\b", rest)) and not words:  # "a 5-mile walk"
        words, rest = [joined[1]], rest[joined.end() :]
    while len(words) < 6 and (match := _WORD.match(rest)) and not rest[match.end() :].startswith("("):
        word = match[1]
        alone = (
            not word[1:2].isalpha() and word[0] not in SINGLE and "." not in word and word != "a"
        )  # a variable: "5 x", "5 y^2"
        if alone or word.lower() in NO_UNIT or word in NO_UNIT:
            break
        words.append(word)
        rest = rest[match.end(1) :]
    return " ".join(words), rest


def _harmless(rest: str, found: Fraction, depth: int, *, bare: bool) -> bool:
    """True if the text after a number cannot change it: nothing, a full stop, an explanation, the same value again."""
    for _ in range(6):
        if rest[:1] == "!" and bare:  # a factorial
            return False
        if _IS_RIGHT.fullmatch(rest):  # "5 is the answer"
            return True
        if not rest.strip(" .,;:!*_\"'?)]}"):
            return not re.match(r"[.,:]\d", rest)
        if re.match(r"[.,:;'-]?[\d^/]|\s*[*+^/\\|]|\s-\s?[\d(]|[,;:.]\s*[-+(]?\s?\d|[\[{]", rest):
            return False
        if bracket := re.match(r"\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", rest):
            if not _agrees(bracket[1], found, depth):
                return False
            rest = rest[bracket.end() :]
        elif other := re.match(r"\s*([=\u2248])\s*([^=\u2248;]*?)(?=[=\u2248;]|,\s|\.\s|\.?$|\()", rest):
            if not _same_side(other[2], found, near=other[1] == "\u2248"):
                return False
            rest = rest[other.end() :]
        elif alternative := re.match(r",?\s*or,?\s+(?:equivalently|simply|in other words|as an? \w+)?,?\s*", rest):
            other_value = _stated(rest[alternative.end() :], depth + 1) if depth < 2 else None
            return other_value is not None and _equal_ways(other_value, found)
        elif explains := (_EXPLAINS.match(rest) or _INSTEAD.match(rest)):
            return not _DOUBT.search(rest[explains.end() :])
        elif sentence := re.match(r"[.;!?]\s+", rest):
            after = rest[sentence.end() :]
            return not (_RETRACTS.match(after) or _DOUBT.match(after))
        else:  # ", in total", " - Tom", a new clause without a number
            words = re.match(r"(?:,|:|\s-)\s+(?!or\b|and\b|no\b)[A-Za-z][^\d]*$", rest)
            return words is not None and not _DOUBT.search(rest) and not re.search(r"\bor\b", rest)
    return False


def _agrees(inside: str, found: Fraction, depth: int) -> bool:
    """Whether a bracket after a number agrees with it: words, an explanation, or the same value."""
    if _DOUBT.search(inside) and not re.match(r"\s*or\b", inside):
        return False
    inside = re.sub(r"^\s*or,?\s+", "", inside)
    if not re.search(r"\d", inside):
        return bool(re.search(r"[A-Za-z]{2}|^\s*%\s*$|[\u20ac\u00a3$]", inside)) or inside.strip() in SINGLE
    if _EXPLAINS.match(inside):
        return True
    other = _stated(inside, depth + 1) if depth < 2 else None
    return other is not None and _equal_ways(other, found)


def _equal_ways(other: Quantity, found: Fraction) -> bool:
    """The same value, possibly once as a percentage: ``0.5 or 50%``."""
    return other.value == found or (other.unit.startswith("%") and other.value == found * 100)


def _same_side(side: str, found: Fraction, *, near: bool) -> bool:
    """Another side of an equation after a number: the same value, or a name."""
    side = side.strip()
    computed = _computed(side)
    if computed is None and (stated := re.match(r"[^A-Za-z%]*", side)) and stated.group().strip():
        computed = _computed(stated.group().strip())
        if computed is not None and _unit(side[len(stated.group().rstrip()) :])[0] is None:
            return False
    if computed is None:
        return bool(_NAME.fullmatch(side)) and not re.search(r"\d", side)
    return abs(computed - found) * 100 <= abs(found) if near else computed == found
