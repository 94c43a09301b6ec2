"""What of an answer the teacher reads."""

from __future__ import annotations

THINK_END = "</think>"


def after_think(text: str) -> str:
    """The answer behind the last ``</think>``, stripped; the text unchanged where there is none, or nothing behind it.

    ``<think>x</think> ans`` gives ``ans``; ``<think>x</think>`` and ``<think>unterminated`` stay as they are, because
    an empty answer would hide from the teacher what the student did.
    """
    _, mark, answer = text.rpartition(THINK_END)
    return answer.strip() if mark and answer.strip() else text
