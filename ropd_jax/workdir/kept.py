"""Which checkpoints a run has kept, by their names alone. Imports no jax."""

from __future__ import annotations

import os
from typing import Any

from etils import epath

COMMIT = "commit_success.txt"  # Orbax's name; a bucket cannot rename, so this file says that a checkpoint is complete


def is_url(path: Any) -> bool:
    """Whether a path leads to a bucket."""
    return "://" in str(path)


def saved_steps(directory: epath.Path) -> list[int]:
    """Number of finished steps of each complete checkpoint in a run's ``checkpoints/``, ascending."""
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if p.name.isdecimal() and p.name == str(int(p.name))]
    return sorted(int(p.name) for p in found if not is_url(p) or (p / COMMIT).exists())


def kept_steps(run: str | os.PathLike[str]) -> list[int]:
    """How many steps were finished at each checkpoint that a run has kept, ascending; [] if it has none."""
    return saved_steps(epath.Path(run).expanduser() / "checkpoints")
