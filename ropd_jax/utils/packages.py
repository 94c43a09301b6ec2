"""Packages that an extra of ``setup.py`` installs."""

from __future__ import annotations

import importlib.util

from ropd_jax.types import UserError


def need(package: str, *, extra: str, what: str) -> None:
    """Raises UserError if ``package`` is not installed.

    Args:
        extra: the extra that has it.
        what: what needs it, for the error.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs the package {package}, which is not installed: pip install 'ropd_jax[{extra}]'")
