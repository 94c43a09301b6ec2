"""The worst module that a sandboxed child can be given: it runs whatever it receives. Only for tests."""

from __future__ import annotations

from typing import Any


def warm_up() -> None:
    import socket  # noqa: F401
    import subprocess  # noqa: F401


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Runs ``code``; replies with what it leaves in ``out``."""
    names: dict[str, Any] = {"out": None}
    exec(request["code"], names)
    return {"out": names["out"]}
