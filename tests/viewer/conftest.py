"""Fixtures of the tests of the viewer."""

from __future__ import annotations

from tests.viewer.browser import browser

__all__ = ["browser"]
