"""Small things that several of the teacher's tests need."""

from __future__ import annotations

from ropd_jax.teacher.roles import fences


def fenced(text: str, label: str = "answer") -> list[str]:
    """The texts of all ``label N`` blocks of a prompt, in order."""
    return [body for name, body in fences.parse_blocks(text) if name.split(" ")[0] == label]
