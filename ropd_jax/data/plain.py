"""Text without formatting: one way to write a sign, a digit, a space or a fraction.

>>> plain("**\\u2212\\uff15**")
'-5'
>>> plain(r"$1\\frac{1}{2}\\text{ cm}^2$")
'1 1/2 cm^2'

This module computes nothing. `ropd_jax.data.numbers` reads numbers from plain text, and `ropd_jax.data.grader` compares
plain texts.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_DASHES = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
_CHARS = {
    **dict.fromkeys(_DASHES, "-"),
    "\u2014": " - ",  # an em dash begins an explanation
    **dict.fromkeys("\u00d7\u00b7\u22c5\u2217\u2219\u2022", "*"),
    **dict.fromkeys("\u2044\u2215", "/"),
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d", '"'),
    **dict.fromkeys("\u2018\u2019\u201a", "'"),
    **dict.fromkeys("\u2248\u2243\u2245", "\u2248"),
    "\u00b0": " degrees ",
    "\u066b": ".",  # Arabic decimal and thousands separators
    "\u066c": ",",
    "\u3002": ". ",
    "\u3001": ", ",
    "\t": " ",
    "\n": " ",
    "\r": " ",
}

_SUPER = re.compile("[\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_UNWRAP = re.compile(
    r"\\(?:text(?:bf|rm|it|tt|sf|normal)?|math(?:rm|bf|it|sf|tt|bb)|mbox|operatorname|boldsymbol|bm|underline|boxed"
    r"|fbox|emph|hbox)\s*\{([^{}]*)\}"
)
_LATEX = [
    (re.compile(r",\s*\\!\s*|\{,\}"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\\$|\\[()\[\]]|\$"), ""),
    (re.compile(r"\\[,;:> ]|\\q?quad(?![a-zA-Z])|~|\\(?:thin)?space(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:left|right|displaystyle|[bB]igg?[lrm]?)(?![a-zA-Z])\s*"), ""),
    (re.compile(r"\\([%#&])"), r"\1"),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])\s*"), "*"),
    (re.compile(r"\\(?:approx|simeq)(?![a-zA-Z])"), "\u2248"),
    (re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])"), " degrees "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
]
_PART = r"\{((?:[^{}]|\{[^{}]*\})*)\}"  # a root in it has braces of its own
_FRAC = re.compile(rf"(\d\s*)?\\frac\s*(?:{_PART}|\s?(\d))\s*(?:{_PART}|(\d))")
_SIMPLE = re.compile(r"\s*(?:[\d.,]+|\\[A-Za-z]+|[A-Za-z])\s*")
_TAG = re.compile(r"</?(?:b|strong|i|em|u|br|p|code|span|answer)\s?/?>", re.I)
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_STARS_POWER = re.compile(r"(?<=[\d)])\s?\*\*\s?(?=[-+\d(])")


def plain(text: str) -> str:
    """One line without LaTeX and Markdown formatting, with ASCII digits, signs and spaces.

    Full-width digits and those of other scripts are digits (``\u0665`` is 5), superscripts are powers (``10\u2075`` is
    ``10^{5}``), a vulgar fraction is a fraction (``1\u00bd`` is ``1 1/2``).
    """
    text = _SUPER.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m.group()).replace("\u2212", "-") + "}", text)
    text = _TAG.sub("", "".join(map(_char, text)))
    for _ in range(2):  # \textbf{\text{C}}
        text = _UNWRAP.sub(_unwrapped, text)
    rows = text.split("\\\\")  # of a matrix: the second backslash of a row separator does not start a command
    text = "\\\\".join(map(_bare, rows))
    text = _STARS_POWER.sub("^", text)
    text = _BOLD.sub(r"\2", text).replace("`", "")
    return " ".join(text.split()).strip(" *_\"'").strip()


def _bare(text: str) -> str:
    for pattern, by in _LATEX:
        text = pattern.sub(by, text)
    for _ in range(3):  # fractions of fractions
        text = _FRAC.sub(_fraction, text)
    return text


def _unwrapped(match: re.Match[str]) -> str:
    """``5\\text{apples}`` is ``5 apples``; ``\\text{cm}^2`` keeps its power."""
    before = match.string[: match.start()][-1:]
    return f"{' ' if before.isalnum() else ''}{match.group(1)}"


def _fraction(match: re.Match[str]) -> str:
    """``\\frac{a}{b}`` as a/b, with brackets around anything but a single number; ``1\\frac12`` is ``1 1/2``."""
    whole, top, bottom = match[1], match[2] or match[3], match[4] or match[5]
    top, bottom = (part.strip() if _SIMPLE.fullmatch(part) else f"({part.strip()})" for part in (top, bottom))
    if whole is None:
        return f"{top}/{bottom}"
    return f"{whole.strip()} {top}/{bottom}"


@functools.lru_cache(maxsize=4096)
def _char(char: str) -> str:
    if char in _CHARS:
        return _CHARS[char]
    if char.isascii():
        return char
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category in ("Zs", "Zl", "Zp"):
        return " "
    if category == "Cf":  # zero-width spaces, direction marks
        return ""
    if unicodedata.decomposition(char).startswith("<fraction>"):
        top, _, bottom = unicodedata.normalize("NFKC", char).partition("\u2044")
        return f" {top}/{bottom}" if bottom else char
    if 0xFF00 <= ord(char) <= 0xFFEF:  # full-width forms
        return unicodedata.normalize("NFKC", char)
    return char
