"""The shape of a student without its weights: from the checkpoint on disk, or from ``models/``.

``models/NAME/config.json`` has the published sizes of the paper's models, so that a plan needs neither the Hub nor
8 GB of weights.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import pathlib

from ropd_jax.models.config import ModelConfig
from ropd_jax.types import UserError
from ropd_jax.utils.paths import is_url
from ropd_jax.weights import student
from ropd_jax.weights.families import read_config


def facts() -> dict[str, pathlib.Path]:
    """Directories with the config.json of each known model, by the last part of its Hub id."""
    root = pathlib.Path(str(importlib.resources.files("ropd_jax.plan") / "models"))
    return {p.name: p for p in sorted(root.iterdir()) if (p / "config.json").is_file()}


def model_config(checkpoint: str) -> ModelConfig:
    """Sizes of ``student.checkpoint``: for a name, a file, a directory, or a Hub id (only its config is fetched).

    Raises:
        UserError: not found; see `student.find`.
    """
    known = facts()
    on_disk = is_url(checkpoint) or pathlib.Path(checkpoint).expanduser().exists()
    if not on_disk and checkpoint.count("/") == 1 and (name := checkpoint.split("/")[1]) in known:
        return read_config(known[name])
    path = student.find(checkpoint, weights=False)
    config = read_config(path) if path.is_dir() else None
    try:
        with contextlib.closing(student.open_source(path)) as source:
            return source.cfg  # the files can have a head that the config does not mention
    except UserError:
        if config is None:
            raise
        return config  # its weights are missing or incomplete
