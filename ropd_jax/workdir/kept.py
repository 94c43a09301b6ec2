"""Which checkpoints a run has kept, by their names alone. Imports no jax."""

from __future__ import annotations

from etils import epath

from ropd_jax.utils.paths import AnyPath, as_path, is_url

COMMIT = "commit_success.txt"  # Orbax's name; a bucket cannot rename, so this file says that a checkpoint is complete
DAMAGED = "damaged-"  # and the step: a checkpoint that was set aside


def entries(directory: epath.Path) -> list[epath.Path]:
    """What is in a directory; [] if there is none, as in a bucket until something is written."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def saved_steps(directory: epath.Path) -> list[int]:
    """Number of finished steps of each complete checkpoint in a run's ``checkpoints/``, ascending."""
    if not directory.is_dir():
        return []
    found = [p for p in entries(directory) if p.name.isdecimal() and p.name == str(int(p.name))]
    return sorted(int(p.name) for p in found if not is_url(p) or (p / COMMIT).exists())


def kept_steps(run: AnyPath) -> list[int]:
    """How many steps were finished at each checkpoint that a run has kept, ascending; [] if it has none."""
    return saved_steps(as_path(run) / "checkpoints")
