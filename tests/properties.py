"""How property tests run: the same examples every time, and no files left behind."""

from __future__ import annotations

from hypothesis import settings

PROPERTY = settings(max_examples=400, deadline=None, derandomize=True, database=None)
