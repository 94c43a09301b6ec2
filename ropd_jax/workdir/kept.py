"""Lists the checkpoints of a run by their names only. Imports no jax."""

from __future__ import annotations

from etils import epath

from ropd_jax.utils.paths import AnyPath, as_path, is_url

COMMIT = "commit_success.txt"  # Orbax's name; a bucket cannot rename, so this file marks a complete checkpoint
DAMAGED = "damaged-"  # plus the step: a checkpoint that was set aside


def entries(directory: epath.Path) -> list[epath.Path]:
    """The entries of a directory; [] if it does not exist, as in a bucket until something is written."""
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
    """Number of finished steps of each checkpoint of a run, ascending; [] if it has none."""
    return saved_steps(as_path(run) / "checkpoints")
