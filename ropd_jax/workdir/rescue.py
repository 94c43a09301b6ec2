"""Saves a checkpoint elsewhere if the run's own directory is not writable."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from ropd_jax.utils import paths
from ropd_jax.workdir.checkpoint import Checkpoints
from ropd_jax.workdir.place import COMMIT, Place

log = logging.getLogger(__name__)


def rescue(place: Place, step: int, state: Any, host: dict) -> pathlib.Path | None:
    """Save a checkpoint in the cache or in the temporary directory, and log how to use it.

    Returns:
        its directory, or None if that is not writable either, which is logged.
    """
    for base in (paths.cache_dir() / "rescue", pathlib.Path(tempfile.gettempdir()) / "ropd_rescue"):
        directory = base / paths.folder_name(str(place.home.resolve() if not place.remote else place.home))
        try:
            with contextlib.closing(Checkpoints(directory, keep=1)) as checkpoints:
                checkpoints.save(step, state, host, wait=True)
        except Exception as error:  # try the next place; the run already ends with the first error
            log.error("could not save a checkpoint in %s either (%s)", directory, " ".join(str(error).split())[:200])
            continue
        found = directory / str(step)
        if place.remote:
            for folder in _folders(found):
                (folder / COMMIT).touch()
        copy, to = "cp -r", f"{place.home / 'checkpoints'}/"
        if place.remote and to.startswith("s3:"):
            copy, to = "aws s3 cp --recursive", f"{to}{step}/"  # copies the contents of a folder
        elif place.remote:
            copy = "gcloud storage cp -r"
        log.warning(
            "saved a checkpoint after step %d in %s; to resume from it: %s %s %s", step, found, copy, found, to
        )  # fmt: skip
        return found
    return None


def _folders(checkpoint: pathlib.Path) -> Iterator[pathlib.Path]:
    """A checkpoint and its items."""
    yield checkpoint
    yield from (path for path in checkpoint.iterdir() if path.is_dir())
