"""Small formats that several parts of the program print, and foreign text made safe for a terminal."""

from __future__ import annotations

import unicodedata


def clock(seconds: float) -> str:
    """``41 s``, ``3:07``, ``1:02:09``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


# These reorder the displayed text.
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: str) -> str:
    """The text, with control characters, direction marks and lone surrogates shown by their numbers."""
    return "".join(_escaped(c) if _obeyed(c) else c for c in text)


def _obeyed(char: str) -> bool:
    return char not in "\n\t" and (unicodedata.category(char) in ("Cc", "Cs") or char in DIRECTIONS)


def _escaped(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
