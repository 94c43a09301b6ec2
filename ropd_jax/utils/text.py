"""Small formats that several parts of the program print."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """``41 s``, ``3:07``, ``1:02:09``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
